"""The report of runs, as one offline HTML file, Markdown, LaTeX or CSV: a board in, text out."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from robustglimpse.records import PROTOCOLS, RESULT_COLUMNS, UserError
from robustglimpse.report import figures, table2
from robustglimpse.report.board import Board, Comparison, Curves, Entry, Exits, Sweep
from robustglimpse.report.sections import SECTIONS, Section
from robustglimpse.report.tables import PROTOCOL_ORDER, called, headline, latex, markdown, percent
from robustglimpse.sheets import csv_text
from robustglimpse.texts import one_line, safe

LIMIT_BYTES = 2_000_000
PLAIN_CSV_BYTES = 300_000  # larger ones travel gzipped
JUDGES = {
    "worst": "right at every step up to the count",
    "last": "right after exactly that many steps",
    "image": "right on the image made against the last exit",
    "mean": "mean over the cells",
    "": "",
}


def to_html(board: Board, sections: Sequence[Callable[[Board], Section | None]] = SECTIONS) -> str:
    """Return the page, at most 2 MB: what it leaves out to stay below, it says.

    Raises UserError where even the tables alone are larger.
    """
    extra = [section for make in sections if (section := make(board)) is not None]
    for omitted in ([], ["results"], ["results", "cells"]):
        html = _render(board, extra, omitted)
        if len(html.encode()) <= LIMIT_BYTES:
            return html
    raise UserError(f"the page would be larger than {LIMIT_BYTES / 1e6:.0f} MB; report fewer runs at a time")


def to_markdown(board: Board) -> str:
    """Return the headline, the curves and Table 2 as Markdown."""
    told = [*board.notes, *_failures(board)]
    parts = [f"# {safe(title(board), 'markdown')}", *(f"> {safe(note, 'markdown')}" for note in told)]
    for comparison in board.comparisons:
        parts += _headed(_heading(comparison), comparison.data)
        header, lines = _lines(comparison)
        parts.append(markdown(header, lines))
    for curves in board.curves:
        parts += _headed(f"{curves.threat}: accuracy against steps", curves.data)
        grid = steps_grid(curves)
        parts.append(markdown(grid.header, grid.lines))
    for sweep in board.sweeps:
        parts += [*_headed(sweep.threat, sweep.data), table2.to_markdown(sweep.table)]
    parts += ["## How to read this", "\n".join(f"- {note}" for note in reading_notes(board)), "## Commands"]
    return "\n\n".join([*parts, *(f"    {one_line(c['command'])}" for c in commands(board))])


def _headed(heading: str, data: str) -> list[str]:
    return [f"## {safe(heading, 'markdown')}", f"{safe(data, 'markdown')}."]


def to_latex(board: Board) -> str:
    """Return the headline as one table for LaTeX with booktabs, then each Table 2."""
    header = [r"model", r"accuracy (\%)", "ties", r"clean (\%)", "GMACs"]
    body: list[str] = []
    for comparison in board.comparisons:
        head = f"{_heading(comparison)}; {comparison.data}"
        body += [r"\midrule", rf"\multicolumn{{5}}{{l}}{{\emph{{{latex(head)}}}}} \\", r"\addlinespace[2pt]"]
        body += [" & ".join(map(latex, line)) + r" \\" for line in _lines(comparison)[1]]
    top = [r"\begin{tabular}{lrlrr}", r"\toprule", " & ".join(header) + r" \\"]
    tables = ["\n".join([*top, *body, r"\bottomrule", r"\end{tabular}"])]
    tables += [f"% {one_line(s.threat)}\n{table2.to_latex(s.table)}" for s in board.sweeps]
    return "\n\n".join(tables)


def to_csv(board: Board) -> str:
    """Return the headline as CSV: a row per model and comparison, accuracies as fractions."""
    rows = [
        {
            "model": e.model, "backbone": e.backbone, "family": e.family,
            "weights_sha256": e.weights_sha256, "data": c.data, "kind": c.kind, "threat": c.threat,
            "protocol": c.protocol, "judge": c.judge, "exit": e.exit, "correct": e.correct,
            "total": e.total, "accuracy": e.accuracy, "ci_low": e.low, "ci_high": e.high,
            "clean_accuracy": e.clean, "ties": e.ties, "gmacs": e.gmacs,
            "runs": " ".join(e.runs), "cells": " ".join(key for _, key in e.cells),
            "flags": "; ".join(e.flags), "error": e.error,
        }
        for c in board.comparisons
        for e in c.entries
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    for name in ("exit", "correct"):
        frame[name] = frame[name].astype("Int64")
    return csv_text(frame)


FORMATS: dict[str, Callable[[Board], str]] = {
    "html": to_html, "md": to_markdown, "tex": to_latex, "csv": to_csv,
}  # fmt: skip


def title(board: Board) -> str:
    """Return what the page is called."""
    return f"Robustness of {', '.join(board.runs)}" if len(board.runs) == 1 else "Robustness leaderboard"


@dataclass(frozen=True)
class Grid:
    """A table of texts, "85.2 [82.9, 87.3]" for a number and its interval.

    names: how many columns in front say what the line is.
    """

    header: list[str]
    lines: list[list[str]]
    names: int = 1


def steps_grid(curves: Curves) -> Grid:
    """Return accuracies by model, exit and protocol, a column per step count."""
    rows = curves.rows
    clean, attacked = rows[rows["kind"] == "clean"], rows[rows["kind"] == "attack"]
    counts = sorted({int(k) for k in attacked["steps"]})
    several = bool((attacked.groupby("shown")["exit"].nunique() > 1).any())
    lines = []
    for (model, number, protocol), group in attacked.groupby(["shown", "exit", "protocol"], sort=False):
        before = clean[(clean["shown"] == model) & (clean["exit"] == number)]
        cells = [_cell(before), *(_cell(group[group["steps"] == k]) for k in counts)]
        lines.append([str(model), *([str(number)] if several else []), str(protocol), *cells])
    steps = ["1 step" if k == 1 else f"{k} steps" for k in counts]
    header = ["model", *(["exit"] if several else []), "protocol", "clean", *steps]
    return Grid(header, lines, 3 if several else 2)


def exits_grid(exits: Exits) -> Grid:
    """Return accuracy and cost by model and exit."""
    order = exits.points.sort_values(["shown", "exit"], kind="stable")
    lines = [
        [row["shown"], str(row["exit"]), f"{row['gmacs']:.3f}", _percent(row)]
        for row in order.to_dict("records")
    ]
    return Grid(["model", "exit", "GMACs", "accuracy, %"], lines)


def _cell(rows: pd.DataFrame) -> str:
    """Return the one verdict in the rows; several contradict each other and are all shown."""
    return " / ".join(_percent(row) for row in rows.to_dict("records")) or "-"


def _percent(row: Any) -> str:
    return _interval(float(row["accuracy"]), float(row["ci_low"]), float(row["ci_high"]))


def _interval(accuracy: float, low: float, high: float) -> str:
    """Return "85.2 [82.9, 87.3]", a dash for a hole, and says so where there is no interval."""
    if isnan(accuracy):
        return "-"
    return f"{100 * accuracy:.1f} [no interval]" if isnan(low) else percent(accuracy, low, high)


def _heading(comparison: Comparison) -> str:
    if comparison.kind == "clean":
        return "Clean images"
    protocol = f", protocol {comparison.protocol}" if comparison.protocol else ""
    return f"{comparison.threat}{protocol}"


def _lines(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return a comparison's header and lines as text."""
    lines = [
        [
            e.model,
            _interval(e.accuracy, e.low, e.high) if not e.error else f"- ({e.error})",
            e.ties or "-",
            "-" if isnan(e.clean) else f"{100 * e.clean:.1f}",
            "-" if isnan(e.gmacs) else f"{e.gmacs:.3f}",
        ]
        for e in comparison.entries
    ]
    return ["model", "accuracy, % [95 % interval]", "ties", "clean, %", "GMACs"], lines


