"""Pictures: the colours stand where the masks are, nothing overlaps, and no size is too odd to draw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from sd_aanet import pictures
from sd_aanet.pictures import BLUE, ORANGE, EpisodeRow, _wrap, episode_picture, grid, heatmap, overlay


def image(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def mask(height: int = 60, width: int = 90) -> np.ndarray:
    drawn = np.zeros((height, width), np.uint8)
    drawn[height // 4 : height // 2, width // 4 : width // 2] = 1
    return drawn


def test_an_overlay_changes_the_object_its_edge_and_what_is_ignored() -> None:
    ground, drawn = np.full((60, 90, 3), 20, np.uint8), mask()
    drawn[-5:, -5:] = 255
    shown = overlay(ground, drawn, ORANGE)
    assert shown.dtype == np.uint8
    assert (ground == 20).all()
    tinted = shown[drawn == 1].astype(int)
    assert (tinted == tinted[0]).all()
    assert tinted[0].tolist() == [int(0.55 * 20 + 0.45 * c) for c in ORANGE]
    assert shown[14, 30].tolist() == list(ORANGE)  # the row above the object
    assert shown[13, 30].tolist() == [255, 255, 255]
    assert len(set(shown[-1, -1].tolist())) == 1
    assert (shown[40:50, 10:80] == 20).all()


def test_an_overlay_is_the_same_in_strips_and_over_the_picture_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ground, drawn = image(700, 90), np.random.default_rng(1).choice([0, 0, 0, 1, 255], (70, 9)).astype(np.uint8)
    drawn = np.kron(drawn, np.ones((10, 10), np.uint8))
    expected = overlay(ground, drawn)
    monkeypatch.setattr(pictures, "_STRIP", 300)
    np.testing.assert_array_equal(overlay(ground, drawn), expected)
    assert overlay(ground, drawn, drawn=ground) is ground
    np.testing.assert_array_equal(ground, expected)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (400, 300)])
def test_masks_of_one_value_and_odd_sizes(value: int, size: tuple[int, int]) -> None:
    assert overlay(image(*size), np.full(size, value), BLUE).shape == (*size, 3)


def test_mask_and_picture_must_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        overlay(image(60, 90), mask(90, 60))


def test_a_heatmap_grows_brighter() -> None:
    shown = heatmap(np.linspace(0, 1, 256, dtype=np.float32)[None])
    assert shown.shape == (1, 256, 3)
    assert shown.dtype == np.uint8
    light = shown[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).mean() > 0.95
    assert light[0] < 5
    assert light[-1] > 230


def test_a_grid_has_room_for_all() -> None:
    rows = [[(image(60, 90), "a"), None, (image(90, 60), "b")], [(image(20, 400), "c " * 200)]]
    drawn = grid(rows, ["first", "x" * 500], side=120)
    assert drawn.width == 3 * 130 + 10
    bare = grid(rows, side=120)
    assert bare.height < drawn.height
    pixels = np.array(bare)
    assert (pixels[:, :10] == 255).all()  # the margins are free
    assert (pixels[:, -10:] == 255).all()
    assert (pixels[:, 140:260] == 255).all()  # and so is the place left out, caption row and all


def test_text_is_wrapped_and_cut() -> None:
    font = ImageFont.load_default(size=14)
    for text in ("", "word", "many words " * 20, "unbroken" * 40):
        lines = _wrap(text, 200, font)
        assert 1 <= len(lines) <= 2
        assert all(font.getlength(line) <= 200 for line in lines)
        assert lines[-1].endswith("...") == (len(text) > 100)


def row(shot: int, **known: object) -> EpisodeRow:
    return EpisodeRow("title", [(image(), mask())] * shot, image(50, 80), mask(50, 80), **known)  # type: ignore[arg-type]


def test_an_episode_shows_three_supports_at_most() -> None:
    full = {"prediction": mask(50, 80), "attention": np.random.rand(50, 80)}
    widths = [episode_picture([row(shot, **full)]).width for shot in (1, 2, 3, 5)]
    assert widths == [4 * 250 + 10, 5 * 250 + 10, 6 * 250 + 10, 6 * 250 + 10]
    assert episode_picture([row(1)]).width == 2 * 250 + 10
    assert episode_picture([row(5, **full), row(1)]).width == widths[-1]


def test_the_same_episode_gives_the_same_picture() -> None:
    rows = [row(2, prediction=mask(50, 80), attention=np.ones((50, 80)))]
    assert episode_picture(rows).tobytes() == episode_picture(rows).tobytes()
