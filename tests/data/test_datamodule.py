import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from fake_voc import Voc
from PIL import Image

from data.fake_folder import make_folder, make_json
from examples import refused
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.sources.pascal5i import CLASSES, Pascal5i
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError, DataError


def module(root: Path, **settings: Any) -> EpisodeDataModule:
    source = {"_target_": "sd_aanet.data.sources.pascal5i.Pascal5i", "root": str(root)}
    small = {"size": 33, "batch_size": 2, "test_batch_size": 3, "episodes": 6, "val_episodes": 4, "test_episodes": 7}
    return EpisodeDataModule(source, **(small | settings))


def same(one: list[Episode], other: list[Episode]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, other, strict=True)
        for name in ("query", "query_mask", "support", "support_mask", "class_id", "index")
    )


def epochs(data: EpisodeDataModule, count: int) -> list[list[Episode]]:
    """The batches of some epochs from one loader, as Lightning takes them."""
    loader = data.train_dataloader()
    taken = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        taken.append(list(loader))
    return taken


def test_any_number_of_workers_gives_the_same_episodes(voc: Voc) -> None:
    root = voc(3)
    runs = []
    for workers in (0, 1, 2):
        data = module(root, augment="published", workers=workers)
        data.setup()
        runs.append([*epochs(data, 3), list(data.val_dataloader()), list(data.test_dataloader())])
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert same(one, other)
    first, second, third, val, test = runs[0]
    assert not same(first, second)
    assert not same(second, third)
    assert [len(batches) for batches in (first, val, test)] == [3, 2, 3]
    assert torch.cat([batch.index for batch in test]).tolist() == list(range(7))