def reading_notes(board: Board) -> list[str]:
    """Return, in plain words, what the numbers on the page mean."""
    used = set(board.rows["protocol"]) | set(board.failed["protocol"])
    notes = [
        "Accuracy is the share of images still classified correctly. Brackets hold its 95 % interval: "
        "Wilson's for one cell, Student's t over images for a mean of cells. Another draw of as many images "
        "would rarely lead outside. At 0 of n only the upper bound was learned, and it is printed.",
        "Ties stand in for ranks: models of a comparison that share a letter are not told apart by its "
        "images (exact McNemar test over the same images, paired t-test for means; Holm's correction for "
        "all pairs, 5 %). No letter: nothing to compare with, or per-sample outcomes are not kept.",
        *(f"Protocol {name}: {PROTOCOLS[name].summary}." for name in PROTOCOL_ORDER if name in used),
    ]
    if "paper" in used:
        notes.append(
            "Protocols are different threats: paper is the mildest and is how the published numbers were "
            "made; a number under it says nothing of one under another."
        )
    if board.exits or board.sweeps:
        notes.append("GMACs are multiply-adds per image, in billions, up to that exit.")
    return notes


def _failures(board: Board) -> list[str]:
    return [
        f"No number for {_what(row)}: {row['error'] or 'no reason is recorded'}"
        for row in board.failed.to_dict("records")
    ]


