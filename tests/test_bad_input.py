"""Bad input to commands: one line that names the thing and the fix, exit code 2, and nothing left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import EVALUATION, TINY, Done, nothing_left, ran, refused, run
from data.fake_voc import make_voc

VOC = (
    *("train", "dataset=pascal5i", "dataset.root=voc", "strategy=cpu", "size=33", "backbone=resnet18"),
    *("model.channels=8", "batch_size=2", "steps=2", "val_every=2", "val_episodes=4", "test_episodes=5"),
    *("precision=32-true", "workers=0", "augment=none"),
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuse(*arguments: object, words: tuple[str, ...]) -> None:
    with nothing_left():
        refused(run(*arguments), *words)


# Commands and settings

UNKNOWN = [
    (("trian",), ("'trian'", "train, evaluate, check, episodes")),
    (("train", "stps=3"), ("'stps' is unknown", "did you mean 'steps'")),
    (("train", "datset=shapes"), ("'datset'", "did you mean 'dataset'")),
    (("train", "dataset=pascal"), ("dataset=pascal is unknown", "coco20i, folder")),
    (("train", "model=sdaanet"), ("model=sdaanet is unknown", "baseline")),
    (("train", "strategy=tpu"), ("strategy=tpu is unknown", "ddp_spawn")),
    (("train", "--steps=3"), ("'--steps=3'", "KEY=VALUE")),
    (("train", "steps"), ("'steps' cannot be read", "KEY=VALUE")),
    (("train", "out=a (b, c)"), ("cannot be read", """'out="a (b, c)"'""")),
    (("train", "fold=0,1"), ("fold has several values", "-m")),
    (("train", "+fold=1"), ("fold",)),
    (("train", "model=null"), ("model=null is unknown", "sd_aanet_multi")),
    (("train", *TINY, "+model.loss.gamma=1"), ("loss.gamma", "leave it out")),
    (("train", *TINY, "+optimizer.gamma=1"), ("gamma", "leave it out")),
    (("train", *TINY, "+backbone.output_stride=4"), ("output_stride=4", "8, 16 or 32")),
    (("train", "dataset=pascal5i"), ("dataset.root is not set",)),
    (
        ("train", "dataset=pascal5i", "dataset.root=a", "dataset.source.size=9"),
        ("'dataset.source.size'", "these choices"),
    ),
    (("evaluate",), ("checkpoint is not set",)),
    (("predict", "checkpoint=a"), ("support is not set",)),
    (("train", "dataset=1"), ("dataset=1 is unknown", "shapes", "leave it out")),
    (("train", "dataset=[a]"), ("dataset=a is unknown", "shapes")),
    (("train", "backbone=null"), ("backbone=null is unknown", "resnet18")),
    (("train", "experiment=null"), ("experiment=null is unknown", "leave it out")),
    (("train", "~val_every"), ("'~val_every' takes a setting away", "val_every=")),
    (("train", "+optimizer.speed=1"), ("'optimizer.speed' is unknown",)),
    (("train", "+dataset.source.speed=1"), ("'dataset.source.speed' is unknown",)),
    (("train", "+model.loss.speed=1"), ("no setting loss.speed",)),
    (("predict", "checkpoint=a", "support=[a:b]", f"query={'q' * 400}"), ("file name too long",)),
    (("predict", "checkpoint=a", "support=[a:b]", "query=[]"), ("query=[]", "a text or a list of texts")),
    (
        ("predict", "checkpoint=a", "support=[{image: a}]", "query=b"),
        ("support=", "{image: img1.jpg, mask: mask1.png}"),
    ),
    (("check", "dataset=folder", f"dataset.root={'r' * 400}"), ("file name too long",)),
    (("evaluate", "checkpoint=null", "episodes=99999999999999999999"), ("at most 1000000",)),
    (("train", "model=[[a]]"), ("train --help",)),
    (("check", "+recipe=1.5"), ("recipe",)),
    (("check", "seed={a: " + "9" * 5000 + "}"), ("check --help",)),
    (("check", "--resolve"), ("--resolve needs --cfg",)),
    (("check", "-m", "--cfg=job"), ("one can be given",)),
    (("check", "--cfg=nothing"), ("--cfg", "check --help")),
    (("check", "+hydra.run.dir={a: b}"), ("hydra.run.dir",)),
    (("train", f"dataset.name={'x' * 300}"), ("File name too long",)),
    (("parity",), ("folder", "parity --help")),
    (("import-published", "a.pth"), ("--out", "import-published --help")),
]


@pytest.mark.parametrize(("arguments", "words"), UNKNOWN, ids=lambda given: " ".join(given)[:80])
def test_what_does_not_exist(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refuse(*arguments, words=words)


VALUES = {
    "fold=7": "0 to 3",
    "size=64": "the nearest good size is 65",
    "size=abc": "a whole number",
    "steps=0": "at least 1",
    "shot=0": "at least 1",
    "batch_size=1": "batch_size=2",
    "features=compote": "compute, cache",
    "features=cache": "backbone.trainable=false",
    "augment=colour": "none, flip, published, scale",
    "resize=stretch": "squash, keep_aspect",
    "select_on=test": "base, novel, none",
    "novel_in_train=yes": "background, drop",
    "held_out=15": "1 to 14",
    "held_out=0": "select_on=none",
    "min_object_pixels=100000": "(0)",
    "model.variant=other": "paper, published",
    "model.loss.teacher=me": "separate, integral",
    "backbone.name=resnet19": "resnet18, resnet34",
    "backbone.norm=group": "frozen or batch",
    "backbone.high=stage7": "stage4",
    "backbone.mid=3": "has no such output",
    "backbone.mid=stage9": "stage4",
    "way=4": "held_out=4 or more",
    "optimizer.name=lamb": "sgd, adam, adamw",
    "backbone.weights=missing.pth": "missing.pth",
    "backbone.weights=missing.npz": "missing.npz",
    "backbone.weights=torchvision://resnet19": "torchvision://resnet18",
    "dataset.source._target_=os.system": "sd_aanet.data",
    "strategy.accelerator=abacus": "abacus",
    "strategy.strategy=magic": "magic",
    "resume=missing": "missing",
    "checkpoint=missing.ckpt": "missing.ckpt",
    "out=/proc/no/such": "/proc/no/such",
}


@pytest.mark.parametrize("setting", VALUES)
def test_values_that_cannot_work(setting: str) -> None:
    refuse("train", *TINY, setting, words=(VALUES[setting], setting.partition("=")[2]))


def test_a_method_that_has_nothing_to_train() -> None:
    tiny = [setting for setting in TINY if not setting.startswith("model")]
    refuse("train", *tiny, "model=prototype", words=("checkpoint=null model=prototype",))


KINDS = {
    "shot=two": "a whole number",
    "fold=": "a whole number",
    "size=0": "at least 1",
    "way=0": "at least 1",
    "way=two": "a whole number",
    "size=65.0": "a whole number",
    "steps=true": "a whole number",
    "val_every=0": "at least 1",
    "val_episodes=0": "at least 1",
    "test_episodes=-1": "at least 0",
    "batch_size=0": "at least 1",
    "workers=-1": "auto, or a whole number of at least 0",
    "workers=many": "auto, or a whole number of at least 0",
    "seed=-1": "at least 0",
    "lr=fast": "a number above 0",
    "lr=0": "a number above 0",
    "lr=nan": "a number above 0",
    "optimizer.momentum=2": "at most 1",
    "gradient_clip=0": "or null",
    "early_stopping=no": "or null",
    "precision=half": "bf16-mixed",
    "model.bins=[]": "a list of numbers",
    "model.bins=[0.5,a]": "a list of numbers",
    "model.bins=[1e30]": "at most 1000",
    f"lr=1{'0' * 400}": "a number above 0",
    "model.sdpm=maybe": "true, false",
    "model.loss.alpha=x": "a number",
    "backbone.trainable=maybe": "auto, true, false",
    "dataset.source.seed=-1": "at least 0",
    "dataset.source.images=0": "at least 1",
    "strategy.devices=[]": "a list of their indices",
    "strategy.devices=99999999999": "a list of their indices",
    "workers=99999": "a whole number",
    "steps=99999999999999999999": "up to 1000000000",
    "seed=99999999999999999999": "up to 1000000000",
    "out=[]": "a text",
    "out=": "a text",
    "model.loss=5": "settings of its own",
    "model.loss.alpha={}": "a number",
    "model.init={}": "a text",
    "backbone.mid={}": "a list of texts",
    "backbone.name=[]": "a text",
    "recipe.size=a": "a whole number",
    "logger.name=5": "csv, wandb",
    "backbone.mid=[]": "a text or a list of texts, or null",
    "recipe.test_size=abc": "a whole number",
    "recipe.size=-5": "at least 1",
}


@pytest.mark.parametrize("setting", KINDS)
def test_values_of_another_kind(setting: str) -> None:
    refuse("train", *TINY, setting, words=(f"sd-aanet: {setting.partition('=')[0]}=", KINDS[setting]))


def test_paths_may_look_like_numbers() -> None:
    refuse("train", *TINY, "backbone.weights=5", words=("5", "does not exist"))
    refuse("evaluate", *EVALUATION, "checkpoint=2026", words=("'2026' does not exist",))
    given = [setting for setting in EVALUATION if setting.startswith(("dataset", "min", "episodes"))]
    ran("episodes", *given, "out=2026")
    assert Path("2026").is_file()


def test_caching_views_that_never_come_again() -> None:
    still = ("backbone.trainable=false", "backbone.norm=frozen")
    refuse("train", *TINY, *still, "features=cache", "augment=published", words=("augment=published", "augment=flip"))


def test_early_stopping_without_a_validation() -> None:
    refuse("train", *TINY, "early_stopping=2", "select_on=none", words=("early_stopping", "select_on=base"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("strategy", ["gpu", "ddp"])
def test_a_gpu_that_is_not_there(strategy: str) -> None:
    refuse("train", *TINY[1:], f"strategy={strategy}", words=("GPU", "strategy=cpu"))


def test_more_shots_than_a_class_has_names_the_classes() -> None:
    refuse("train", *TINY, "shot=90", words=("shot=90 needs 91 images", "lower shot"))
    done = run("evaluate", "checkpoint=null", *EVALUATION, "shot=90")
    refused(done, "striped star (")


# Checkpoints


@pytest.fixture
def spoilt(trained: tuple[Path, Done], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint with something wrong, by what is wrong."""
    good = trained[0] / "checkpoints/best.ckpt"

    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.ckpt"
        if kind == "truncated":
            path.write_bytes(good.read_bytes()[:9000])
        elif kind == "text":
            path.write_text("no checkpoint")
        elif kind == "empty":
            path.touch()
        elif kind == "folder":
            path.mkdir()
        elif kind == "foreign":
            torch.save({"model": torch.zeros(2)}, path)
        elif kind == "published":
            torch.save({"state_dict": {"module.down_query.0.weight": torch.zeros(2)}}, path)
        elif kind == "pickled":
            torch.save({"state_dict": Path("x")}, path)
        elif kind == "older":  # before checkpoints told what was trained on, and of what
            content = torch.load(good, weights_only=True)
            content["hyper_parameters"] = {"network": {"backbone": "resnet18", "channels": 8}, "lr": 0.1}
            torch.save(content, path)
        elif kind == "renamed":  # its settings are those of another version
            content = torch.load(good, weights_only=True)
            content["hyper_parameters"]["network"] |= {"head_channels": 8}
            torch.save(content, path)
        elif kind == "other tensors":
            content = torch.load(good, weights_only=True)
            content["state_dict"] = {f"network.{name}": value for name, value in content["state_dict"].items()}
            torch.save(content, path)
        return path

    return make


