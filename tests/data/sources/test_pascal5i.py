import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_voc import Voc
from PIL import Image

from examples import refused
from sd_aanet.data.sources.pascal5i import CLASSES, Pascal5i
from sd_aanet.errors import ConfigError, DataError
from sd_aanet.images import read_image, read_label

# Images of each class in both lists, as the folder's own README counts them.
VOC924_IMAGES = (67, 56, 77, 56, 55, 50, 85, 77, 77, 35, 26, 79, 43, 58, 176, 57, 39, 51, 34, 51)


def test_an_id_that_is_listed_twice_is_one_image(voc: Voc) -> None:
    root = voc(1)
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("val_000\n/JPEGImages/val_003.jpg /SegmentationClassAug/val_003.png\n")
    source = Pascal5i(root, "val")
    assert [source.key(i) for i in range(len(source))] == [f"val_{number:03d}" for number in range(20)]


@pytest.mark.parametrize("masks", ["SegmentationClassAug", "SegmentationClass"])
@pytest.mark.parametrize("pairs", [False, True])
def test_reads_vocs_layout(voc: Voc, masks: str, pairs: bool) -> None:
    source = Pascal5i(voc(1, masks, pairs), "val")
    assert len(source) == 20
    assert source.key(3) == "val_003"
    image, mask = source.image(3), source.mask(3, 4)
    assert image.shape == (72, 96, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 1, 255]
    assert (mask == 1).sum() == 47 * 50
    assert (mask == 255).sum() == 50
    assert image[mask == 1][:, 0].min() > 150  # red, and so no longer the order of OpenCV
    pixels = source.pixels()
    assert pixels.shape == (20, 20)
    assert pixels.dtype == np.int64
    assert pixels[3, 3] == 47 * 50
    assert pixels[3, 8] == 72
    assert pixels[3].sum() == 47 * 50 + 72


def test_folds_divide_the_classes(voc: Voc) -> None:
    source = Pascal5i(voc(1), "train")
    folds = [source.fold_classes(fold) for fold in range(source.folds)]
    assert folds[0] == (1, 2, 3, 4, 5)
    assert folds[3] == (16, 17, 18, 19, 20)
    assert sorted(c for fold in folds for c in fold) == list(range(1, 21))
    assert Pascal5i(voc(1), "train", folds=2).fold_classes(1) == tuple(range(11, 21))
    with pytest.raises(ConfigError, match="folds=3, expected a divisor of the 20 classes"):
        Pascal5i(voc(1), "train", folds=3)


def test_real_pictures(shared: Path) -> None:
    root = shared / "data" / "voc924"
    train, val = Pascal5i(root, "train"), Pascal5i(root, "val")
    assert (len(train), len(val)) == (471, 453)
    assert not {train.key(i) for i in range(471)} & {val.key(i) for i in range(453)}
    shows = np.concatenate([train.pixels(), val.pixels()]) > 0
    assert tuple(shows.sum(axis=0)) == VOC924_IMAGES
    assert [CLASSES[c - 1] for c in val.fold_classes(1)] == ["bus", "car", "cat", "chair", "cow"]
    assert val.image(0).shape[:2] == val.mask(0, 1).shape


def test_missing_folders_and_lists(voc: Voc, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset root .*nowhere is not a folder.*set dataset\.root"):
        Pascal5i(tmp_path / "nowhere", "val")
    with pytest.raises(DataError, match=r"JPEGImages is missing.*set dataset\.root"):
        Pascal5i(tmp_path, "val")
    root = voc(1)
    names = root / "ImageSets/Segmentation/val.txt"
    names.write_text("a.jpg b.png\n")
    with pytest.raises(DataError, match=r"pairs files of different names in 'a\.jpg b\.png'"):
        Pascal5i(root, "val")
    names.write_text("\n \n")
    with pytest.raises(
        DataError, match=r"val\.txt is empty, expected one image id per line: fill it, or check dataset\.root"
    ):
        Pascal5i(root, "val")
    names.unlink()
    with pytest.raises(DataError, match=r"image list .*val\.txt does not exist"):
        Pascal5i(root, "val")


def test_bad_masks(voc: Voc) -> None:
    root = voc(1)
    source = Pascal5i(root, "val")
    path = root / "SegmentationClassAug/val_002.png"
    Image.new("P", (60, 50)).save(path)
    for read in (lambda: source.mask(2, 1), source.pixels):
        with pytest.raises(DataError, match=r"val_002\.png is 60x50 but its image .*val_002\.jpg is 96x72"):
            read()
    Image.new("RGB", (96, 72)).save(path)
    with pytest.raises(DataError, match=r"val_002\.png holds colours \(mode RGB\), expected one class index"):
        source.mask(2, 1)
    Image.new("L", (96, 72), 38).save(path)
    with pytest.raises(DataError, match=r"val_002\.png holds the index 38, expected 0 to 20 or 255"):
        source.pixels()
    path.unlink()
    with pytest.raises(DataError, match=r"mask .*val_002\.png does not exist"):
        source.pixels()


def test_bad_images(voc: Voc) -> None:
    root = voc(1)
    source = Pascal5i(root, "val")
    path = root / "JPEGImages/val_002.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"image .*val_002\.jpg cannot be read \(.*\), expected a whole image"):
        source.image(2)
    path.write_bytes(b"no picture")
    for read in (lambda: source.image(2), source.pixels):
        with pytest.raises(DataError, match=r"image .*val_002\.jpg cannot be read"):
            read()
    path.unlink()
    for read in (lambda: source.image(2), source.pixels):
        with pytest.raises(DataError, match=r"image .*val_002\.jpg does not exist"):
            read()


def test_reading_gives_rgb_and_indices_and_messages_of_one_line(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "grey.png")
    assert np.array_equal(read_label(tmp_path / "grey.png"), label)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(label[..., None], 3, axis=-1))
    whole = (tmp_path / "grey.png").read_bytes()
    for share in range(10):
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) * share // 10])
        with pytest.raises(DataError, match=r"^[^\n]*cut\.png cannot be read[^\n]*$"):
            read_label(tmp_path / "cut.png")
    with pytest.raises(DataError, match=r"cannot be read"):
        read_image(tmp_path)


def test_no_progress_bar_for_few_files(voc: Voc, capsys: pytest.CaptureFixture[str]) -> None:
    Pascal5i(voc(1), "train").pixels()
    assert capsys.readouterr().err == ""


def test_the_reader_needs_no_heavy_import() -> None:
    code = "import sys, sd_aanet.data.sources.pascal5i; sys.exit('albumentations' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_no_file_can_have_is_told_in_one_line(voc: Voc) -> None:
    root = voc(1)
    with (root / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("a\0b\n")
    source = Pascal5i(root, "val")
    with refused(DataError, "cannot be read (embedded null byte)"):
        source.pixels()
