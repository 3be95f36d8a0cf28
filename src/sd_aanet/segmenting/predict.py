"""`sd-aanet predict`: masks, overlays and attention maps of a user's own pictures, as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sd_aanet.images import check_image
from sd_aanet.pictures import heat, heat_colours
from sd_aanet.segmenting.given import (
    counted,
    folder_of_results,
    lists,
    refuse_overwriting,
    remember,
    save,
    segmenter_of,
    support_of,
    unique,
)
from sd_aanet.segmenting.queries import OURS, SUPPORTS, pictures_of
from sd_aanet.segmenting.result import Segmentation


def run(config: Mapping[str, Any]) -> Path:
    """Segment every query from the supports and write, at each query's own size, what was found.

    For a query `dog.jpg`: `dog_mask.png` (indices 0 and 1, with a palette), `dog_overlay.png` and, where the method has
    a map to look at (see `Segmentation.attention`), `dog_attention.png`. `supports.png` shows the supports as they were
    understood. Before the first file is written all settings and supports are checked, and of the queries what shows
    without decoding them; each is decoded once, in its turn.

    Args:
        config: `checkpoint`, or where that is None `backbone`, `model`, `size`, `resize` and `recipe`; `support`, a
            list of "image:mask" or of {"image": ..., "mask": ...}; `query`, a list of files and folders; `out`, a
            folder; `class_id`, the object's value in the masks, or None; `device`; `precision`.

    Returns:
        The folder that holds the results.

    Raises:
        ConfigError: a setting that is missing or cannot work, or results that would overwrite an input.
        DataError: pictures or masks that are missing, unreadable or do not fit.
        CheckpointError: see `FewShotSegmenter.from_checkpoint`.
    """
    supports, given = lists(config, "support", "query")
    pairs = [support_of(entry) for entry in supports]
    queries = pictures_of(given)
    out = Path(str(config.get("out") or "predictions"))
    names = unique([query.stem for query in queries])
    results = [f"{name}{ending}" for name in names for ending in OURS]
    refuse_overwriting(out, [*results, SUPPORTS], queries, pairs)
    for query in queries:
        check_image(query)
    segmenter = segmenter_of(config)
    understood = remember(segmenter, pairs, config.get("class_id"))

    with folder_of_results(out):
        save(understood, out / SUPPORTS)
        named = zip(queries, names, strict=True)
        for query, name in tqdm(named, "predict", total=len(queries), unit="image", disable=len(queries) == 1):
            segmentation = segmenter.segment(query)
            for ending, picture in _pictures(segmentation):
                save(picture, out / f"{name}{ending}")
                del picture  # before the next one is drawn: of a large query each takes much memory
            if segmentation.looked_at is None:  # nor that of another run
                (out / f"{name}{OURS[2]}").unlink(missing_ok=True)
    endings = ", ".join(f"*{ending}" for ending in (OURS if segmentation.looked_at is not None else OURS[:2]))
    print(
        f"{counted(len(queries), 'query', 'queries')} segmented from {counted(len(pairs), 'support', 'supports')}: "
        f"{out}/ holds {endings}; {SUPPORTS} shows how the supports were understood"
    )
    return out


def _pictures(found: Segmentation) -> Iterator[tuple[str, Image.Image]]:
    """The results of one query, by the end of their names; its picture is drawn over."""
    yield OURS[0], found.drawn_mask()
    yield OURS[1], found.overlay(found.image)
    if found.looked_at is not None:
        values = np.empty(found.labels.shape, np.uint8)
        for rows, strip in found.looked_at.strips():
            values[rows] = heat(strip)
        attention = Image.fromarray(values, mode="P")
        attention.putpalette(heat_colours().ravel().tolist())
        yield OURS[2], attention
