"""Names and other texts from outside, made safe for where they go. Loads nothing heavy.

A model may be called anything, and results come from other machines: whatever is printed or written goes
through `safe`.  Names that no place could show are refused before anything is run (check_name).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Literal

from robustglimpse.records import UserError

Place = Literal[
    "terminal", "markdown", "markdown cell", "html", "latex", "csv", "xml", "github", "github title", "figure"
]  # fmt: skip
LONGEST = 200  # characters of a value that an error repeats


def safe(text: object, place: Place) -> str:
    """Return a text that says the same and does nothing else where it goes, always on one line.

    terminal: also logs; no control sequence, and no line that GitHub takes for a command.
    markdown: of GitHub's kind; "markdown cell": of a table.  html: between tags or in quoted attributes.
    xml: for a writer that escapes; characters that XML may hold.
    csv: no cell that a spreadsheet takes for a formula; from_csv gives the text back.
    github: the message of a workflow command; "github title": one of its properties.
    figure: for matplotlib, where $ begins a formula.
    """
    return _PLACES[place](one_line(str(text)))


def one_line(text: str) -> str:
    """Return the text on one line: white space as spaces, characters that do not print as their escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text
    )


def shortened(value: object) -> str:
    """Return what an error repeats of a value: on one line, and not all of a long one."""
    text = one_line(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_name(name: str, *, kind: str) -> None:
    """Raise UserError for a name that tables, logs and files could not show as it is."""
    if not name.strip():
        raise UserError(f"{kind}: expected a name, got {name!r}; give it one (name='...')")
    if not name.isprintable():
        raise UserError(
            f"{kind} {shortened(name)}: expected a name on one line without control characters; give it "
            "another (name='...')"
        )
    if name.lstrip().startswith("::") or "##[" in name:
        raise UserError(
            f"{kind} {shortened(name)}: GitHub would take '::' in front or '##[' for a command; give it "
            "another name (name='...')"
        )


def from_csv(text: str) -> str:
    """Return the text that safe(text, "csv") was made of."""
    return text[1:] if _GUARDED.match(text) else text


# What a spreadsheet takes for a formula, and what already looks guarded.
_FORMULA = re.compile("[' ]*[=+@＝＋＠－-]")
_GUARDED = re.compile("'[' ]*[=+@＝＋＠－-]")


def _terminal(text: str) -> str:
    text = text.replace("##[", "## [")
    return text.replace("::", ": :", 1) if text.lstrip().startswith("::") else text


def _markdown(text: str) -> str:
    """Return the text without tags or links."""
    text = re.sub(r"(\\*)(<(?=[A-Za-z/!?]))", _escaped, _terminal(text))
    return text.replace("](", "]\\(").replace("][", "]\\[")


def _markdown_cell(text: str) -> str:
    return re.sub(r"(\\*)(\|)", _escaped, _markdown(text))


def _escaped(found: re.Match[str]) -> str:
    """Return a sign with a backslash before it; behind an odd number of them it has one."""
    return found[0] if len(found[1]) % 2 else f"{found[1]}\\{found[2]}"


def _latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "∞": r"$\infty$", "≤": r"$\leq$", "<": r"$<$", ">": r"$>$", **{c: "\\" + c for c in "&%$#_{}"},
    }  # fmt: skip
    found = "".join(special.get(c, c) for c in text.replace("<=", "≤"))
    # In front of a row they would belong to the \\ that ends the row before.
    return f"{{{found[0]}}}{found[1:]}" if found[:1] in ("[", "*") else found


def _csv(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


def _github(text: str) -> str:
    return text.replace("%", "%25").replace("##[", "## [")


def _github_title(text: str) -> str:
    return _github(text).replace(":", "%3A").replace(",", "%2C")


def _figure(text: str) -> str:
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out names that begin so


_PLACES: dict[Place, Callable[[str], str]] = {
    "terminal": _terminal, "markdown": _markdown, "markdown cell": _markdown_cell, "html": escape,
    "latex": _latex, "csv": _csv, "xml": str, "github": _github, "github title": _github_title,
    "figure": _figure,
}  # fmt: skip
