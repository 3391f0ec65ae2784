"""Parts of the page that only some runs have: exit by confidence, and the glimpse sheet."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from robustglimpse.records import UserError
from robustglimpse.report import figures
from robustglimpse.report.board import Board
from robustglimpse.report.tables import points_grid, rules_grid
from robustglimpse.texts import one_line

SHEET = "glimpses.png"
SHEETS_BYTES = 800_000  # of all sheets on a page, so that the rest still fits
POINTS, RULES = "figure3.csv", "thresholds.csv"


@dataclass(frozen=True)
class Section:
    """A part of the page beside the built-in ones.

    html: placed as it is, so whatever comes from files must be escaped in it.
    """

    id: str
    title: str
    html: str


def exits_section(board: Board) -> Section | None:
    """Return Figure 3 and exit by confidence of the runs in which `robustglimpse exits` wrote them."""
    parts = []
    for k, (name, run) in enumerate(board.runs.items()):
        points, rules = run.table(POINTS), run.table(RULES)
        if points is None or not len(points):
            continue
        rules = pd.DataFrame(columns=[*points.columns, "mean_gmacs", "against"]) if rules is None else rules
        parts += [f"<h3>{escape(name)}</h3>"] if len(board.runs) > 1 else []
        try:
            parts += _exits_parts(k, points, rules)
        except KeyError as error:
            raise _damaged(run.root, f"lacks the column {error}") from None
        except (ValueError, TypeError, OverflowError) as error:  # a text for a number, or one without end
            raise _damaged(run.root, f"holds what cannot be drawn: {one_line(str(error))}") from None
    return Section("confidence", "Early exits", "\n".join([EXITS_NOTE, *parts])) if parts else None


def _damaged(root: Path, reason: str) -> UserError:
    return UserError(f"{root}: {POINTS} or {RULES} {reason}; run its robustglimpse exits again")


EXITS_NOTE = (
    '<p class="muted">Figure 3 of the paper with exit by confidence: an image leaves at the first exit whose '
    "confidence reaches the threshold, and costs nothing after it. Under attack, exits before the last are "
    "judged on the images made against the last one, so they may be weaker than shown against an attacker of "
    "their own; rows against the rule attack exit by confidence itself. Protocols standard and adaptive stop "
    "at the first image that fools, where exits are least sure and cost the most; plain and paper go on to "
    "the last.</p>"
)


def _exits_parts(k: int, points: pd.DataFrame, rules: pd.DataFrame) -> list[str]:
    drawn = []
    if points["gmacs"].notna().any():
        text = "Accuracy against GMACs per exit and by threshold: the numbers are in the tables below"
        drawn.append((figures.figure3(points, rules), f"fx-{k}", text))
    if len(rules):
        text = "Accuracy and mean GMACs against the threshold: the numbers are in the table below"
        drawn.append((figures.thresholds_figure(rules), f"ft-{k}", text))
    svgs = [figures.inline_svg(figure, prefix=prefix, title=text) for figure, prefix, text in drawn]
    parts = [f'<figure style="max-width:none">{svg}</figure>' for svg in svgs]
    parts.append(_table("Accuracy per exit and input size, percent", *points_grid(points), names=3))
    if len(rules):
        text = "Exit by confidence, a line per threshold. What it costs more is against the clean images."
        parts.append(_table(text, *rules_grid(rules), names=4))
    return parts


def _table(caption: str, header: Sequence[str], lines: Sequence[Sequence[str]], *, names: int) -> str:
    """Return a table whose first `names` columns say what a line is; the first names it."""
    left = [' class="l"' if k < names else "" for k in range(len(header))]
    head = "".join(
        f'<th scope="col"{place}>{escape(text)}</th>' for text, place in zip(header, left, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f"<td{place}>{_number(text)}</td>" for text, place in zip(line[1:], left[1:], strict=True))
        + "</tr>"
        for line in lines
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f"<table><caption><span>{escape(caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _number(text: str) -> str:
    """Return "85.2 [82.9, 87.3]" with its interval set apart."""
    value, bracket, interval = text.partition(" [")
    if not bracket:
        return escape(text)
    return f'<span class="value">{escape(value)}</span> <span class="ci">[{escape(interval)}</span>'


def glimpses_section(board: Board) -> Section | None:
    """Return the glimpse sheets of the runs that have one, where they are small enough to carry along."""
    parts, left = [], SHEETS_BYTES
    for name, run in board.runs.items():
        picture = run.picture(SHEET)
        if picture is None:
            continue
        if len(picture) > left:
            size = f"{len(picture) / 1e6:.1f} MB"
            parts.append(f"<p>{escape(name)}: its {SHEET} is too large to carry along ({size}).</p>")
            continue
        left -= len(picture)
        source = f"data:image/png;base64,{b64encode(picture).decode()}"
        text = f"{name}: images with the regions looked at, the glimpses and the answers, clean and attacked"
        image = f'<img src="{source}" alt="{escape(text)}" style="width:100%">'
        parts.append(f'<figure style="max-width:none">{image}</figure>')
    return Section("glimpses", "Where it looked", "\n".join(parts)) if parts else None


# What a run may have beside its tables: functions that return None where it has not.
SECTIONS: tuple[Callable[[Board], Section | None], ...] = (exits_section, glimpses_section)
