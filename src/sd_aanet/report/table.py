"""The table of a report, as Markdown, CSV, LaTeX and plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sd_aanet.report.collect import Settings
from sd_aanet.report.rows import EVALUATIONS, TRAININGS, Cell, Row

NOT_RUN, NO_SUCH = "–", ""
REPORTED = "as reported"
SPREADS = {
    TRAININGS: "sample standard deviation over the seeds of the training",
    EVALUATIONS: "half the 95 % interval of the mean over the seeds of the evaluation",
}
ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        labels: under the first columns.
        cells: under the columns of scores; text stands as it is.
        dataset: that it belongs to.
        source: "measured", `REPORTED`, or the latter with "(the paper)" for the paper of this project.
        partial: "2 of 4 folds" where the mean misses some.
    """

    labels: tuple[str, ...]
    cells: tuple[Cell | str, ...]
    dataset: str
    source: str = "measured"
    partial: str = ""

    @property
    def paper(self) -> bool:
        """Whether this is the row of the paper."""
        return self.source.endswith("(the paper)")


@dataclass(frozen=True)
class Table:
    """Lines under their columns, and what has to be known to read them.

    Attributes:
        labels: heads of the first columns.
        scores: heads of the columns of scores; the last two are the mean and FB-IoU.
        lines: measured and reported, by data set.
        notes: how to read them.
        protocols: every switch, see `protocol_lines`.
        caution: on the reported lines; empty where there are none.
        mixed: whether both kinds of spread occur.
    """

    labels: tuple[str, ...]
    scores: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    protocols: tuple[str, ...]
    caution: str
    mixed: bool

    @property
    def footnotes(self) -> list[str]:
        """All that stands under the table where it stands alone."""
        caution = [f"CAUTION: {self.caution}"] if self.caution else []
        return [*self.notes, *self.protocols, *caution]

    def texts(self, line: Line) -> list[str]:
        """The scores of a line, in per cent."""
        texts = [self.text(cell) for cell in line.cells]
        if line.partial:
            texts[-2:] = [f"{text} ({line.partial})" for text in texts[-2:]]
        return texts

    def text(self, cell: Cell | str) -> str:
        """A score with its spread; a star marks the second kind of spread where both occur."""
        if isinstance(cell, str):
            return cell
        star = "*" if self.mixed and cell.over == EVALUATIONS else ""
        return percent(cell.value) + ("" if cell.spread is None else f" ± {percent(cell.spread)}{star}")


def percent(value: float) -> str:
    """A score in [0, 1] in per cent."""
    return f"{100 * value:.1f}"


def build_table(rows: Sequence[Row], remarks: Sequence[str]) -> Table:
    """The table of rows, those of the field beside them.

    Args:
        rows: as `build_rows` orders them.
        remarks: further notes.
    """
    given = [row.protocol for row in rows]
    protocols = [protocol for place, protocol in enumerate(given) if protocol not in given[:place]]
    several = len(protocols) > 1, any(n > 1 for row in rows for n in row.trainings)
    heads = ("data set", "model", "backbone", "shot", *_if(several, "protocol", "trainings"))
    folds = max(row.folds for row in rows)
    measured = [_measured(row, folds, several, _letter(protocols.index(row.protocol))) for row in rows]
    lines: list[Line] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines += [line for line in measured if line.dataset == dataset]
        lines += _reported(dataset, {row.shot for row in rows if row.dataset == dataset}, folds, len(heads))
    kinds = {cell.over for line in lines for cell in line.cells if isinstance(cell, Cell) and cell.over}
    caution = "" if len(lines) == len(measured) else str(reported()["caution"])
    later = [f"{name}: {text}" for name, text in reported()["remarks"].items() if any(r.dataset == name for r in rows)]
    return Table(
        labels=heads,
        scores=(*(f"fold-{fold}" for fold in range(folds)), "mean", "FB-IoU"),
        lines=tuple(lines),
        notes=(*_notes(lines, kinds), *remarks),
        protocols=tuple(protocol_lines(protocols)),
        caution=" ".join([caution, *later]).strip(),
        mixed=len(kinds) > 1,
    )


@cache
def reported() -> dict[str, Any]:
    """What the field reports, from the file of this package."""
    loaded: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reported.yaml").read_text(encoding="utf-8"))
    return loaded


def _measured(row: Row, folds: int, several: tuple[bool, bool], letter: str) -> Line:
    shot = str(row.shot) if row.train_shot in (None, row.shot) else f"{row.shot} (trained with {row.train_shot})"
    fewest, most = min(row.trainings), max(row.trainings)
    trainings = "" if row.untrained else str(most) if fewest == most else f"{fewest} to {most}"
    missing = [NOT_RUN if row.partial and fold < row.folds else NO_SUCH for fold in range(folds)]
    cells: list[Cell | str] = [row.cell(fold) or text for fold, text in enumerate(missing)]
    return Line(
        labels=(row.dataset, row.model, row.backbone, shot, *_if(several, letter, trainings)),
        cells=(*cells, row.mean("miou"), row.mean("fb_iou")),
        dataset=row.dataset,
        partial=f"{len(row.runs)} of {row.folds} folds" if row.partial else "",
    )


def _reported(dataset: str, shots: set[int], folds: int, labels: int) -> list[Line]:
    lines = []
    for row in reported().get(dataset, ()):
        for shot, value in row["miou"].items():
            if shot in shots:
                source = f"{REPORTED} (the paper)" if row.get("ours") else REPORTED
                heads = (dataset, f"{row['model']}, {source}", row["backbone"], str(shot))
                cells: tuple[Cell | str, ...] = (*[NO_SUCH] * folds, Cell(value / 100), NO_SUCH)
                lines.append(Line((*heads, *[""] * (labels - len(heads))), cells, dataset, source))
    return lines


