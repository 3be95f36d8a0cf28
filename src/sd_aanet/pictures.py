"""Pictures of masks, attention maps and episodes, as arrays and Pillow images.

Blue is what was given (supports, truth), orange what was predicted: two colours that all eyes tell apart (Okabe and
Ito, Color Universal Design).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sd_aanet.episode import IGNORE
from sd_aanet.images import Array8

Colour = tuple[int, int, int]
BLUE: Colour = (0, 114, 178)
ORANGE: Colour = (230, 159, 0)
_OTHERS: tuple[Colour, ...] = ((0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
_GREY: Colour = (160, 160, 160)

Captioned = tuple[Array8, str]
"""A picture, uint8 (H, W, 3), and what stands below it."""
_GAP = 10
_LINES = 2
_STRIP = 2**22
"""Pixels of a large picture that are drawn at once."""
_SUPPORTS = 3


@dataclass(frozen=True)
class EpisodeRow:
    """One episode of `episode_picture`. Masks are (H, W) of their picture's size: 1 = object, 255 = ignore.

    Attributes:
        title: stands above the row.
        supports: pictures, uint8 (H, W, 3), and their masks.
        query: uint8 (H, W, 3).
        query_mask: the truth.
        prediction: None where there is none.
        attention: float (H, W) in [0, 1]; None where the method has none.
    """

    title: str
    supports: Sequence[tuple[Array8, NDArray[np.integer]]]
    query: Array8
    query_mask: NDArray[np.integer]
    prediction: NDArray[np.integer] | None = None
    attention: NDArray[np.floating] | None = None


def overlay(image: Array8, mask: NDArray[np.integer], colour: Colour = ORANGE, drawn: Array8 | None = None) -> Array8:
    """A mask on its picture: the object tinted and outlined, ignored pixels greyed.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: (H, W), 1 = object, 255 = ignore, 0 = other.
        colour: of the object.
        drawn: where to draw, the image itself or a copy of it; None makes one.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: image and mask differ in size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} does not fit image {image.shape}")
    drawn = image.copy() if drawn is None else drawn
    width = max(1, round(min(mask.shape) / 200))
    rows = max(1, _STRIP // mask.shape[1])
    for top in range(0, len(mask), rows):  # what is made of whole large pictures fills the memory
        above = max(0, top - 2 * width)
        outside = (mask[above : top + rows + 2 * width] != 1).astype(np.uint8)
        strip, part = drawn[top : top + rows], mask[top : top + rows]
        for value, tint in ((IGNORE, _GREY), (1, colour)):
            table = (0.55 * np.arange(256)[:, None] + 0.45 * np.array(tint)).astype(np.uint8)
            np.copyto(strip, cv2.LUT(strip, table[None]), where=(part == value)[..., None])
        if outside.all():
            continue
        away = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[top - above :][: len(part)]
        # A light line around the coloured one: seen on a ground of any colour.
        for line, paint in ((2 * width, (255, 255, 255)), (width, colour)):
            strip[(away > 0) & (away <= line)] = paint
    return drawn


def colour_of(number: int) -> Colour:
    """Of the n-th thing that was found, from 1: orange, then others that all eyes tell apart, then anew."""
    colours = (ORANGE, *_OTHERS)
    return colours[(number - 1) % len(colours)]


def heat(values: NDArray[np.floating]) -> Array8:
    """Values in [0, 1] as places in `heat_colours`, uint8 of their shape."""
    places: Array8 = np.minimum(values * 256, 255).astype(np.uint8)
    return places


def heat_colours() -> Array8:
    """Black to yellow (matplotlib's inferno: equal steps look equal), uint8 (256, 3)."""
    # Only attention needs it, and its import takes longer than a small picture.
    from matplotlib import colormaps

    coloured: Array8 = colormaps["inferno"](np.arange(256), bytes=True)[:, :3]
    return coloured


def heatmap(values: NDArray[np.floating]) -> Array8:
    """Values in [0, 1], (H, W), as uint8 (H, W, 3), black to yellow."""
    coloured: Array8 = heat_colours()[heat(values)]
    return coloured


def grid(rows: Sequence[Sequence[Captioned | None]], titles: Sequence[str] = (), side: int = 240) -> Image.Image:
    """Pictures in rows and columns, a caption below each.

    Args:
        rows: of pictures of any sizes; None leaves a place free.
        titles: one a row, above it; none at all where empty.
        side: every picture is scaled to fit into a square of so many pixels.
    """
    font, bold = ImageFont.load_default(size=14), ImageFont.load_default(size=17)
    line, head = 18, 28 if titles else 0  # a little over what these fonts take
    scaled = [[None if cell is None else (fit(cell[0], side), _wrap(cell[1], side, font)) for cell in r] for r in rows]
    heights = [max((cell[0].height for cell in row if cell), default=0) for row in scaled]
    lines = [max((len(cell[1]) for cell in row if cell), default=0) for row in scaled]
    width = max(map(len, rows), default=0) * (side + _GAP) + _GAP
    height = sum(heights) + sum(lines) * line + len(rows) * (head + 2 * _GAP) + _GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = _GAP
    for number, row in enumerate(scaled):
        if titles:
            draw.text((_GAP, y), _wrap(titles[number], width - 2 * _GAP, bold, 1)[0], "black", bold)
            y += head
        for column, cell in enumerate(row):
            if cell is None:
                continue
            picture, caption = cell
            x = _GAP + column * (side + _GAP)
            canvas.paste(picture, (x, y))
            for i, text in enumerate(caption):
                draw.text((x, y + picture.height + 2 + i * line), text, (60, 60, 60), font)
        y += heights[number] + lines[number] * line + 2 * _GAP
    return canvas


def fit(image: Array8, side: int) -> Image.Image:
    """A picture scaled to fit into a square of so many pixels."""
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, lines: int = _LINES) -> list[str]:
    """At most `lines` lines no wider than `width` pixels, the last cut short with dots where there is more."""
    for characters in range(len(text) + 4, 3, -1):
        wrapped = textwrap.wrap(text, characters, max_lines=lines, placeholder="...")
        if all(font.getlength(line) <= width for line in wrapped):
            return wrapped or [""]
    return [""]


def episode_picture(rows: Sequence[EpisodeRow], side: int = 240) -> Image.Image:
    """Episodes, a row each: up to three supports, the query with its truth, with what was predicted, the attention."""
    shown = max((min(len(row.supports), _SUPPORTS) for row in rows), default=0)
    return grid([_cells(row, shown) for row in rows], [row.title for row in rows], side)


def _cells(row: EpisodeRow, columns: int) -> list[Captioned | None]:
    supports = row.supports[:_SUPPORTS]
    more = len(row.supports) - len(supports)
    names = [f"support {i}" if len(row.supports) > 1 else "support" for i in range(1, len(supports) + 1)]
    if more:
        names[-1] += f" (+{more} more)"
    cells: list[Captioned | None] = [
        (overlay(image, mask, BLUE), name) for (image, mask), name in zip(supports, names, strict=True)
    ]
    cells += [None] * (columns - len(cells))
    cells.append((overlay(row.query, row.query_mask, BLUE), "query, truth"))
    if row.prediction is not None:
        cells.append((overlay(row.query, row.prediction, ORANGE), "query, prediction"))
    if row.attention is not None:
        cells.append((heatmap(row.attention), "attention"))
    return cells
