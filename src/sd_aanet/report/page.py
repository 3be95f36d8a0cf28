"""The report as one page that needs nothing beside it: no script, no link, its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path, PurePath

from sd_aanet.files import short
from sd_aanet.report.collect import Run
from sd_aanet.report.style import Plot
from sd_aanet.report.table import REPORTED, Line, Table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #5a5a5a; --line: #c8c8c8; --shade: #eef4f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --faint: #a8a8a8; --line: #44484d; --shade: #21303d; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 76rem; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { color: var(--faint); padding: .4rem 0; text-align: left; }
th, td { padding: .25rem .4rem; text-align: left; vertical-align: top; }
th { font-weight: 600; }
tbody th { font-weight: 400; min-width: 12rem; }
thead th, td { white-space: nowrap; }
.n { text-align: right; }
.wrap { overflow-wrap: anywhere; white-space: normal; }
thead, tbody { border-bottom: 1px solid var(--line); }
.reported { color: var(--faint); }
tr.paper { background: var(--shade); color: var(--ink); }
tr.paper th, tr.paper td { font-weight: 700; }
.caution { background: var(--shade); border-left: 4px solid #d55e00; padding: .6rem 1rem; }
figure { margin: 1rem 0 2.5rem; }
figure img { background: #fff; display: block; height: auto; width: 100%; }
figcaption, .faint { color: var(--faint); font-size: .9rem; }
pre { background: var(--shade); overflow-x: auto; padding: .6rem; white-space: pre-wrap; }
"""


def page(
    title: str,
    table: Table,
    plots: Sequence[Plot],
    absent: Sequence[str],
    runs: Sequence[Run],
    failures: Mapping[str, str],
) -> str:
    """The whole page as HTML.

    Args:
        title: text.
        table: of results.
        plots: in their order.
        absent: why other plots are not there.
        runs: what the table is made of.
        failures: name of a job -> what is known of its end.
    """
    lines = [
        *("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">'),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        *(f"<title>{escape(title)}</title>", f"<style>{CSS}</style>", "</head>", "<body>", "<main>"),
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{len(runs)} {"run" if len(runs) == 1 else "runs"}, {len(failures)} failed</p>',
        *_results(table),
        *_figures(plots, absent),
        *_runs(runs),
        *_failures(failures),
        *("</main>", "</body>", "</html>", ""),
    ]
    return "\n".join(lines)


def _results(table: Table) -> Iterator[str]:
    yield '<section aria-labelledby="results">\n<h2 id="results">Results</h2>'
    yield _scroll("results")
    yield f"<table>\n<caption>{escape(table.notes[0])}</caption>"
    heads = [_head(head) for head in table.labels]
    heads += [f'<th scope="col" class="n">{escape(head)}</th>' for head in table.scores]
    yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    group: tuple[str, bool] | None = None
    for line in table.lines:
        measured = not line.source.startswith(REPORTED)
        if (line.dataset, measured) != group:
            yield ("</tbody>\n" if group else "") + ("<tbody>" if measured else '<tbody class="reported">')
            group = (line.dataset, measured)
        yield _line(table, line)
    yield "</tbody>\n</table>\n</div>"
    yield from (f'<p class="faint">{escape(note)}</p>' for note in table.notes[1:])
    if table.caution:
        yield f'<p class="caution" role="note"><strong>Caution.</strong> {escape(table.caution)}</p>'
    yield '</section>\n<section aria-labelledby="protocol">\n<h2 id="protocol">Protocol</h2>\n<ul>'
    yield from (f"<li>{escape(note)}</li>" for note in table.protocols)
    yield "</ul>\n</section>"


def _line(table: Table, line: Line) -> str:
    labels = [
        f'<th scope="row">{escape(t)}</th>' if i == 1 else f"<td>{escape(t)}</td>" for i, t in enumerate(line.labels)
    ]
    scores = [f'<td class="n">{escape(text).replace(" (", "<br>(")}</td>' for text in table.texts(line)]
    return "".join(['<tr class="paper">' if line.paper else "<tr>", *labels, *scores, "</tr>"])


def _figures(plots: Sequence[Plot], absent: Sequence[str]) -> Iterator[str]:
    for plot in plots:
        data = base64.b64encode(plot.svg).decode()
        yield f'<section aria-labelledby="{plot.name}">\n<h2 id="{plot.name}">{escape(plot.title)}</h2>\n<figure>'
        yield f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(plot.alt)}">'
        yield f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>\n</section>"
    if absent:
        yield '<section aria-labelledby="absent">\n<h2 id="absent">Left out</h2>\n<ul>'
        yield from (f"<li>{escape(reason)}</li>" for reason in absent)
        yield "</ul>\n</section>"


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    versions = {run.name: _listed(run.result["versions"]) for run in runs}
    common = len(set(versions.values())) == 1
    heads = ("folder", "checkpoint", "seconds", "precision", *(() if common else ("versions",)))
    yield '<section aria-labelledby="runs">\n<h2 id="runs">Runs</h2>'
    yield f"{_scroll('runs')}\n<table>"
    yield "<caption>What the scores above come from; seconds are those of the evaluation.</caption>"
    yield f"<thead><tr>{''.join(map(_head, heads))}</tr></thead>\n<tbody>"
    for run in runs:
        cells = [_checkpoint(run), run.result["seconds"], run.result["precision"]]
        cells += [] if common else [versions[run.name]]
        shown = "".join(f'<td class="wrap">{escape(str(cell))}</td>' for cell in cells)
        yield f'<tr><th scope="row" class="wrap">{escape(run.name)}</th>{shown}</tr>'
    yield "</tbody>\n</table>\n</div>"
    if common:
        yield f'<p class="faint">All with {escape(versions[runs[0].name])}.</p>'
    yield "</section>"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _scroll(heading: str) -> str:
    """A box for a wide table, which keys can scroll, too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{heading}">'


def _head(text: str) -> str:
    return f'<th scope="col">{escape(text)}</th>'


def _checkpoint(run: Run) -> str:
    """The checkpoint from the run's own folder, or from the working folder, where it lies in one of them."""
    recorded = run.result["checkpoint"]
    if recorded is None:
        return "none"
    path, own = PurePath(recorded), run.folder.resolve().name
    if own in path.parts[:-1]:  # also in a sweep that was moved since
        return PurePath(*path.parts[path.parts.index(own) + 1 :]).as_posix()
    return short(Path(recorded))


def _failures(failures: Mapping[str, str]) -> Iterator[str]:
    if failures:
        yield '<section aria-labelledby="failed">\n<h2 id="failed">Failed jobs</h2>'
        for name, text in failures.items():
            yield f"<details><summary>{escape(name)}</summary>\n<pre>{escape(text)}</pre></details>"
        yield "</section>"
