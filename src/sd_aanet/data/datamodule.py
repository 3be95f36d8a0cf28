"""The LightningDataModule: a data set, a fold and the protocol's switches in, Episode batches out."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from sd_aanet.data.episode_lists import EpisodeList, read_list
from sd_aanet.data.episodes import EpisodeDataset, Episodes, EpisodeSampler, EpisodeSpec, PlaceSampler
from sd_aanet.data.folds import ClassSplit, split_classes
from sd_aanet.data.loader import Loader
from sd_aanet.data.sources.base import ImageSource, Split
from sd_aanet.data.sources.opening import open_source
from sd_aanet.data.sources.refusal import more, refuse
from sd_aanet.data.transforms import Augment, Preprocess
from sd_aanet.episode import IMAGENET_MEAN, IMAGENET_STD, RGB, Episode
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.rules import check
from sd_aanet.settings import RULES, named

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False, repr=False)
class EpisodeDataModule(pl.LightningDataModule):
    """Episodes for training, validation and test; all arguments are primitives.

    Training: base classes of the fold, from the "train" images. Validation: base classes held out of training
    (or the novel ones), from the "val" images. Test: the novel classes, from the "val" images. Validation and
    test take their classes in turn, and their episodes are functions of (seed, index).

    Args:
        source_config: `_target_` (a key of `SOURCES`) and the arguments of its class but `split`.
        fold: whose classes are novel.
        way: N, the classes of an episode.
        shot: K in training and validation.
        test_shot: K in the test; 0 for `shot`.
        size: side of the input in training.
        test_size: the same in validation and test; 0 for `size`.
        resize: "squash" or "keep_aspect".
        mean, std: with which pictures are normalised, see `Preprocess`.
        augment: "none", "flip", "published" or "scale"; training only.
        batch_size: training episodes a step and device.
        test_batch_size: the same in validation and test.
        episodes: training episodes an epoch, over all devices; an incomplete last batch is left out.
        val_episodes: validation episodes.
        test_episodes: test episodes.
        seed: of training and validation episodes, of augmentation and of which classes are held out.
        test_seed: of the test episodes.
        workers: loader processes; 0 loads in the process itself.
        min_object_pixels: an image counts for a class from this many pixels on (at its own size); 0 for all.
        novel_in_train: training images that show a novel class: "background" keeps them, as background,
            "drop" leaves them out.
        select_on: what validation sees: "base" (held-out base classes), "novel" (the test's classes: an
            oracle) or "none" (no validation).
        held_out: how many base classes are held out of training (background there) if `select_on` is "base"; without
            effect where the benchmark names its validation classes itself.
        order: of the test's queries, "classes" or "pairs", see `EpisodeSampler`.
        ignore_boundary: see `EpisodeDataset`; validation and test only.
        short_classes: what becomes of classes with fewer than K + 1 usable images: "refuse" (an error) or "skip".
        episodes_file: a list of test episodes (see `read_list`) instead of drawn ones; its shot and length are taken.

    Raises:
        ConfigError: (from `setup`) a setting that cannot work.
        DataError: (from `setup`) files that are missing or do not fit, or a class with too few images.
    """

    source_config: dict[str, Any]
    fold: int = 0
    way: int = 1
    shot: int = 1
    test_shot: int = 0
    size: int = 473
    test_size: int = 0
    resize: str = "squash"
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    augment: str = "none"
    batch_size: int = 4
    test_batch_size: int = 4
    episodes: int = 1000
    val_episodes: int = 200
    test_episodes: int = 1000
    seed: int = 0
    test_seed: int = 0
    workers: int = 0
    min_object_pixels: int = 2 * 32 * 32
    novel_in_train: Literal["background", "drop"] = "background"
    select_on: Literal["base", "novel", "none"] = "base"
    held_out: int = 3
    order: Literal["classes", "pairs"] = "classes"
    ignore_boundary: bool = True
    short_classes: Literal["refuse", "skip"] = "refuse"
    episodes_file: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.test_shot = self.test_shot or self.shot
        self.test_size = self.test_size or self.size
        self.train_data: EpisodeDataset | None = None
        self.val_data: EpisodeDataset | None = None
        self.test_data: EpisodeDataset | None = None
        self._sources: dict[Split, ImageSource] = {}
        self._pixels: dict[Split, NDArray[np.int64]] = {}
        self._told: set[str] = set()

    @property
    def preprocess(self) -> Preprocess:
        """What a checkpoint carries, so that prediction sees pictures as validation and test do."""
        return Preprocess(self.test_size, self.resize, self.mean, self.std)

    def setup(self, stage: str | None = None) -> None:
        """Open the data set and index its classes, for "fit", "validate", "test" or (None) all of them."""
        self._check()
        if stage in (None, "fit") and self.train_data is None:
            self.train_data = self._train()
        if stage in (None, "fit", "validate") and self.val_data is None and self.select_on != "none":
            seen = self.classes("val").val
            if self.select_on == "base" and len(seen) < self.way:
                raise ConfigError(
                    f"way={self.way}, and {len(seen)} classes are held out of training to validate on: set "
                    f"held_out={self.way} or more, a smaller way, or select_on=none"
                )
            sampler = self._sampler("val", seen, self.shot, self.seed, "classes")
            self.val_data = self._evaluation(sampler, self.val_episodes)
        if stage in (None, "test") and self.test_data is None:
            self.test_data = self._test()
        self._tell_strays()

    def test_specs(self, seed: int) -> list[EpisodeSpec]:
        """The test episodes of another `test_seed`; those of `episodes_file`, whatever the seed."""
        self.setup("test")
        assert self.test_data is not None
        sampler = copy(self.test_data.sampler)
        sampler.seed = seed
        return [sampler.draw(0, index) for index in range(len(self.test_data))]

    def train_dataloader(self) -> DataLoader[Episode]:
        """Batches of training episodes, new ones each epoch."""
        return self._loader(self.train_data, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[Episode] | list[DataLoader[Episode]]:
        """Batches of validation episodes, the same each time; no loader where `select_on` is "none"."""
        return self._loader(self.val_data, self.test_batch_size) if self.select_on != "none" else []

    def test_dataloader(self) -> DataLoader[Episode]:
        """Batches of test episodes, the same each time."""
        return self._loader(self.test_data, self.test_batch_size)

    def classes(self, split: Split = "val") -> ClassSplit:
        """Which classes are trained on, validated on and tested on.

        Raises:
            ConfigError: no such fold, or `held_out` leaves no class to train on.
        """
        return split_classes(self.source(split), self.fold, self.seed, self.select_on, self.held_out)

    def source(self, split: Split) -> ImageSource:
        """The images of a split, opened once.

        Raises:
            ConfigError: see `open_source`.
            DataError: what the data set itself raises.
        """
        if split not in self._sources:
            self._sources[split] = open_source(self.source_config, split)
        return self._sources[split]

    def check_leaks(self) -> None:
        """Refuse images that are in both splits, by name.

        Raises:
            DataError: there are some.
        """
        sources = self.source("train"), self.source("val")
        train, val = ({source.key(i) for i in range(len(source))} for source in sources)
        lines = (f"image '{key}' is in train and in val: take it off one of them" for key in sorted(train & val))
        refuse(*lines, defect="leak")

    def describe(self) -> dict[str, Any]:
        """The protocol's switches and the classes by name, as primitives for a result file.

        Of `episodes_file`: what it says itself, None where it does not say, and no fold where it has other classes.
        """
        source = next(iter(self._sources.values()), None) or self.source("val")
        classes, takes = dataclasses.asdict(self.classes(source.split)), inspect.signature(type(source)).parameters
        listed, own = self._listed, {}
        if listed is not None:  # what does not stand in it is not known
            classes["test"] = listed.classes
            own = {name: listed.about[name] for name in named("listed") if name not in named("column")}
            own |= {"way": listed.way, "fold": None if self._others(listed) else self.fold, "test_seed": own["seed"]}
        return {
            "dataset": source.name,
            "folds": source.folds,
            "source": {name: self.source_config.get(name, takes[name].default) for name in source.dividing}
            | {"classes": _told(source.classes)},
            **{name: getattr(self, name) for name in named("protocol")},
            "test_seed": self.test_seed,
            **own,
            "classes": {stage: [source.classes[c - 1] for c in ids] for stage, ids in classes.items()},
        }

    def labels(self) -> str:
        """A name of what exactly the "val" images are called and show: other ones, or other masks, have another."""
        source = self.source("val")
        made = hashlib.sha256(repr([source.key(i) for i in range(len(source))]).encode())
        made.update(self._pixel_counts("val").tobytes())
        return made.hexdigest()[:12]

    def _check(self) -> None:
        """Refuse, before any file is read, what cannot work."""
        check({name: getattr(self, name) for name in named("data")}, RULES)
        self.preprocess, Augment(self.augment)  # raise on an unknown name

    def _tell_strays(self) -> None:
        """Say once what the data set leaves out, a line for each kind."""
        strays = {str(stray): stray.defect for source in self._sources.values() for stray in source.strays()}
        kinds: dict[str, list[str]] = {}
        for line, defect in strays.items():
            kinds.setdefault(defect, []).append(line)
        for first, *others in kinds.values():
            if first not in self._told:
                self._told.add(first)
                logger.warning("CAUTION: %s%s", first, more(len(others)))

    def _train(self) -> EpisodeDataset:
        classes, source = self.classes("train"), self.source("train")
        if not classes.train:
            raise ConfigError(
                f"fold={self.fold} of {source.name} leaves no class to train on, all {len(classes.test)} being novel: "
                "train on a benchmark (dataset=pascal5i), then sd-aanet evaluate checkpoint=... on this one"
            )
        self.check_leaks()
        allowed: NDArray[np.bool_] | None = None
        if self.novel_in_train == "drop":
            allowed = np.all(self._pixel_counts("train")[:, [c - 1 for c in classes.test]] == 0, axis=1)
        sampler = self._sampler("train", classes.train, self.shot, self.seed, "random", allowed)
        preprocess = Preprocess(self.size, self.resize, self.mean, self.std)
        return EpisodeDataset(source, sampler, preprocess, Augment(self.augment, preprocess.colour), self.episodes)

    def _test(self) -> EpisodeDataset:
        listed = self._listed
        if listed is not None:
            self.way, self.test_shot, self.test_episodes = listed.way, listed.shot, len(listed)
            return self._evaluation(listed, len(listed))
        sampler = self._sampler("val", self.classes("val").test, self.test_shot, self.test_seed, self.order)
        return self._evaluation(sampler, self.test_episodes)

    @cached_property
    def _listed(self) -> EpisodeList | None:
        """The list of `episodes_file`, if there is one; what it says of fold and supports has to be true here."""
        if self.episodes_file is None:
            return None
        listed = read_list(Path(self.episodes_file), self.source("val"))
        fold, others = listed.about["fold"], self._others(listed)
        if fold not in (None, self.fold):
            raise ConfigError(
                f"episodes_file={self.episodes_file} is a list of fold {fold}, not of fold={self.fold}: set "
                f"fold={fold}, or choose another list"
            )
        if fold is not None and others:
            raise ConfigError(
                f"episodes_file={self.episodes_file} is a list of fold {fold} and has episodes of '{others[0]}', which "
                "is not novel in that fold here: divide the classes (dataset.source) as for the list"
            )
        for number, spec in enumerate(listed.draw(0, index) for index in range(len(listed))):
            for image, c in spec.examples:
                if not self._pixel_counts("val")[image, c - 1]:
                    source = self.source("val")
                    raise DataError(
                        f"episodes_file={self.episodes_file}: episode {number} has the support '{source.key(image)}', "
                        f"which shows nothing of '{source.classes[c - 1]}': correct it, or choose its data set"
                    )
        return listed

    def _others(self, listed: EpisodeList) -> list[str]:
        """The classes of a list that are not novel in the fold."""
        novel = self.classes().test
        return [self.source("val").classes[c - 1] for c in listed.classes if c not in novel]

    def _sampler(
        self,
        split: Split,
        classes: tuple[int, ...],
        shot: int,
        seed: int,
        order: Literal["random", "classes", "pairs"],
        allowed: NDArray[np.bool_] | None = None,
    ) -> EpisodeSampler:
        return EpisodeSampler(
            self._pixel_counts(split),
            classes,
            shot,
            seed,
            way=self.way,
            min_object_pixels=self.min_object_pixels,
            order=order,
            allowed=allowed,
            names=self.source(split).classes,
            skip_short=self.short_classes == "skip",
        )

    def _evaluation(self, sampler: Episodes, episodes: int) -> EpisodeDataset:
        source, plain = self.source("val"), Augment("none")
        return EpisodeDataset(source, sampler, self.preprocess, plain, episodes, self.ignore_boundary)

    def _pixel_counts(self, split: Split) -> NDArray[np.int64]:
        if split not in self._pixels:
            self._pixels[split] = self.source(split).pixels()
        return self._pixels[split]

    def _loader(self, data: EpisodeDataset | None, batch: int, training: bool = False) -> DataLoader[Episode]:
        if data is None:
            raise RuntimeError("setup() was not called for this stage")
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = PlaceSampler(len(data), training=training, rank=rank, world=world)
        if training and len(sampler) < batch:
            raise ConfigError(
                f"episodes={self.episodes} does not fill one batch of {batch} on each of {world} device(s): "
                f"set episodes={batch * world} or more, or a smaller batch_size"
            )
        return Loader(data, self.workers, batch_size=batch, sampler=sampler, drop_last=training, collate_fn=Episode.cat)


def _told(classes: Sequence[str]) -> str:
    """All classes of a data set in short, as no other data set has them: folders of one's own have one name."""
    return f"{classes[0]} to {classes[-1]} ({len(classes)}, {hashlib.sha256(repr(classes).encode()).hexdigest()[:6]})"