BROKEN = {
    "missing": "does not exist",
    "truncated": "truncated",
    "text": "no torch file",
    "empty": "no torch file",
    "folder": "folder.ckpt",
    "foreign": "sd-aanet train",
    "published": "import-published",
    "pickled": "executing",
    "older": "not one of sd-aanet",
    "renamed": "no setting head_channels: leave it out; train again",
    "other tensors": "does not fit this version of sd-aanet",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_checkpoints_of_another_kind(kind: str, spoilt: Callable[[str], Path]) -> None:
    path = spoilt(kind)
    refuse("evaluate", *EVALUATION, f"checkpoint={path}", words=(str(path), BROKEN[kind]))
    refuse("train", *TINY, f"checkpoint={path}", words=(str(path), BROKEN[kind]))


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign"])
def test_backbone_weights_of_another_kind(kind: str, spoilt: Callable[[str], Path]) -> None:
    path = spoilt(kind)
    refuse("train", *TINY, f"backbone.weights={path}", words=(str(path),))


def test_weights_of_another_network(trained: tuple[Path, Done]) -> None:
    good = trained[0] / "checkpoints/best.ckpt"
    other = "dataset.source.size=65"
    refuse("train", *TINY, f"checkpoint={good}", "model.sdpm=false", words=("does not fit this network", "sdpm"))
    refuse("train", *TINY, other, f"backbone.weights={good}", "backbone=resnet34", words=("do not fit", "layer1.2"))


def test_resume_needs_the_folder_of_a_training(trained: tuple[Path, Done], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("train", *TINY, "resume=empty", words=("empty", "last.ckpt"))
    alone = tmp_path / "alone/checkpoints/last.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((trained[0] / "checkpoints/last.ckpt").read_bytes())
    refuse("train", *TINY, "resume=alone", words=("config.yaml",))
    torch.save({"state_dict": {}}, alone)
    refuse("train", *TINY, "resume=alone", words=("no state of a training", "checkpoint="))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(callbacks=dict.fromkeys(c["callbacks"], "x")),
        lambda c: c.update(loops={}),
        lambda c: c.update(optimizer_states=[{}]),
        lambda c: c.update(lr_schedulers=[5]),
        lambda c: c["state_dict"].popitem(),
    ],
)
def test_a_state_that_is_not_this_trainings(
    spoil: Callable[[dict[str, Any]], object], trained: tuple[Path, Done], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run/trained.json").unlink()
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    spoil(content)
    torch.save(content, last)
    refuse("train", *TINY, "resume=run", words=("last.ckpt' is not the state of this training", "start again"))


def test_names_that_are_no_texts_in_the_settings_of_a_training(trained: tuple[Path, Done], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("\nmodel:\n", "\nmodel:\n  5: 1\n"))
    refuse("train", *TINY, "resume=run", words=("sd_aanet has no setting 5: leave it out",))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("fold=9", ("0 to 3",)),
        ("shot=0", ("at least 1",)),
        ("size=64", ("nearest good size is 65",)),
        ("episodes=0", ("at least 1",)),
        ("cache_gb=0", ("above 0",)),
        ("resize=x", ("keep_aspect",)),
        ("resolution=x", ("original, squashed, both",)),
        ("order=x", ("classes, pairs",)),
        ("protocol=x", ("hsnet, pfenet, published, strict",)),
        ("episodes_file=x.json", ("x.json does not exist",)),
        ("out=/proc/no/such", ("/proc/no/such",)),
        ("batch_size=many", ("a whole number",)),
    ],
)
def test_evaluations_that_cannot_work(setting: str, words: tuple[str, ...], trained: tuple[Path, Done]) -> None:
    refuse("evaluate", *EVALUATION, f"checkpoint={trained[0] / 'checkpoints/best.ckpt'}", setting, words=words)


