"""`sd-aanet check`: reads every picture and every label of a data set; what is in it, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sd_aanet.data.check.defects import find_defects, read_split
from sd_aanet.data.check.report import summary, table, write_samples, write_summary
from sd_aanet.data.datamodule import EpisodeDataModule
from sd_aanet.data.sources.base import ImageSource
from sd_aanet.data.sources.refusal import collecting
from sd_aanet.files import results_in


def run(config: dict[str, Any]) -> int:
    """Check a data set: print what was found, write check.json and samples.png into `out`.

    Args:
        config: conf/check.yaml as plain values.

    Returns:
        The exit code: 1 where there are errors, else 0.

    Raises:
        SDAANetError: the data set cannot be opened at all, or `out` cannot be written.
    """
    shot, least, out = config["shot"], max(config["min_object_pixels"], 1), Path(config["out"])
    with results_in(out):
        with collecting() as refused:
            sources = _sources(config["dataset"]["source"])
        splits = [read_split(source) for source in sources]
        found = summary(splits, find_defects(splits, refused, shot, least), shot, least)
        write_summary(found, out)
        written = [out / "check.json", *write_samples(splits, least, out)]
    print(table(found))
    print("\nwritten: " + ", ".join(map(str, written)))
    return 1 if found["errors"] else 0


def _sources(config: dict[str, Any]) -> list[ImageSource]:
    """Both splits; "val" alone where every class is novel, so that nothing is ever trained."""
    data = EpisodeDataModule(dict(config))
    val = data.source("val")
    novel = {len(val.fold_classes(fold)) for fold in range(val.folds)}
    if novel == {len(val.classes)}:
        return [val]
    data.check_leaks()
    return [data.source("train"), val]
