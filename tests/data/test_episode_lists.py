"""Lists of episodes as files: written, read, refused, and the same on any machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_voc import Voc

from data.fake_folder import make_folder
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.episode_lists import digest, read_list, write_list
from sd_aanet.data.episodes import EpisodeSampler
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.folder import Folder
from sd_aanet.data.sources.pascal5i import Pascal5i
from sd_aanet.data.sources.shapes import Shapes
from sd_aanet.errors import ConfigError, DataError


def drawn(source: ImageSource, shot: int = 2, count: int = 8, least: int = 500, way: int = 1) -> list[Any]:
    pixels, novel = source.pixels(), source.fold_classes(0)
    named = {"names": source.classes, "order": "classes"}
    sampler = EpisodeSampler(pixels, novel, shot, 0, way=way, min_object_pixels=least, **named)
    return [sampler.draw(0, index) for index in range(count)]


def test_what_is_written_is_read(voc: Voc, tmp_path: Path) -> None:
    source = Pascal5i(voc(4), "val")
    specs = drawn(source)
    written = write_list(tmp_path / "list.json", source, specs, {"fold": 0})
    listed = read_list(tmp_path / "list.json", source)
    assert [listed.draw(3, index) for index in range(len(listed))] == specs
    assert (len(listed), listed.shot) == (8, 2)
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["digest"] == written == digest(source, specs)
    assert content["fold"] == 0
    assert content["episodes"][0] == {
        "class": "aeroplane",
        "query": source.key(specs[0].query),
        "supports": [source.key(i) for i in specs[0].supports[0]],
    }


def test_a_list_of_several_classes_at_once(voc: Voc, tmp_path: Path) -> None:
    source = Pascal5i(voc(4), "val")
    specs = drawn(source, way=3)
    written = write_list(tmp_path / "list.json", source, specs, {"way": 3})
    listed = read_list(tmp_path / "list.json", source)
    assert [listed.draw(0, index) for index in range(len(listed))] == specs
    assert (listed.way, listed.shot, listed.about["way"]) == (3, 2, 3)
    assert written == digest(source, specs)
    entry = json.loads((tmp_path / "list.json").read_text())["episodes"][0]
    assert entry["class"] == [source.classes[c - 1] for c in specs[0].classes]
    assert entry["supports"] == [[source.key(i) for i in images] for images in specs[0].supports]


def test_a_list_made_by_anybody(voc: Voc, tmp_path: Path) -> None:
    source = Pascal5i(voc(4), "val")
    entries = [{"class": 15, "query": "val_014", "supports": ["val_034"]}, {"class": "person", "query": "val_054",
               "supports": ["val_014"]}]  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps({"episodes": entries}))
    listed = read_list(tmp_path / "list.json", source)
    found = [(*listed.draw(0, i).classes, source.key(listed.draw(0, i).query)) for i in (0, 1)]
    assert found == [(15, "val_014"), (15, "val_054")]


def test_a_class_that_is_called_by_a_number_is_no_id(tmp_path: Path) -> None:
    source = Folder(make_folder(tmp_path / "own", classes=["0", "1", "2", "3"], images=6), "val")
    specs = drawn(source)
    write_list(tmp_path / "list.json", source, specs, {})
    listed = read_list(tmp_path / "list.json", source)
    assert [listed.draw(0, index) for index in range(len(listed))] == specs
    entry = {"query": "val_000", "supports": ["val_004"]}
    (tmp_path / "list.json").write_text(json.dumps({"episodes": [entry | {"class": "1"}, entry | {"class": 1}]}))
    listed = read_list(tmp_path / "list.json", source)
    assert [source.classes[listed.draw(0, index).classes[0] - 1] for index in range(2)] == ["1", "0"]


GOOD = {"class": "aeroplane", "query": "val_000", "supports": ["val_020", "val_040"]}
BAD = {
    "no JSON": ("{", "not readable JSON"),
    "lists without end": ("[" * 100_000, "not readable JSON"),
    "a name of several lines": ({"episodes": [GOOD | {"class": "uni\ncorn"}]}, "names the class 'uni corn'"),
    "no list": ({"episodes": []}, "has no 'episodes'"),
    "another thing": ([1, 2], "has no 'episodes'"),
    "no object": ({"episodes": [3]}, "episode 0 is no object with class, query, supports"),
    "no supports": ({"episodes": [GOOD | {"supports": "val_020"}]}, "episode 0 is no object"),
    "empty supports": ({"episodes": [GOOD | {"supports": []}]}, "episode 0 has no support"),
    "an unknown class": ({"episodes": [GOOD, GOOD | {"class": "unicorn"}]}, "episode 1 names the class 'unicorn'"),
    "an id that is a text": ({"episodes": [GOOD | {"class": "1"}]}, "episode 0 names the class '1'"),
    "an unknown id": ({"episodes": [GOOD | {"class": 21}]}, "episode 0 names the class '21'"),
    "no class": ({"episodes": [GOOD | {"class": True}]}, "episode 0 names the class 'True'"),
    "supports of no class": ({"episodes": [GOOD | {"class": ["aeroplane"]}]}, "a list of images for each"),
    "one class twice": (
        {"episodes": [GOOD | {"class": ["bird", "bird"], "supports": [["val_020"], ["val_040"]]}]},
        "episode 0 names one class twice",
    ),
    "more supports of one class": (
        {"episodes": [GOOD | {"class": ["bird", "boat"], "supports": [["val_020", "val_040"], ["val_060"]]}]},
        "more supports of one class than of another",
    ),
    "other ways": (
        {"episodes": [GOOD, GOOD | {"class": ["bird", "boat"], "supports": [["val_020"], ["val_040"]]}]},
        "1 has 2 classes of 1 supports and the first one 1 classes of 2",
    ),
    "an unknown image": ({"episodes": [GOOD | {"query": "train_000"}]}, "the image 'train_000', which the val images"),
    "the query as support": ({"episodes": [GOOD | {"query": "val_020"}]}, "one image twice"),
    "other shots": (
        {"episodes": [GOOD, GOOD | {"supports": ["val_020"]}]},
        "1 has 1 supports and the first one 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_lists_that_cannot_be_used(name: str, voc: Voc, tmp_path: Path) -> None:
    content, words = BAD[name]
    path = tmp_path / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as raised:
        read_list(path, Pascal5i(voc(4), "val"))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_list_that_is_not_there(voc: Voc, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: write one with sd-aanet episodes"):
        read_list(tmp_path / "list.json", Pascal5i(voc(4), "val"))


def test_a_list_that_cannot_be_written(voc: Voc, tmp_path: Path) -> None:
    source = Pascal5i(voc(4), "val")
    for out in (Path("/proc/x/y.json"), tmp_path):
        with pytest.raises(ConfigError, match=rf"^out='{out}' cannot be written \([^\n]*\): choose another file$"):
            write_list(out, source, drawn(source), {})


def test_lists_are_the_same_on_every_machine(voc: Voc) -> None:
    """Digests that were written down once; a change breaks the comparison with every number reported before."""
    photographs, shapes = Pascal5i(voc(4), "val"), Shapes("val", images=100, size=65)
    assert digest(photographs, drawn(photographs)) == RECORDED["voc"]
    assert digest(shapes, drawn(shapes, 1, 20, 100)) == RECORDED["shapes"]


RECORDED = {
    "voc": "627f44247ddb9642272b8d8d7a583b16ff6954257855a9b3bf901e95cab9e9af",
    "shapes": "0bdf41a53cd740bb1ee0a520ae22c9b611f5afe487ed90652706d9b69a2d7141",
}


def test_the_order_of_a_data_sets_own_list_is_irrelevant(voc: Voc) -> None:
    root = voc(4)
    source = Pascal5i(root, "val")
    before = digest(source, drawn(source))
    path = root / "ImageSets/Segmentation/val.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))
    turned = Pascal5i(root, "val")
    assert digest(turned, drawn(turned)) == before


def test_the_list_of_the_real_photographs(shared: Path) -> None:
    source = Pascal5i(shared / "data/voc924", "val")
    assert digest(source, drawn(source, 5, 1000, 2048)) == VOC924


VOC924 = "ff036a54e42c2b0fb5f42668c2f6c71c030cfeb65c5770c9db10fd7ac77e3547"


def test_a_data_module_takes_shot_and_length_from_the_file(voc: Voc, tmp_path: Path) -> None:
    root = voc(4)
    source = Pascal5i(root, "val")
    write_list(tmp_path / "list.json", source, drawn(source), {})
    target = {"_target_": "sd_aanet.data.sources.pascal5i.Pascal5i", "root": str(root)}
    data = EpisodeDataModule(target, size=33, select_on="none", episodes_file=str(tmp_path / "list.json"))
    data.setup("test")
    batches = list(data.test_dataloader())
    assert sum(len(batch.query) for batch in batches) == 8
    assert all(batch.support.shape[1:3] == (1, 2) for batch in batches)
    assert data.test_specs(0) == data.test_specs(1) == drawn(source), "the file's, whatever the seed"


def test_supports_that_do_not_show_their_class(voc: Voc, tmp_path: Path) -> None:
    """An IoU of 0 that is the list's work would be taken for the network's."""
    root = voc(4)
    source = Pascal5i(root, "val")
    own, other = (source.key(int(images[0])) for images in (source.pixels()[:, c].nonzero()[0] for c in (0, 1)))
    entry = {"class": "aeroplane", "query": own, "supports": [other]}
    (tmp_path / "list.json").write_text(json.dumps({"episodes": [entry]}))
    config = {"_target_": "sd_aanet.data.sources.pascal5i.Pascal5i", "root": str(root)}
    data = EpisodeDataModule(config, episodes_file=str(tmp_path / "list.json"))
    with pytest.raises(DataError, match=rf"episode 0 has the support '{other}', which shows nothing of 'aeroplane'"):
        data.setup("test")
