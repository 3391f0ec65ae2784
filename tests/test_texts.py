"""Names from outside, safe for where they go: no command, no formula, no tag, and refused where hopeless."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustglimpse import Bench, bench, wrap
from robustglimpse.data import from_tensors
from robustglimpse.notes import tell
from robustglimpse.policy import Policy, Subject
from robustglimpse.records import UserError
from robustglimpse.regress import Finding, Judgement
from robustglimpse.report import figures, tables, verdicts
from robustglimpse.report.table2 import Table2
from robustglimpse.sheets import csv_text, read_csv
from robustglimpse.texts import check_name, from_csv, safe

HOSTILE = [
    "a\n::error title=x::y", "::error::x", "  ::set-output name=a::b", "a##[error]b", "\x1b[31mred", "a\x00b",
    "\x0b", "\ufffe", "\ud800", "\u202eabc", "a\rb", "a\u2028b", "$\\frac{1}$", "_", "=1+1", "+1", "@x",
    "-x", "\t=1", "'=1", "<script>", "\\<b>", "\\\\<b>", "a|b", "\\|", "\\\\|", "[x](javascript:y)", "%0A",
    "",
]  # fmt: skip
PLACES = ("terminal", "markdown", "markdown cell", "html", "latex", "csv", "xml", "github", "figure")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_on_one_line_that_prints_wherever_it_goes(text: str, place: str) -> None:
    assert safe(text, place).isprintable()  # type: ignore[arg-type]


def test_what_is_harmless_stays_as_it_is() -> None:
    for place in PLACES:
        for text in ("mgnet-r18", "net 4/255 [78.9, 83.7]", "naïve 网络", "0.0 [<= 0.4]", "a: b"):
            if place not in ("html", "latex"):
                assert safe(text, place) == text  # type: ignore[arg-type]


# GitHub's runner takes "::" at the start of a line, and "##[" anywhere, for a command.
COMMAND = re.compile(r"^\s*::|##\[")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_of_a_log_is_a_workflow_command(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert not COMMAND.search(safe(text, "terminal"))
    tell(text)
    assert not COMMAND.search(capfd.readouterr().err)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_a_csv_is_no_formula_and_comes_back(text: str) -> None:
    frame = pd.DataFrame({"name": [text, "NA", "nan", "plain"], "n": [1.5, np.nan, 2.0, 0.1]})
    content = csv_text(frame)
    cells = [line.partition(",")[0] for line in content.splitlines()[1:]]
    assert not any(cell.lstrip('" ').startswith(("=", "+", "-", "@")) for cell in cells)
    back = read_csv(content.encode(), ["name"])
    assert back["name"].tolist() == [from_csv(safe(text, "csv")), "NA", "nan", "plain"]
    assert back["n"].tolist()[0] == 1.5 and np.isnan(back["n"][1])
    if text.isprintable():
        assert back["name"][0] == text


def cells_of(line: str) -> int:
    """Return how many cells GitHub's Markdown sees: a | behind a backslash is none."""
    return len(re.sub(r"\\[\\|]", "", line).strip("|").split("|"))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_table_stays_one_cell_without_tags_and_links(text: str) -> None:
    lines = tables.markdown(["a", "b"], [[text, "1"]]).splitlines()
    assert len(lines) == 3 and cells_of(lines[2]) == 2
    assert not re.search(r"<[A-Za-z/!?]", re.sub(r"\\[\\<]", "", lines[2]))
    assert "](" not in lines[2]


def test_what_is_escaped_already_is_not_escaped_again() -> None:
    for text in HOSTILE:
        once = safe(text, "markdown cell")
        assert safe(once, "markdown cell") == once


def judgement(name: str) -> Judgement:
    subject = Subject(name, "attack", "pgd", "standard")
    found = Finding(f"{name}, pgd", subject, "regressed", total=10, before=0.9, after=0.1, lost=8, note=name)
    return Judgement("base", "run`\n::error::x", (found,), Policy(), (f"note on {name}",))


@pytest.mark.parametrize("text", HOSTILE)
def test_the_gates_verdict_is_well_formed_whatever_a_model_is_called(text: str) -> None:
    found = judgement(text)
    suite = ElementTree.fromstring(verdicts.to_junit(found)).find("testsuite")
    assert suite is not None and len(suite.findall("testcase/failure")) == 1
    (line,) = verdicts.to_github(found).splitlines()
    assert line.startswith("::error title=robustness%3A regressed::")
    assert "##[" not in line and "%0A" not in line.replace("%250A", "")
    markdown = verdicts.to_markdown(found)
    assert not any(COMMAND.search(line) for line in markdown.splitlines())
    (row,) = [line for line in markdown.splitlines() if "**regressed**" in line]
    assert cells_of(row) == 8


@pytest.mark.parametrize("text", ["$\\frac{1}$", "$x", "_hidden", "\ud800", "a\nb", "{", "%", "\\"])
def test_figures_take_a_name_literally(text: str) -> None:
    values = pd.DataFrame(
        {"model": [text], "glimpses": [1], "gmacs": [0.1], "clean": [0.9], "average": [0.5], "fog": [0.5]}
    )
    table = Table2(values, pd.DataFrame({"average": [True], "fog": [False]}))
    assert figures.render(figures.table2_heatmap(table), "png")
    assert figures.render(figures.table2_heatmap(table), "svg")


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    panel.plot([0, 1], label=safe("_net", "figure"))
    assert [text.get_text() for text in panel.legend().get_texts()] == [" _net"]


def test_a_row_of_latex_does_not_begin_with_what_its_line_break_would_take() -> None:
    assert safe("[x]", "latex") == "{[}x]"
    assert safe("*", "latex") == "{*}"
    assert safe("0.0 [1, 2]", "latex") == "0.0 [1, 2]"


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x00", "\x1b[2J", "::error::x", "a##[error]", "", "  ", "\ud800", "a\tb"]
)
def test_a_hopeless_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"expected a name|GitHub") as error:
        check_name(name, kind="model")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name", ["mgnet-r18", "=1+1", "$\\frac{1}$", "网络", "a | b", "x::y", "torchvision:resnet18(w='a')"]
)
def test_any_other_name_is_taken(name: str) -> None:
    check_name(name, kind="model")


def noise() -> object:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
    return from_tensors(images, [0, 1, 2, 0, 1, 2], name="noise")


def test_a_model_with_a_newline_in_its_name_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), name="a\n::error::b", size_px=8)
    with pytest.raises(UserError, match="expected a name on one line"):
        bench(Bench(models=(model,), data=noise(), steps=(1,)), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_model_that_is_called_a_formula_is_read_back_and_drawn(tmp_path: Path) -> None:
    from robustglimpse.store import read_results

    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), name="=HYPERLINK($\\frac{1}$)", size_px=8)
    results = bench(Bench(models=(model,), data=noise(), steps=(1,)), tmp_path)  # type: ignore[arg-type]
    assert ",'=HYPERLINK" in (tmp_path / "results.csv").read_text()
    back = read_results(tmp_path)
    assert back["model"].tolist() == results["model"].tolist() == [model.name] * 2
    assert figures.render(figures.figure4(back), "png")


def test_a_bar_takes_no_markup_from_a_name() -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    shown = io.StringIO()
    with Progress(TextColumn("{task.fields[note]}", markup=False), console=Console(file=shown)) as bar:
        bar.add_task("x", note="net[/b]")
    assert "net[/b]" in shown.getvalue()
