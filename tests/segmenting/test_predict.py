"""`sd-aanet predict`: what it writes, what it leaves alone, and what it refuses before it writes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image, ImageFile

from examples import refused
from sd_aanet import cli, images, pictures
from sd_aanet.checkpoint import Trained, save_trained
from sd_aanet.comparing import Comparer
from sd_aanet.data import transforms
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import CheckpointError, ConfigError, DataError, SDAANetError
from sd_aanet.models import build_method
from sd_aanet.segmenting.predict import _pair, run
from sd_aanet.segmenting.segmenter import THING, FewShotSegmenter


def save_tiny(path: Path, **network: object) -> Path:
    torch.manual_seed(0)
    settings = {"method": "sd_aanet", "backbone": {"name": "resnet18", "high": "stage3"}, "channels": 16} | network
    method = build_method(**settings).eval()
    # An untrained network finds all or nothing; with its bias in the middle, something.
    noise, comparer = torch.randn(2, 3, 65, 65), Comparer(method)
    with torch.no_grad():
        comparer.add_supports(["noise"], noise[:1], torch.ones(1, 65, 65, dtype=torch.int64))
        logits = comparer.compare(comparer.encode_queries(noise[1:]), [(0, [["noise"]])], (65, 65)).logits
        method.get_parameter("decoder.classifier.3.bias")[0] += (logits[:, 1] - logits[:, 0]).median()
    save_trained(Trained(method, settings, Preprocess(65, "keep_aspect"), classes=20), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("predict") / "tiny.ckpt")


def save_picture(path: Path, height: int = 40, width: int = 60, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def save_mask(path: Path, height: int = 40, width: int = 60, value: int = 255) -> Path:
    drawn = np.zeros((height, width), np.uint8)
    drawn[5:30, 10:50] = value
    Image.fromarray(drawn).save(path)
    return path


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings that work: one support, one query."""
    image, mask = save_picture(tmp_path / "in/cat.jpg"), save_mask(tmp_path / "in/cat_drawn.png")
    query = save_picture(tmp_path / "in/dog.jpg", 50, 30, seed=1)
    return {
        "checkpoint": str(checkpoint),
        "support": [f"{image}:{mask}"],
        "query": [str(query)],
        "out": str(tmp_path / "out"),
        "class_id": None,
        "device": "cpu",
    }


def written(out: str) -> set[str]:
    return {path.name for path in Path(out).iterdir()}


def masks(out: str) -> list[str]:
    """Of which queries there are masks."""
    return sorted(name.removesuffix("_mask.png") for name in written(out) if name.endswith("_mask.png"))


