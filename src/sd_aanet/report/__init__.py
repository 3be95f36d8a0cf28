"""`sd-aanet report`: the table, the plots and the page of all results in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from sd_aanet.arguments import Parser
from sd_aanet.files import results_in, written_whole
from sd_aanet.report.collect import read_failures, read_runs
from sd_aanet.report.curves import learning_curves, loss_curves
from sd_aanet.report.figures import by_size, class_bars, prototypes
from sd_aanet.report.page import page
from sd_aanet.report.rows import Row, build_rows
from sd_aanet.report.style import Plot, style
from sd_aanet.report.table import WRITERS, as_text, build_table

PLOTS: tuple[tuple[Callable[[Sequence[Row]], Iterator[Plot]], str], ...] = (
    (class_bars, "IoU of each class: no result names a class."),
    (by_size, "IoU against the size of the object: no run has an episodes.csv."),
    (
        learning_curves,
        "Validation over the training: no run has a metrics.csv with a validation (select_on=none has none).",
    ),
    (loss_curves, "Losses over the training: no run has a metrics.csv with losses."),
    (prototypes, "Prototypes by t-SNE: no run has a prototypes.npz of ten prototypes or more."),
)
"""Every plot, and what it means that it is not there."""


def main(argv: list[str]) -> int:
    """`sd-aanet report`: 0 once everything is written.

    Raises:
        DataError: no results in the folder, or damaged ones; nothing is written then.
        ConfigError: no such argument, or an output folder that cannot be written.
    """
    parser = Parser("sd-aanet report", description="Tables, plots and a page of all results in a folder.")
    parser.add_argument("folder", type=Path, help="of a sweep, a training or an evaluation; searched at any depth")
    parser.add_argument("--out", type=Path, help="where the report goes (default: FOLDER/report)")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    out: Path = arguments.out or folder / "report"
    runs, failures = read_runs(folder), read_failures(folder)
    rows, remarks = build_rows(runs)
    table = build_table(rows, remarks)
    plots, absent = draw(rows)
    title = f"Few-shot segmentation: {folder.resolve().name}"
    texts = {name: writer(table) for name, writer in WRITERS.items()}
    texts["report.html"] = page(title, table, plots, absent, runs, failures)
    files: dict[str, bytes] = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    for plot in plots:
        files |= {f"figures/{plot.name}.svg": plot.svg, f"figures/{plot.name}.png": plot.png}
    earlier = list((out / "figures").glob("*")) if (out / "report.html").is_file() else []
    with results_in(out):
        for path in earlier:  # of other results, maybe
            if f"figures/{path.name}" not in files and path.suffix in (".svg", ".png"):
                path.unlink()
        for name, content in files.items():
            with written_whole(out / name) as path:
                path.write_bytes(content)
    print(as_text(table))
    print("\n".join(["", *(f"left out: {reason}" for reason in absent), f"failed jobs: {len(failures)}"]))
    print(f"written: {out / 'report.html'}, {', '.join(WRITERS)}, {len(plots)} plots in {out / 'figures'}")
    return 0


def draw(rows: Sequence[Row]) -> tuple[list[Plot], list[str]]:
    """Every plot that the rows' runs allow, and why others are not there."""
    plots, absent = [], []
    with style():
        for draw_all, reason in tqdm(PLOTS, desc="drawing", unit="plot", leave=False, disable=None):
            drawn = list(draw_all(rows))
            plots += drawn
            absent += [] if drawn else [reason]
    return plots, absent
