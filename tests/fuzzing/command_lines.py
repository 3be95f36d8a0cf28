"""Command lines: every setting that conf/ has with odd values, and odd words for the commands without settings."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fuzzing.inputs import TEXTS, Input
from fuzzing.results import SMALL
from sd_aanet.cli import COMPOSED, PLAIN
from sd_aanet.composition import OPTIONS
from sd_aanet.files import config_folder
from sd_aanet.settings import flat

SHAPES = ("dataset.source.size=33", "dataset.source.images=60", "min_object_pixels=9")
BASE = {
    "train": SMALL,
    "evaluate": (
        *(*SHAPES, "strategy=cpu", "checkpoint=null", "model=prototype", "size=33", "episodes=2", "seeds=1"),
        "workers=0",
    ),
    "check": ("dataset=folder", "dataset.root=folder", "shot=1", "min_object_pixels=1"),
    "episodes": (*SHAPES, "episodes=3"),
    "predict": (
        *("checkpoint=null", "model=prototype", "backbone=resnet18", "size=33", "device=cpu"),
        *("support=[folder/images/train_000.jpg:folder/masks/train_000.png]", "query=folder/images/val_000.jpg"),
    ),
    "label": (
        *("checkpoint=null", "model=prototype", "backbone=resnet18", "size=33", "device=cpu"),
        *("support=[folder/images/train_000.jpg:folder/masks/train_000.png]", "images=folder/images/val_000.jpg"),
    ),
    "export": ("checkpoint=null", "model=prototype", "backbone=resnet18", "size=33", "out=model.pt2"),
}
"""Of each command what works, in a moment."""
DOOM = {
    "train": ("fold=9", "episodes_file=missing.json", "held_out=99"),
    "evaluate": ("fold=9", "episodes_file=missing.json", "checkpoint=missing.ckpt"),
    "check": ("dataset.root=missing", "shot=0", "dataset.root=folder/images"),
    "episodes": ("fold=9", "shot=99"),
    "predict": ("checkpoint=missing.ckpt", "query=missing.jpg", "class_id=77"),
    "label": ("checkpoint=missing.ckpt", "images=missing.jpg", "class_id=77"),
    "export": ("checkpoint=missing.ckpt", "out=model.none"),
}
"""What ends it at some point with one line, so that odd settings are read and no work begins."""
LAST = {
    **dict.fromkeys(("train", "evaluate", "episodes"), "fold=9"),
    "check": "dataset.root=missing",
    "predict": "query=missing.jpg",
    "label": "images=missing.jpg",
    "export": "out=model.none",
}
"""Behind all others."""
NOT_ALONE = ("strategy", "logger", "hydra", "num_nodes", "workers")
"""Where legal values start processes: with these every command line is doomed."""
HEAVY = ("dinov", "vgg", "resnet101", "resnet50", "lite2")
MOST = 33
"""The largest number that words beside a setting give: what is legal and large takes its time."""
FOLDERS = ("one", "two", "one/a/result.json")
"""Of results."""
NUMBERS = (-(10**20), -1, 0, 1, 2, 3, 4, 2**31, 2**63, 10**20, 10**400)
"""Small ones, and such as no setting takes."""


@cache
def names(command: str) -> tuple[str, ...]:
    """The keys of all settings of a command, and its groups."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        configs = [
            compose(command, given)
            for given in ([], ["dataset=folder"])
            if not given or command not in ("predict", "label", "export")
        ]
    keys = [key for config in configs for key, _ in flat(cast(Any, OmegaConf.to_container(config, resolve=False)))]
    above = {key[:place] for key in keys for place, letter in enumerate(key) if letter == "."}
    return tuple(
        sorted({*keys, *above, *(path.name for path in config_folder().iterdir() if path.is_dir()), "hydra.run.dir"})
    )


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml") if not path.stem.startswith(HEAVY))