class Recorder(pl.LightningModule):
    """Writes down the queries that Lightning hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_seen: list[torch.Tensor] = []
        self.val_seen: list[torch.Tensor] = []

    def training_step(self, batch: Episode) -> torch.Tensor:
        self.train_seen.append(batch.query)
        return self.weight.sum()

    def validation_step(self, batch: Episode) -> None:
        self.val_seen.append(batch.query)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_moves_training_on_and_keeps_validation(voc: Voc, tmp_path: Path, workers: int) -> None:
    data, recorder = module(voc(3), workers=workers), Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, data)
    alone = module(data.source_config["root"])
    alone.setup("fit")
    expected = [batch.query for epoch in epochs(alone, 3) for batch in epoch]
    assert all(torch.equal(a, b) for a, b in zip(recorder.train_seen, expected, strict=True))
    seen = recorder.val_seen
    assert len(seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen, seen[:2] * 3, strict=True))
    recorder.val_seen = []
    trainer.test(recorder, data, verbose=False)
    alone.setup("test")
    expected = [batch.query for batch in alone.test_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(recorder.val_seen, expected, strict=True))


def test_no_validation_where_nothing_is_selected(voc: Voc, tmp_path: Path) -> None:
    data, recorder = module(voc(3), select_on="none"), Recorder()
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(recorder, data)
    assert len(recorder.train_seen) == 3
    assert recorder.val_seen == []


def test_processes_share_the_episodes_out(voc: Voc) -> None:
    data = module(voc(3))
    data.setup()

    class TwoDevices:
        global_rank, world_size = 0, 2

    trainer = TwoDevices()
    data.trainer = trainer  # type: ignore[assignment]
    indices: list[list[int]] = []
    for trainer.global_rank in (0, 1):
        indices.append(torch.cat([batch.index for batch in data.test_dataloader()]).tolist())
    assert indices == [[0, 2, 4, 6], [1, 3, 5]]
    data.batch_size = 4
    with pytest.raises(ConfigError, match=r"episodes=6 does not fill one batch of 4 on each of 2 device\(s\)"):
        data.train_dataloader()


def test_classes_never_meet(voc: Voc) -> None:
    root = voc(3)
    for fold in range(4):
        data = module(root, fold=fold)
        split = data.classes()
        assert split.test == tuple(range(5 * fold + 1, 5 * fold + 6))
        assert len(split.val) == 3
        assert sorted(split.train + split.val + split.test) == list(range(1, 21))
        assert module(root, fold=fold).classes() == split
    held_out = {module(root, seed=seed).classes().val for seed in range(5)}
    assert len(held_out) > 1
    oracle = module(root, select_on="novel").classes()
    assert oracle.val == oracle.test == (1, 2, 3, 4, 5)
    assert oracle.train == tuple(range(6, 21))
    assert module(root, select_on="none").classes().val == ()


def test_training_images_with_novel_classes(voc: Voc) -> None:
    root = voc(3)
    keep, drop = module(root, episodes=200), module(root, episodes=200, novel_in_train="drop")
    pixels = Pascal5i(root, "train").pixels()
    drawn = []
    for data in (keep, drop):
        data.setup("fit")
        assert data.train_data is not None
        specs = [data.train_data.spec(index) for index in range(200)]
        drawn.append({image for spec in specs for image in (spec.query, *spec.supports[0])})
        assert {c for spec in specs for c in spec.classes} == set(data.classes().train)
    assert (pixels[sorted(drawn[0]), :5] > 0).any()
    assert not (pixels[sorted(drawn[1]), :5] > 0).any()


def test_shots_and_seeds_of_the_test_are_its_own(voc: Voc) -> None:
    root = voc(4)
    data = module(root, shot=1, test_shot=3, seed=1, test_seed=2)
    other = module(root, shot=3, seed=5, test_seed=2, select_on="none", augment="flip")
    for each in (data, other):
        each.setup()
    assert next(iter(data.train_dataloader())).support.shape[1:3] == (1, 1)
    assert next(iter(data.val_dataloader())).support.shape[1:3] == (1, 1)
    assert same(list(data.test_dataloader()), list(other.test_dataloader()))
    assert data.test_data is not None
    assert [data.test_data.spec(i).classes for i in range(7)] == [(c,) for c in (1, 2, 3, 4, 5, 1, 2)]


def test_several_classes_at_once(voc: Voc) -> None:
    data = module(voc(4), way=2, shot=2)
    data.setup()
    split = data.classes()
    loaders = ((data.train_dataloader(), split.train), (data.val_dataloader(), split.val))
    for loader, classes in (*loaders, (data.test_dataloader(), split.test)):
        for batch in loader:
            assert batch.support.shape[1:3] == (2, 2)
            assert batch.class_id.shape == (len(batch), 2)
            assert {c for row in batch.class_id.tolist() for c in row} <= set(classes)
            assert all(len(set(row)) == 2 for row in batch.class_id.tolist())
            assert np.isin(batch.query_mask, (0, 1, 2, 255)).all()
    assert data.describe()["way"] == 2


def test_evaluation_needs_no_training_list(voc: Voc) -> None:
    root = voc(3)
    (root / "ImageSets/Segmentation/train.txt").unlink()
    data = module(root)
    data.setup("test")
    assert data.describe()["classes"]["test"] == list(CLASSES[:5])
    with pytest.raises(DataError, match=r"train\.txt does not exist"):
        data.setup("fit")


def test_describe_is_made_of_primitives(voc: Voc) -> None:
    told = module(voc(3), fold=2).describe()
    assert told["dataset"] == "pascal5i"
    assert told["classes"]["test"] == list(CLASSES[10:15])
    assert told["min_object_pixels"] == 2048
    assert told["test_shot"] == 1
    assert told["source"].pop("classes").startswith("aeroplane to tvmonitor (20, ")
    assert (told["folds"], told["source"]) == (4, {"folds": 4})
    for value in told.values():
        assert value is None or isinstance(value, (str, int, dict))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shot": 0}, r"^shot=0, expected a whole number of at least 1: set shot=1$"),
        ({"test_shot": -1}, r"^test_shot=-1, expected a whole number of at least 1"),
        ({"batch_size": 0}, r"^batch_size=0, expected a whole number of at least 1"),
        ({"seed": -3}, r"^seed=-3, expected a whole number of at least 0"),
        ({"fold": 4}, r"^fold=4, expected 0 to 3 for pascal5i"),
        ({"fold": -1}, r"^fold=-1, expected a whole number of at least 0"),
        ({"way": 0}, r"^way=0, expected a whole number of at least 1: set way=1$"),
        (
            {"way": 6, "select_on": "none"},
            r"^way=6, expected 1 to 5, the number of classes to draw from: set a smaller",
        ),
        (
            {"way": 4},
            r"^way=4, and 3 classes are held out of .*: set held_out=4 or more, a smaller way, or select_on=n",
        ),
        ({"resize": "crop"}, r"^resize='crop', expected one of"),
        ({"augment": "strong"}, r"^augment='strong', expected one of"),
        ({"select_on": "test"}, r"^select_on=test, expected one of base, novel, none"),
        ({"novel_in_train": "keep"}, r"^novel_in_train=keep, expected one of background, drop"),
        ({"held_out": 15}, r"^held_out=15, expected 1 to 14 of the 15 base classes"),
    ],
)
def test_settings_that_cannot_work(voc: Voc, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(voc(3), **settings).setup()


def test_data_that_cannot_work(voc: Voc, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^dataset root .*nowhere is not a folder"):
        module(tmp_path / "nowhere").setup()
    message = r"^shot=3 needs 4 images of every class.*aeroplane \(3\), bicycle \(3\), bird \(3\)"
    with pytest.raises(DataError, match=message):
        module(voc(3), shot=3).setup("test")
    with pytest.raises(ConfigError, match=r"_target_='os\.system', expected a class under sd_aanet\.data"):
        EpisodeDataModule({"_target_": "os.system", "command": "true"}).setup()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_files_say_so_in_one_line(voc: Voc, workers: int) -> None:
    root = voc(3)
    data = module(root, workers=workers)
    data.setup("test")
    for path in (root / "JPEGImages").glob("val_*.jpg"):
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"^image [^\n]*val_\d+\.jpg cannot be read [^\n]*$"):
        list(data.test_dataloader())


def test_real_pictures(shared: Path) -> None:
    data = module(shared / "data" / "voc924", size=65, fold=1, augment="published", test_episodes=10)
    data.setup()
    for batch in (next(iter(data.train_dataloader())), *data.test_dataloader()):
        assert (batch.support_mask == 1).flatten(1).any(1).all()
        assert (batch.query_mask == 1).flatten(1).any(1).all()
        assert torch.isfinite(batch.query).all()
        assert np.isin(batch.support_mask, (0, 1, 255)).all()


# What `sd-aanet check` tells


def own(root: Path, **settings: Any) -> EpisodeDataModule:
    """Of a folder of one's own."""
    source = {"_target_": "sd_aanet.data.sources.folder.Folder", "root": str(root)}
    small: dict[str, Any] = {"size": 33, "episodes": 4, "test_episodes": 4, "min_object_pixels": 100}
    return EpisodeDataModule(source, **small, batch_size=2, select_on="none", **settings)