def _notes(lines: Sequence[Line], kinds: set[str]) -> list[str]:
    notes = ["mIoU of each fold, its mean over the folds, and the mean of FB-IoU over the folds, in per cent."]
    for kind, mark in ((TRAININGS, "±"), (EVALUATIONS, "± with a star" if len(kinds) > 1 else "±")):
        notes += [f"{mark}: {SPREADS[kind]}, for a mean that of the means over folds."] if kind in kinds else []
    if not kinds:
        notes.append("No spread: each cell is one training and one evaluation seed.")
    if any(line.partial for line in lines):
        notes.append(f"{NOT_RUN}: not run. A mean with (n of m folds) covers only the folds that were run.")
    return notes


def protocol_lines(protocols: Sequence[Settings]) -> list[str]:
    """Every switch of every protocol: those in common once, then for each letter those that differ."""
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    common = [n for n in names if all(n in p and p[n] == protocols[0].get(n) for p in protocols)]
    head = "Protocol" if len(protocols) == 1 else "Protocol, all rows"
    lines = [f"{head}: {_switches({n: protocols[0][n] for n in common})}."]
    if len(protocols) > 1:
        for index, protocol in enumerate(protocols):
            own = {name: value for name, value in protocol.items() if name not in common}
            lines.append(f"Protocol {_letter(index)}: {_switches(own)}.")
    return lines


def _switches(protocol: Settings) -> str:
    return ", ".join(f"{name} {_shown(name, value)}" for name, value in protocol.items())


def _shown(name: str, value: Any) -> str:
    if name == "select_on" and value == "novel":
        return "novel (an oracle: the checkpoint was chosen on the classes of the test)"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _letter(index: int) -> str:
    """Letters a to z, then aa, ab, ..."""
    return ("" if index < 26 else _letter(index // 26 - 1)) + chr(ord("a") + index % 26)


def _if(several: Sequence[bool], *values: str) -> list[str]:
    return [value for value, there in zip(values, several, strict=True) if there]


def as_csv(table: Table) -> str:
    """Comma-separated: each spread in a column of its own, and the source of each line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    pairs = [head for score in table.scores for head in (score, f"{score} ±")]
    writer.writerow([*table.labels, *pairs, "spread over", "source"])
    for line in table.lines:
        scores: list[str] = []
        for index, cell in enumerate(line.cells):
            value, spread = (cell, None) if isinstance(cell, str) else (percent(cell.value), cell.spread)
            note = f" ({line.partial})" if line.partial and index >= len(line.cells) - 2 else ""
            scores += [value + note, "" if spread is None else percent(spread)]
        over = dict.fromkeys(cell.over for cell in line.cells if isinstance(cell, Cell) and cell.over)
        writer.writerow([*line.labels, *scores, " and ".join(over), line.source])
    return out.getvalue()


def as_text(table: Table) -> str:
    """Aligned columns for a terminal, a > before the paper's rows, the notes under them."""
    marks = ["  ", *("> " if line.paper else "  " for line in table.lines)]
    lines = [f"{mark}{line}".rstrip() for mark, line in zip(marks, _aligned(table, "  "), strict=True)]
    return "\n".join([*lines, "", *table.footnotes])


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, the paper's rows bold, the notes under it."""
    rule = "|".join(["", *["---"] * len(table.labels), *["---:"] * len(table.scores), ""])
    head, *body = (f"| {line} |" for line in _aligned(table, " | ", _markdown, _bold_in_markdown))
    notes = [f"- {_markdown(note)}" for note in table.footnotes]
    return "\n".join([head, rule, *body, "", *notes, ""])


def _aligned(
    table: Table, gap: str, escape: Callable[[str], str] = str, paper: Callable[[str], str] = str
) -> list[str]:
    """Head and lines with every column at its width, labels to the left, scores to the right."""
    grid = [[*table.labels, *table.scores]]
    for line in table.lines:
        texts = [escape(text) for text in (*line.labels, *table.texts(line))]
        grid.append([paper(text) for text in texts] if line.paper else texts)
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    sides = ["<"] * len(table.labels) + [">"] * len(table.scores)
    return [gap.join(f"{t:{side}{w}}" for t, side, w in zip(line, sides, widths, strict=True)) for line in grid]


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _bold_in_markdown(text: str) -> str:
    return f"**{text}**" if text else ""


def as_latex(table: Table) -> str:
    """A `table` environment for booktabs and graphicx, made to fit, the notes under it, the paper's rows bold."""
    columns = "l" * len(table.labels) + "r" * len(table.scores)
    lines = [r"% Needs \usepackage{booktabs,graphicx}.", r"\begin{table}", r"\centering"]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(_latex_line([*table.labels, *table.scores]))
    group = None
    for line in table.lines:
        if (here := (line.dataset, line.source == "measured")) != group:
            lines.append(r"\midrule")
        group = here
        lines.append(_latex_line([*line.labels, *table.texts(line)], line.paper))
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\footnotesize\raggedright"]
    lines += [rf"{_latex(note)}\par" for note in table.footnotes]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_line(texts: Sequence[str], paper: bool = False) -> str:
    escaped = [_latex(text) for text in texts]
    return " & ".join(rf"\textbf{{{text}}}" if paper and text else text for text in escaped) + r" \\"


def _latex(text: str) -> str:
    return text.translate(ESCAPES).replace("–", "--").replace("±", r"$\pm$").replace('"', "''")


WRITERS: dict[str, Callable[[Table], str]] = {"table.md": as_markdown, "table.csv": as_csv, "table.tex": as_latex}
"""Names of the table's files, and what writes each."""