_scalars = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=("Nd",), exclude_characters="/"), max_size=20),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]"),
        st.dictionaries(st.sampled_from(("a", "image", "mask", "alpha", "_target_", "x y")), inner, max_size=2).map(
            lambda values: "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"
        ),
    ),
    max_leaves=4,
)


@cache
def hints() -> dict[str, tuple[str, ...]]:
    """Of each setting, by the last part of its name, the words beside it in conf/: choices, usual values, names."""
    found: dict[str, set[str]] = {}
    for path in config_folder().rglob("*.yaml"):
        for key, rest in re.findall(r"^ *(\w+): *(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(key, set()).update(re.findall(r"[\w.]+", rest))
    return {key: tuple(sorted(words - {"wandb"})) for key, words in found.items()}


def _value(input: Input, key: str) -> str:
    """Of a setting, what it may be in another command or group as often as what it may not."""
    choices, words = _choices(key), hints().get(key.rpartition(".")[2], ())
    if choices and input.often(0.6):
        return input.chance.choice(choices)
    kind = input.chance.randrange(10)
    if kind < 2 and words:
        word = input.chance.choice(words)
        return "3" if word.isdecimal() and int(word) > MOST else word
    if kind == 2:
        return input.chance.choice(
            ("1", "2", "3", "33", "0.5", "1.5", "true", "false", "null", "[1]", "[0.5,1]", "[1,2,3]", "1e30")
        )
    if kind == 3:
        return f"[{','.join(input.chance.choice(words or ('a',)) for _ in range(2))}]"
    return input.example(_values)


def _setting(input: Input, command: str) -> tuple[str, str]:
    key = input.chance.choice(names(command))
    sign = input.chance.choice(("", "", "", "", "", "", "+", "++", "~"))
    return key, f"{sign}{key}={_value(input, key)}" if input.often(0.97) else key


def composed(input: Input, command: str) -> None:
    """A command with one to three odd settings."""
    given: list[str] = []
    alone = True
    for _ in range(0 if input.whole else input.chance.choice((1, 1, 2, 3))):
        key, argument = _setting(input, command)
        alone = alone and not key.startswith(NOT_ALONE)
        given.append(argument)
    if not input.whole and input.often(0.15):
        given.append(input.chance.choice((*OPTIONS, "--help", "--cfg=job", "-x", "--out", *TEXTS)))
    if not input.whole and (not alone or {"-m", "--multirun"} & {*given} or input.often(0.6)):
        given.insert(input.chance.randrange(len(given) + 1), input.chance.choice(DOOM[command]))
        given.append(LAST[command])
    input.copy(input.valid / "folder")
    input.command(command, *BASE[command], *given)


def words(input: Input) -> None:
    """Commands with arguments that are any words, and words that are no command."""
    command = "compare" if input.whole else input.chance.choice((*COMPOSED, *PLAIN, "prepare", "report", *TEXTS))
    flags = ("--out", "--voc", "--sbd", "--coco", "--png", "--export", "--help", "pascal5i", "coco20i", *FOLDERS)
    if input.whole or input.often(0.4):
        for name in FOLDERS[:2]:
            input.copy(input.valid / name)
    chosen: list[str] = [*FOLDERS[:2]] if input.whole else []
    while not input.whole and input.often(0.7):
        chosen.append(input.chance.choice(flags) if input.often(0.5) else input.example(_scalars))
    if command in COMPOSED:
        chosen.append("x")  # no setting, and no work begins
    input.command(command, *(word for word in chosen if word not in ("-m", "--download")))


def _of(command: str) -> Any:
    return lambda input: composed(input, command)


KINDS = {
    "settings of train": (700, _of("train")),
    "settings of evaluate": (600, _of("evaluate")),
    "settings of check": (450, _of("check")),
    "settings of episodes": (450, _of("episodes")),
    "settings of predict": (500, _of("predict")),
    "settings of label": (200, _of("label")),
    "settings of export": (100, _of("export")),
    "words": (500, words),
}