def test_features_that_are_no_names_of_outputs() -> None:
    """Of a method that takes its own choice of them."""
    for model in ("prototype", "probe"):
        settings = (*EVALUATION, "checkpoint=null", f"model={model}")
        refuse("evaluate", *settings, "model.features=3", words=("model.features=3", "has no such output"))
        refuse("evaluate", *settings, "model.features={}", words=("model.features={}, expected a text", "or null"))


# Data


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "voc", images=3)


def lists(voc: Path, split: str) -> Path:
    return voc / "ImageSets/Segmentation" / f"{split}.txt"


def test_no_root() -> None:
    refuse(*VOC, "dataset.root=missing", words=("missing", "dataset.root"))


def test_no_masks(voc: Path) -> None:
    (voc / "SegmentationClassAug").rename(voc / "Masks")
    refuse(*VOC, words=("SegmentationClassAug or", "dataset.root"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_list(voc: Path, split: str) -> None:
    lists(voc, split).write_text("\n")
    refuse(*VOC, words=(f"{split}.txt is empty",))


def test_a_list_that_names_what_is_not_there(voc: Path) -> None:
    lists(voc, "train").write_text("nothing\n")
    refuse(*VOC, words=("nothing", "does not exist"))


def test_a_mask_of_another_size(voc: Path) -> None:
    path = voc / "SegmentationClassAug/train_000.png"
    Image.fromarray(np.ones((10, 12), np.uint8)).save(path)
    refuse(*VOC, words=("train_000.png is 12x10", "train_000.jpg is 96x72"))


def test_a_mask_in_colour(voc: Path) -> None:
    path = voc / "SegmentationClassAug/train_000.png"
    Image.open(path).convert("RGB").save(path)
    refuse(*VOC, words=("train_000.png holds colours", "palette or 8-bit grey"))


def test_a_mask_of_unknown_classes(voc: Path) -> None:
    path = voc / "SegmentationClassAug/train_000.png"
    Image.fromarray(np.full((72, 96), 33, np.uint8)).save(path)
    refuse(*VOC, words=("train_000.png", "33"))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_strike_in_the_training(voc: Path, workers: int) -> None:
    """Their headers are whole, so that it shows only when an episode is made: in Lightning's loop, in a worker."""
    for path in voc.glob("JPEGImages/train_*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    refuse(*VOC, f"workers={workers}", words=("train_", ".jpg cannot be read", "replace it"))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_strike_in_an_evaluation(voc: Path, workers: int) -> None:
    for path in voc.glob("JPEGImages/val_*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    given = ("dataset=pascal5i", "dataset.root=voc", "size=33", "strategy=cpu", "episodes=5", "backbone=resnet18")
    small = ("model.channels=8", f"workers={workers}", "out=results")
    refuse("evaluate", "checkpoint=null", *given, *small, words=("val_", ".jpg cannot be read"))


def test_what_strikes_after_a_step_leaves_the_run_to_be_looked_at(voc: Path) -> None:
    for path in voc.glob("JPEGImages/val_*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    refused(run(*VOC, "out=run"), "val_", ".jpg cannot be read")
    assert Path("run/config.yaml").is_file()


def test_a_folder_of_ones_own_keeps_what_was_in_it(voc: Path, tmp_path: Path) -> None:
    for path in voc.glob("JPEGImages/train_*.jpg"):
        path.write_bytes(path.read_bytes()[:700])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    refuse(*VOC, "out=mine", words=("cannot be read",))
    assert (mine / "notes.txt").read_text() == "mine"