def test_it_writes_what_the_segmenter_finds(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config) == Path(config["out"])
    assert written(config["out"]) == {"dog_mask.png", "dog_overlay.png", "dog_attention.png", "supports.png"}
    segmenter = FewShotSegmenter.from_checkpoint(config["checkpoint"], "cpu")
    segmenter.remember([tuple(config["support"][0].split(":"))])
    with Image.open(f"{config['out']}/dog_mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), segmenter.segment(config["query"][0]).mask)
        assert set(np.unique(mask)) == {0, 1}
    for name in ("dog_overlay.png", "dog_attention.png"):
        with Image.open(f"{config['out']}/{name}") as picture:
            assert picture.size == (30, 50)
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert config["out"] in captured.out
    assert captured.err == ""  # a bar for one picture would be noise


def test_masks_can_be_given_back_as_supports(config: dict[str, Any]) -> None:
    run(config)
    found = Path(config["out"]) / "dog_mask.png"
    with Image.open(found) as mask:
        assert mask.getpalette()[:6] == [0, 0, 0, 230, 159, 0]
    again = config | {"support": [f"{config['query'][0]}:{found}"], "out": f"{config['out']}2"}
    assert "dog_mask.png" in written(str(run(again)))


def test_a_network_without_maps_writes_no_attention(config: dict[str, Any], tmp_path: Path) -> None:
    config["checkpoint"] = str(save_tiny(tmp_path / "plain.ckpt", saam=False, prior=False))
    run(config)
    assert written(config["out"]) == {"dog_mask.png", "dog_overlay.png", "supports.png"}
    Path(config["out"], "dog_attention.png").touch()  # of another run, with another checkpoint
    run(config)
    assert written(config["out"]) == {"dog_mask.png", "dog_overlay.png", "supports.png"}
    config["checkpoint"] = str(save_tiny(tmp_path / "prior.ckpt", saam=False))
    assert "dog_attention.png" in written(str(run(config | {"out": f"{config['out']}2"}))), "the prior"


def test_several_queries_show_their_progress(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["query"] *= 3
    run(config)
    assert {"dog_mask.png", "dog_2_mask.png", "dog_3_mask.png"} < written(config["out"])
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["tf32", "bf16-mixed"])
def test_other_precisions(config: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's own, here again after the test
    run(config | {"precision": precision})
    assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
    assert "dog_mask.png" in written(config["out"])
    run(config)
    assert torch.backends.cudnn.allow_tf32 is False


def test_queries_are_decoded_once_and_one_after_the_other(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", lambda file: (decoded.append(Path(file.filename).name), decode(file))[1]
    )
    cut = tmp_path / "in/cut.jpg"
    cut.write_bytes(save_picture(cut, 400, 600).read_bytes()[:-500])  # its header is whole
    config["query"] += [str(cut)]
    with pytest.raises(DataError, match=r"^image .*cut\.jpg cannot be read \(.*truncated.*: replace it or"):
        run(config)
    assert [name for name in decoded if not name.startswith("cat")] == ["dog.jpg", "cut.jpg"]
    assert "dog_mask.png" in written(config["out"])


def test_a_single_value_needs_no_list(config: dict[str, Any]) -> None:
    config |= {"query": config["query"][0], "support": config["support"][0]}
    run(config)
    assert "dog_mask.png" in written(config["out"])


def test_folders_give_their_pictures_but_not_our_results(config: dict[str, Any], tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "a_mask.png", "a_overlay.png", "a_attention.png", "supports.png", ".c.1.png"):
        save_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "sub.png").mkdir()
    run(config | {"query": str(tmp_path)})
    assert masks(config["out"]) == ["a", "b"]
    run(config | {"query": str(tmp_path / "a_mask.png"), "out": f"{config['out']}2"})
    assert masks(f"{config['out']}2") == ["a_mask"]


def test_photographs_that_are_called_as_results_are_told(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.jpg", "b_mask.png", "b_2_overlay.png"):
        save_picture(tmp_path / name)
    run(config | {"query": str(tmp_path)})
    assert caplog.messages == []
    save_picture(tmp_path / "gas_mask.png")
    run(config | {"query": str(tmp_path)})
    (line,) = caplog.messages
    assert line.startswith("CAUTION: 1 pictures of ")
    assert "left out, such as gas_mask.png" in line


def test_names_stay_apart(config: dict[str, Any], tmp_path: Path) -> None:
    """Case aside, which some file systems do not keep."""
    given = enumerate(["a", "a", "b", "a_2", "A"])
    run(config | {"query": [str(save_picture(tmp_path / f"{number}/{name}.png")) for number, name in given]})
    assert masks(config["out"]) == sorted(["a", "a_2", "b", "a_2_2", "A_3"])


def test_paths_may_hold_colons(config: dict[str, Any], tmp_path: Path) -> None:
    image = save_picture(tmp_path / "at 12:30.png")
    config["support"] = [f"{image}:{config['support'][0].rsplit(':', 1)[1]}"]
    run(config)
    assert "supports.png" in written(config["out"])


def test_class_id_chooses_among_classes(config: dict[str, Any]) -> None:
    mask = config["support"][0].rsplit(":", 1)[1]
    drawn = np.zeros((40, 60), np.uint8)
    drawn[5:30, :30], drawn[5:30, 30:] = 3, 7
    Image.fromarray(drawn).save(mask)
    with pytest.raises(DataError, match=r"2 classes \(3, 7\)"):
        run(config)
    run(config | {"class_id": 7})


def test_a_large_query_is_segmented_in_strips(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same files, and within the pixels that may be read."""
    run(config)
    for module in (images, pictures, transforms):
        monkeypatch.setattr(module, "_STRIP", 70)
    run(config | {"out": f"{config['out']}2"})
    for name in written(config["out"]):
        with Image.open(f"{config['out']}/{name}") as one, Image.open(f"{config['out']}2/{name}") as other:
            assert np.abs(np.array(one.convert("RGB"), int) - np.array(other.convert("RGB"), int)).max() <= 1, name
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1400)
    with pytest.raises(DataError, match=r"cat\.jpg cannot be read .*2400 pixels.* at most 1400 .*SD_AANET_MAX_PIXELS"):
        run(config | {"out": f"{config['out']}3", "query": config["support"][0].split(":")[0]})
    assert not Path(f"{config['out']}3").exists()


def test_a_query_of_16_bits_is_that_of_8(config: dict[str, Any], tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    run(config | {"query": [str(tmp_path / "a.png"), str(tmp_path / "b.png")]})
    with Image.open(f"{config['out']}/a_mask.png") as one, Image.open(f"{config['out']}/b_mask.png") as other:
        np.testing.assert_array_equal(np.array(one), np.array(other))


# What is refused


def bad_input(name: str, config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], type[SDAANetError], str]:
    """Settings with one mistake, and the error that they make."""
    image, mask = config["support"][0].rsplit(":", 1)
    (folder / "empty").mkdir()
    (folder / "bad.jpg").write_bytes(Path(image).read_bytes()[:300])
    (folder / "half.ckpt").write_bytes(Path(config["checkpoint"]).read_bytes()[:5000])
    torch.save({"weight": torch.zeros(3)}, folder / "other.ckpt")
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    save_mask(folder / "small.png", 20, 30, value=9)
    save_mask(folder / "void.png", value=0)
    return {
        "no support": ({"support": []}, ConfigError, "support is empty"),
        "no query": ({"query": None}, ConfigError, "query is empty"),
        "no checkpoint": ({"checkpoint": []}, ConfigError, "checkpoint is empty"),
        "no pair": ({"support": [image]}, ConfigError, "is not a pair"),
        "half a pair": ({"support": [f"{image}:"]}, ConfigError, "is not a pair"),
        "no such mask": ({"support": [f"{image}:{folder}/none.png"]}, DataError, "none.png does not exist"),
        "a mask of another size": ({"support": [f"{image}:{folder}/small.png"]}, DataError, "30x20"),
        "a mask of nothing": ({"support": [f"{image}:{folder}/void.png"]}, DataError, "no foreground"),
        "a colour mask": ({"support": [f"{image}:{folder}/red.png"]}, DataError, "holds colours"),
        "a damaged support": ({"support": [f"{folder}/bad.jpg:{mask}"]}, DataError, "bad.jpg cannot be read"),
        "a damaged query": ({"query": [image, f"{folder}/bad.jpg"]}, DataError, "bad.jpg cannot be read"),
        "no such query": ({"query": [f"{folder}/none.jpg"]}, DataError, "none.jpg does not exist"),
        "an empty folder": ({"query": f"{folder}/empty"}, DataError, "empty' holds no picture"),
        "a class of no kind": ({"class_id": "cat"}, ConfigError, "class_id='cat'"),
        "a class that is not there": ({"class_id": 4}, DataError, "class_id=4"),
        "a truncated checkpoint": ({"checkpoint": f"{folder}/half.ckpt"}, CheckpointError, "truncated"),
        "another checkpoint": ({"checkpoint": f"{folder}/other.ckpt"}, CheckpointError, "not one of sd-aanet"),
        "no such checkpoint": ({"checkpoint": f"{folder}/none.ckpt"}, CheckpointError, "does not exist"),
        "no such device": ({"device": "abacus"}, ConfigError, "device=abacus"),
        "a file as out": ({"out": image}, ConfigError, "is a file"),
    }[name]


@pytest.mark.parametrize(
    "mistake",
    [
        "no support",
        "no query",
        "no checkpoint",
        "no pair",
        "half a pair",
        "no such mask",
        "a mask of another size",
        "a mask of nothing",
        "a colour mask",
        "a damaged support",
        "a damaged query",
        "no such query",
        "an empty folder",
        "a class of no kind",
        "a class that is not there",
        "a truncated checkpoint",
        "another checkpoint",
        "no such checkpoint",
        "no such device",
        "a file as out",
    ],
)
def test_mistakes_are_told_before_anything_is_written(mistake: str, config: dict[str, Any], tmp_path: Path) -> None:
    change, error, words = bad_input(mistake, config, tmp_path)
    with pytest.raises(error) as raised:
        run(config | change)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path(config["out"]).exists()


def test_inputs_are_never_overwritten(config: dict[str, Any], tmp_path: Path) -> None:
    image = config["support"][0].rsplit(":", 1)[0]
    mask = save_mask(tmp_path / "in/cat_mask.png")
    before = mask.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite the input"):
        run(config | {"support": [f"{image}:{mask}"], "query": image, "out": str(tmp_path / "in")})
    assert mask.read_bytes() == before


def test_a_folder_in_which_another_process_works_is_refused(config: dict[str, Any]) -> None:
    out = Path(config["out"])
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ConfigError, match="is in use, another process works there"):
        run(config)
    left = out / ".dog_mask.png.999999999.png"  # of a killed process
    left.touch()
    run(config)
    assert not left.exists()


def test_an_out_that_cannot_be_made_is_one_line(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        run(config | {"out": str(tmp_path / "in/dog.jpg/out")})


def test_the_command(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [])
    given = {key: value for key, value in config.items() if key not in ("support", "query", "class_id")}
    arguments = ["predict", f"support=[{config['support'][0]}]", *(f"{key}={value}" for key, value in given.items())]
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, "query=[none.jpg]"])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "sd-aanet: image none.jpg does not exist: check the path, or the list that names it"
    ]
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, f"query=[{config['query'][0]}]", "precision=half"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(
        "sd-aanet: precision=half, expected one of auto, 32-true, tf32, bf16-mixed"
    )
    assert not Path(config["out"]).exists()
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, f"query=[{config['query'][0]}]"])
    assert left.value.code == 0
    assert "dog_mask.png" in written(config["out"])


def test_without_a_checkpoint(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that needs no training finds again, in a picture of its own, what a person marked."""
    monkeypatch.setattr("sys.argv", [])
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 40, (120, 160, 3), dtype=np.uint8)
    picture[30:90, 40:100] += np.array([180, 60, 0], np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 40:100] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[:, ::-1]).save(tmp_path / "b.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = [f"support=[{tmp_path}/a.png:{tmp_path}/mask.png]", f"query={tmp_path}/b.png", f"out={config['out']}"]
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", "checkpoint=null", "model=sd_aanet", "size=129", *given])
    assert left.value.code == 2
    assert "model=sd_aanet has to be trained: give checkpoint=" in capsys.readouterr().err
    assert not Path(config["out"]).exists()
    for model in ("probe", "prototype"):
        with pytest.raises(SystemExit) as left:
            cli.main(["predict", "checkpoint=null", f"model={model}", "size=225", *given])
        assert left.value.code == 0
        found = np.array(Image.open(Path(config["out"]) / "b_mask.png")) == 1
        truth = mask[:, ::-1] == 255
        assert (found & truth).sum() / (found | truth).sum() > 0.6, model


@pytest.mark.parametrize(
    ("entry", "image", "mask"),
    [
        ("a.png:b.png", "a.png", "b.png"),
        ("a:b.png:c.png", "a:b.png", "c.png"),
        (r"C:\data\cat.jpg:C:\data\mask.png", r"C:\data\cat.jpg", r"C:\data\mask.png"),
        (r"cat.jpg:D:\mask.png", "cat.jpg", r"D:\mask.png"),
        ("C:/cat.jpg:mask.png", "C:/cat.jpg", "mask.png"),
        ("cat.jpg:/data/mask.png", "cat.jpg", "/data/mask.png"),
        ("~/cat.jpg:~/mask.png", str(Path.home() / "cat.jpg"), str(Path.home() / "mask.png")),
        ({"image": "a.png", "mask": "b:c.png"}, "a.png", "b:c.png"),
    ],
)
def test_pairs_with_drives_and_colons(entry: Any, image: str, mask: str) -> None:
    assert _pair(entry) == (THING, Path(image), Path(mask))


@pytest.mark.parametrize("entry", ["a.png", "a.png:", ":a.png", r"C:\a.png", "", {"image": "a", "mask": ""}])
def test_what_is_no_pair(entry: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a pair: .* or as 'support=\[\{image"):
        _pair(entry)


def test_several_things_by_box_and_mask(config: dict[str, Any]) -> None:
    image, mask = config["support"][0].split(":")
    boxed = {"name": "dog", "image": image, "box": [5, 5, 30, 40]}
    run(config | {"support": [{"name": "cat", "image": image, "mask": mask}, boxed]})
    with Image.open(f"{config['out']}/dog_mask.png") as found:
        assert set(np.unique(found)) <= {0, 1, 2}
        assert found.getpalette()[3:9] == [230, 159, 0, 0, 158, 115]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image": "a.png", "box": [1, 2, 3]}, ("the box of 'a.png'", "[x0, y0, x1, y1]")),
        ({"image": "a.png", "box": "1,2,3,4"}, ("the box of 'a.png'", "[x0, y0, x1, y1]")),
    ],
)
def test_boxes_that_are_none(entry: Any, words: tuple[str, ...]) -> None:
    with refused(ConfigError, *words):
        _pair(entry)