def _what(row: Any) -> str:
    """Return "mgnet-r18, pgd 4/255, standard" of a row."""
    parts = [row["model"]]
    if row["kind"] == "attack":
        parts += [f"{called(row['attack'], row['options'])} {row['eps_text']}", row["protocol"]]
    else:
        parts.append(f"{row['corruption']} {row['severity']}" if row["kind"] == "corruption" else "clean")
    return ", ".join(str(part) for part in parts if part)


def commands(board: Board) -> list[dict[str, Any]]:
    """Return the commands of all runs, numbered from 1 in `number`, with the run's name in `run`."""
    found = [{**c, "run": name} for name, run in board.runs.items() for c in run.commands]
    return [{**command, "number": k} for k, command in enumerate(found, 1)]


def _cells(board: Board, told: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what is known of every cell that has a row on the page."""
    made_by: dict[tuple[str, str], list[int]] = {}
    for command in told:
        for key in command.get("cells", []):
            made_by.setdefault((command["run"], key), []).append(command["number"])
    both = pd.concat([board.rows, board.failed]).drop_duplicates(["run", "cell"])
    cells = {}
    for k, row in enumerate(both.to_dict("records"), 1):
        at = row["run"], row["cell"]
        cells[at] = {
            "id": f"cell-{k}", "key": row["cell"], "run": row["run"], "what": _what(row),
            "n": row["n"], "numbers": made_by.get(at, []), "seconds": row["seconds"],
            "forwards": row["forwards"], "backwards": row["backwards"], "device": row["device"],
            "status": row["status"], "data_sha256": row["data_sha256"],
            "weights_sha256": row["weights_sha256"],
        }  # fmt: skip
    return cells


def _download(name: str, text: str) -> dict[str, Any]:
    """Return a link that holds a CSV file, gzipped where it is large."""
    content = text.encode()
    if len(content) <= PLAIN_CSV_BYTES:
        href = "data:text/csv;charset=utf-8," + quote(text, safe=",:;/+[]()=")
        return {"name": name, "href": href, "bytes": len(content)}
    packed = gzip.compress(content, mtime=0)
    href = "data:application/gzip;base64," + b64encode(packed).decode()
    return {"name": f"{name}.gz", "href": href, "bytes": len(packed)}


def _all_rows(board: Board) -> str:
    """Return the rows behind the page as results.csv holds them, with the run they come from."""
    frame = pd.concat([board.rows, board.failed])[["run", *RESULT_COLUMNS]]
    return csv_text(frame)


def _drawn_curves(board: Board) -> list[dict[str, Any]]:
    found = []
    for k, curves in enumerate(board.curves):
        attacked = curves.rows[curves.rows["kind"] == "attack"]
        last = headline(curves.rows.assign(model=curves.rows["shown"]))
        panels = []
        for at, backbone in enumerate(dict.fromkeys(attacked["backbone"])):
            name = figures.BACKBONE_TITLES.get(str(backbone), str(backbone)) or "models"
            figure = figures.steps_panel(last[last["backbone"] == backbone])
            text = f"Accuracy against attack steps, {name}: the numbers are in the table below"
            panels.append((name, figures.inline_svg(figure, prefix=f"f4-{k}-{at}", title=text)))
        found.append({"of": curves, "panels": panels, "grid": steps_grid(curves)})
    return found


def _drawn_exits(board: Board) -> list[dict[str, Any]]:
    found = []
    for k, exits in enumerate(board.exits):
        text = f"Accuracy against GMACs per exit, {exits.condition}: the numbers are in the table beside"
        svg = figures.inline_svg(figures.exits_panel(exits.points), prefix=f"f3-{k}", title=text)
        found.append({"of": exits, "svg": svg, "grid": exits_grid(exits)})
    return found


def _heat(sweep: Sweep) -> dict[str, Any]:
    """Return Table 2 as cells of (text, percent or None, is best), with the families above the columns."""
    table = sweep.table
    columns = ["average", *table.corruptions]
    families: list[list[Any]] = []
    for name in table.corruptions:
        family = "extra" if table2.is_extra(name) else table2.family_of(name)
        if families and families[-1][0] == family:
            families[-1][1] += 1
        else:
            families.append([family, 1])
    lines = []
    records = zip(table.values.to_dict("records"), table.is_best.to_dict("records"), strict=True)
    for row, best in records:
        cells = []
        for name in ["clean", *columns]:
            value = float(row[name])
            text = "-" if isnan(value) else f"{100 * value:.1f}"
            cells.append((text, None if isnan(value) else round(100 * value), bool(best.get(name, False))))
        gmacs = float(row["gmacs"])
        lines.append((row["model"], row["glimpses"], "-" if isnan(gmacs) else f"{gmacs:.3f}", cells))
    return {
        "of": sweep, "families": families, "lines": lines,
        "columns": [(table2.short_name(name), name.replace("_", " ")) for name in table.corruptions],
    }  # fmt: skip


def _shown_entry(entry: Entry, cells: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    value, _, interval = _interval(entry.accuracy, entry.low, entry.high).partition(" ")
    mine = [cells[at] for at in entry.cells if at in cells]
    return {
        "e": entry, "value": value, "interval": interval, "cells": mine,
        "clean": "" if isnan(entry.clean) else f"{100 * entry.clean:.1f}",
        "gmacs": "" if isnan(entry.gmacs) else f"{entry.gmacs:.3f}",
        "numbers": list(dict.fromkeys(k for cell in mine for k in cell["numbers"])),
        "plot": None if isnan(entry.accuracy) else _plot(entry),
    }  # fmt: skip


def _plot(entry: Entry, width: int = 150) -> dict[str, Any]:
    """Return where the accuracy, its interval's ends and the clean accuracy lie on a scale of that width."""
    places = {"at": entry.accuracy, "low": entry.low, "high": entry.high, "clean": entry.clean}
    return {k: None if isnan(v) else f"{6 + (width - 12) * v:.1f}" for k, v in places.items()}


def _render(board: Board, extra: Sequence[Section], omitted: Sequence[str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["judged"] = lambda judge: JUDGES.get(judge, judge)
    environment.filters["heading"] = _heading
    told = commands(board)
    cells = _cells(board, told)
    comparisons = [(c, [_shown_entry(e, cells) for e in c.entries]) for c in board.comparisons]
    files = [_download("headline.csv", to_csv(board))]
    files += [] if "results" in omitted else [_download("results.csv", _all_rows(board))]
    return environment.get_template("page.html.jinja").render(
        title=title(board), board=board, comparisons=comparisons, commands=told, failures=_failures(board),
        cells=[] if "cells" in omitted else list(cells.values()), n_cells=len(cells), omitted=omitted,
        curves=_drawn_curves(board), exits=_drawn_exits(board), heats=[_heat(s) for s in board.sweeps],
        extra=extra, notes=reading_notes(board), files=files, several=len(board.runs) > 1,
    )  # fmt: skip