def test_what_is_left_out_is_said_once_a_kind_with_the_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_json(tmp_path)
    content = json.loads((root / "annotations.json").read_text())
    for entry in content["annotations"][:2]:
        entry["segmentation"] = []
    (root / "annotations.json").write_text(json.dumps(content))
    for name in ("x", "y", "z"):
        shutil.copy(root / "images/train_000.jpg", root / f"images/{name}.jpg")
    data = own(root)
    for stage in ("fit", "test", "test"):
        data.setup(stage)
    assert [record.getMessage() for record in caplog.records] == [
        f"CAUTION: annotations {root}/annotations.json hold objects without an outline (2), which are left out: export "
        "polygons",
        f"CAUTION: picture {root}/images/x.jpg is not in {root}/annotations.json, so that it is left out (and 2 more "
        "like this: sd-aanet check lists them)",
    ]


def test_nothing_is_said_of_a_clean_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own(make_folder(tmp_path)).setup()
    assert not caplog.records


def test_images_in_both_splits_are_refused_where_they_would_be_trained_on(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    with (root / "val.txt").open("a") as file:
        file.write("train_000\ntrain_001\n")
    own(root).setup("test")
    with refused(DataError, "image 'train_000' is in train and in val: take it off one of them (and 1 more like this"):
        own(root).setup("fit")


def test_labels_of_the_same_names_are_told_apart(tmp_path: Path) -> None:
    """Folders of one's own have one name, often one class, and pictures that are called 000 and so on."""
    told = []
    for name in ("one", "two", "same"):
        root = make_folder(tmp_path / name, ("object",))
        if name == "two":
            mask = next(iter(sorted(root.glob("masks/*.png"))))
            label = np.array(Image.open(mask))
            label[0, 0] = 1 - label[0, 0]
            Image.fromarray(label).save(mask)
        source = {"_target_": "sd_aanet.data.sources.folder.Folder", "root": str(root)}
        told.append(EpisodeDataModule(source, select_on="none").labels())
    assert told[0] == told[2] != told[1]
