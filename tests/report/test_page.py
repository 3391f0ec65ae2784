"""The report from directories written by hand: every number, every hole, every contradiction."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
from test_frames import Threshold
from written_runs import Grid, bench_run, first_right, results_csv, sweep_run

from robustglimpse import cli, runner
from robustglimpse.data import from_tensors
from robustglimpse.models.sources import wrap
from robustglimpse.records import UserError
from robustglimpse.report import page
from robustglimpse.report.board import Board, make_board
from robustglimpse.report.tables import percent
from robustglimpse.store import read_run

VOID = {"meta", "link", "br", "input", "hr", "img"}
COMMITTED = [path.parent for path in sorted((Path(__file__).parents[2] / "results").glob("*/run.json"))]


class Page(HTMLParser):
    """A page read strictly: every element closed in order, with its ids, links and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        assert len(named) == len(attrs), (tag, attrs)
        self.tags.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named[name] for name in ("href", "src") if name in named]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def board_of(*roots: Path) -> Board:
    return make_board([read_run(root) for root in roots])


def rows_of(text: str) -> list[list[str]]:
    """Return the headline table's lines without their group lines, blanks joined."""
    return [[" ".join(cell.split()) for cell in row] for row in Page(text).tables[0][1:] if len(row) > 1]


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return bench_run(tmp_path / "bench")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return sweep_run(tmp_path / "sweep")


# What the page is


def check_page(text: str) -> Page:
    read = Page(text)
    assert text.startswith("<!doctype html>")
    assert len(text.encode()) <= 2_000_000
    assert len(set(read.ids)) == len(read.ids), "ids are unique"
    for link in read.links:
        assert link.startswith("data:") or (link[1:] in read.ids and link[0] == "#"), link[:80]
    assert not re.search(r"https?://|@import|url\((?!#)", text), "nothing from outside"
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), "no handlers in attributes"
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup", "colgroup")
    assert sum(tag == "caption" for tag, _ in read.tags) == len(read.tables)
    return read


def test_the_page_is_whole_and_offline(bench: Path, sweep: Path) -> None:
    text = page.to_html(board_of(bench, sweep))
    read = check_page(text)
    assert sum(tag == "svg" for tag, _ in read.tags) > 5
    assert text == page.to_html(board_of(bench, sweep)), "the same bytes for the same runs"


@pytest.mark.parametrize("root", COMMITTED, ids=lambda path: path.name)
def test_committed_results_have_a_page(root: Path) -> None:
    check_page(page.to_html(board_of(root)))


def test_text_stands_out_from_its_ground_in_both_schemes() -> None:
    css = Path(page.__file__).with_name("page.css").read_text()
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part)) for part in css.split("@media")[:2])

    def luminance(colour: str) -> float:
        levels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in (light, dark):
        series = [name for name in scheme if name.startswith("--s-")]
        assert len(series) == 7
        pairs = [(name, "--bg") for name in ("--ink", "--muted", "--accent", *series)]
        pairs += [("--ink", "--heat"), ("--ink", "--warn-bg"), ("--warn", "--bg"), ("--muted", "--soft")]
        for ink, ground in pairs:
            low, high = sorted((luminance(scheme[ink]), luminance(scheme[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# Numbers


def test_every_number_of_the_headline_is_that_of_results_csv(bench: Path) -> None:
    results = results_csv(bench).fillna({"protocol": "", "judge": ""})
    last = results[(results["kind"] == "clean") | (results["steps"] == 4)]
    last = last[~((last["protocol"] == "paper") & (last["judge"] == "worst"))]
    expected = {
        (r.model, percent(r.accuracy, r.ci_low, r.ci_high), f"{r.correct:.0f} of {r.total:.0f}", r.cell[:8])
        for r in last[last["status"] == "ok"].itertuples()
    }
    shown = rows_of(page.to_html(board_of(bench)))
    assert {(r[0], r[1], r[6], r[7]) for r in shown if r[1] != "-"} == expected
    assert len(shown) == len(expected) + 1 == 10
    clean = {r.model: f"{100 * r.accuracy:.1f}" for r in results[results["kind"] == "clean"].itertuples()}
    assert all(row[4] == clean[row[0]] for row in shown if row[1] != "-")
    back = pd.read_csv(io.StringIO(page.to_csv(board_of(bench)))).set_index("cells")
    for r in last[last["status"] == "ok"].itertuples():
        assert back.loc[r.cell, ["accuracy", "ci_low", "ci_high"]].tolist() == [
            r.accuracy, r.ci_low, r.ci_high
        ]  # fmt: skip


def test_none_left_of_n_shows_its_upper_bound(bench: Path) -> None:
    text = page.to_html(board_of(bench))
    row = next(row for row in rows_of(text) if "0 of 100" in row)
    assert row[:2] == ["c", "0.0 [<= 3.7]"]
    assert not re.search(r"0\.0 ?(%|</span></td>)", text)


def test_ties_stand_in_for_ranks(bench: Path) -> None:
    found = {c.protocol: {e.model: e.ties for e in c.entries} for c in board_of(bench).comparisons}
    assert found["standard"] == {"a": "A", "b": "A", "c": "B"}
    assert found["paper"] == {"a": "A", "b": "A", "c": "A"}
    assert found["adaptive"] == {"c": ""}


def test_a_failed_cell_is_a_hole_with_its_error(bench: Path) -> None:
    text = page.to_html(board_of(bench))
    rows = [row for row in rows_of(text) if row[1] == "-"]
    assert [row[0] for row in rows] == ["cno number: RuntimeError: out of <memory>"]
    assert "No number for c, pgd 4/255, adaptive: RuntimeError: out of &lt;memory&gt;" in text
    assert r"- (RuntimeError: out of \<memory>)" in page.to_markdown(board_of(bench))


def test_a_sweep_is_quoted_by_its_mean_and_each_exit_by_its_cost(sweep: Path) -> None:
    board = board_of(sweep)
    comparison = board.comparisons[-1]
    # Means of 80, 75 less (3, 6) and less (8, 11).
    assert [(e.model, e.exit, round(100 * e.accuracy, 6)) for e in comparison.entries] == [
        ("a", 3, 73.0), ("b", 1, 53.0)
    ]  # fmt: skip
    assert [e.ties for e in comparison.entries] == ["A", "B"]
    average = board.sweeps[0].table.values.set_index(["model", "glimpses"])["average"]
    assert average["a", 3] == pytest.approx(comparison.entries[0].accuracy)
    # 100 images: 69 right in all four cells, 3 + 2 + 3 in some of them.
    assert comparison.entries[0].low < 0.65 < 0.8 < comparison.entries[0].high
    assert [exits.condition for exits in board.exits] == ["clean images", "2 corruptions at 2 severities"]
    text = page.to_html(board)
    read = check_page(text)
    heat = next(table for table in read.tables if "Fog" in str(table))
    assert heat[2][0] == "b"
    assert heat[-1][:5] == ["a", "3", "0.750", "90.0", "73.0"]


def test_an_unfinished_sweep_has_no_mean(tmp_path: Path) -> None:
    board = board_of(sweep_run(tmp_path / "sweep", last_severity=1))
    assert [(e.error, e.accuracy != e.accuracy) for e in board.comparisons[-1].entries] == [
        ("3 of 4 cells", True)
    ] * 2


def test_every_cell_leads_to_its_command(bench: Path) -> None:
    read = check_page(page.to_html(board_of(bench)))
    assert {row[-1] for row in read.tables[0][1:] if len(row) > 1} == {"1"}
    cells = next(table for table in read.tables if table[0][0] == "Cell")
    assert {row[0] for row in cells[1:]} == set(results_csv(bench)["cell"])


def test_the_csv_travels_in_the_page(bench: Path) -> None:
    text = page.to_html(board_of(bench))
    content = unquote(
        re.search(r'href="data:text/csv;charset=utf-8,([^"]*)" download="results.csv"', text)[1]
    )
    back = list(csv.DictReader(io.StringIO(content)))
    listed = results_csv(bench)
    assert len(back) == len(listed)
    ours = {(r["cell"], r["judge"], r["steps"]): r["accuracy"] for r in back if r["accuracy"]}
    theirs = listed[listed["status"] == "ok"].fillna({"judge": ""})
    assert {(r.cell, r.judge, str(int(r.steps))): str(r.accuracy) for r in theirs.itertuples()} == ours


# What names may hold


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    name = "</svg><script>alert('x')</script>\" onload=\"$\\frac$ & \n| 100 %_"
    grid = Grid(tmp_path / "run")
    grid.add(name, first_right(90), family="other")
    grid.attack(name, "standard", first_right(80), first_right(70), family="other")
    grid.attack(name, "adaptive", error="<img src=x onerror=alert(1)>")
    board = board_of(grid.close("robustglimpse bench --model '<b>'"))
    text = page.to_html(board)
    check_page(text)
    assert text.count("<script") == 1
    assert "<img" not in text
    assert "alert(&#39;x&#39;)" in text
    lines = [line for line in page.to_markdown(board).splitlines() if not line.startswith("    ")]
    assert not re.search(r"(?<!\\)<[A-Za-z/]", "\n".join(lines))
    assert sum(r"\<script>alert('x')" in line and r"\| 100 %_" in line for line in lines) == 4
    assert r"\$\textbackslash{}frac\$ \& | 100 \%\_" in " ".join(page.to_latex(board).split())


# Several attacks of one name


def test_two_calls_of_one_attack_are_two_comparisons(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "run")
    grid.add("a", first_right(95))
    grid.attack("a", "standard", first_right(90), first_right(80))
    grid.attack("a", "standard", first_right(70), first_right(60), options="loss='dlr'")
    board = board_of(grid.close())
    told = {c.threat: [e.correct for e in c.entries] for c in board.comparisons if c.kind == "attack"}
    assert told == {
        "PGD, L∞ 4/255, steps of 1/255, after 4 steps": [80],
        "PGD, L∞ 4/255, steps of 1/255, loss='dlr', after 4 steps": [60],
    }
    assert len(board.curves) == 2
    text = page.to_html(board)
    cells = next(table for table in check_page(text).tables if table[0][0] == "Cell")
    assert {row[1] for row in cells[1:]} == {
        "a, clean", "a, pgd 4/255, standard", "a, pgd(loss='dlr') 4/255, standard"
    }  # fmt: skip


def test_a_crashed_call_is_no_other_one_that_went_well(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "run")
    grid.attack("a", "standard", first_right(90), first_right(80), options="loss='dlr'")
    grid.attack("a", "standard", error="RuntimeError: out of memory")
    board = board_of(grid.close())
    assert len(board.failed) == 1
    holes = {c.threat: [e.error for e in c.entries] for c in board.comparisons}
    assert holes["PGD, L∞ 4/255, steps of 1/255"] == ["RuntimeError: out of memory"]


def test_a_results_csv_of_before_the_column_lends_its_crashes_the_others_options(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "run")
    grid.attack("a", "standard", first_right(90), first_right(80), options="loss='dlr'")
    grid.attack("b", "standard", options="loss='dlr'", error="RuntimeError: out of memory")
    root = grid.close()
    results_csv(root).drop(columns="options").to_csv(root / "results.csv", index=False)
    for path in (root / "cells").iterdir():
        path.write_text(path.read_text().replace('"options": "loss=\'dlr\'"', '"options": ""'))
    (comparison,) = board_of(root).comparisons
    assert [(e.model, e.error) for e in comparison.entries] == [
        ("a", ""), ("b", "RuntimeError: out of memory")
    ]  # fmt: skip


def test_a_sweep_says_what_it_tried_and_ties_who_fell_at_its_own_eps(tmp_path: Path) -> None:
    means = torch.arange(40) / 40 + 0.0125
    data = from_tensors(means[:, None, None, None].expand(40, 3, 8, 8), (means > 0.5).long(), name="flat")
    models = tuple(wrap(Threshold(at), name=f"at {at}", classes=2, size_px=8) for at in (0.5, 0.9))
    asked = runner.Bench(
        models=models, data=data, steps=(4,), curve="eps", eps="1/255,128/255", step_size="32/255"
    )
    runner.bench(asked, tmp_path / "run")
    small, large = (c for c in board_of(tmp_path / "run").comparisons if c.kind == "attack")
    assert small.threat == "PGD, L∞ 1/255, steps of 0.25/255, swept over 1/255, 128/255, after 4 steps"
    # At 1/255 only those fall that "at 0.9" has wrong anyway, 16 of 40; at 128/255 all but its darkest 16.
    told = [[(e.model, e.correct, e.ties) for e in c.entries] for c in (small, large)]
    assert told == [[("at 0.5", 40, "A"), ("at 0.9", 24, "B")], [("at 0.9", 16, "A"), ("at 0.5", 0, "B")]]


# Several runs


def test_a_cell_of_two_runs_is_told_once(bench: Path, tmp_path: Path) -> None:
    other = Grid(tmp_path / "other")
    other.add("a", first_right(95), family="ffnet", batch_size=8)
    other.add("d", first_right(50))
    board = board_of(bench, other.close())
    clean = {e.model: e for e in board.comparisons[0].entries}
    assert list(clean) == ["c", "a", "b", "d"]
    assert clean["a"].runs == ("bench", "other")
    assert clean["a"].flags == ()
    assert clean["d"].ties == "B"
    assert page.title(board) == "Robustness leaderboard"
    assert [row[7] for row in rows_of(page.to_html(board)) if row[0] == "a"][:1] == ["bench, other"]


def test_runs_that_contradict_each_other_are_flagged(bench: Path, tmp_path: Path) -> None:
    other = Grid(tmp_path / "other")
    other.add("a", first_right(93), family="ffnet")
    other.add("b", first_right(70), weights="b" * 64)
    board = board_of(bench, other.close())
    flagged = {(e.model, e.correct): e.flags for e in board.comparisons[0].entries if e.flags}
    differ = ("the same cell came out differently: bench: 95 of 100; other: 93 of 100",)
    assert flagged[("a", 95)] == flagged[("a", 93)] == differ
    assert flagged["b (aaaaaaaa)", 94] == flagged["b (bbbbbbbb)", 70] == ("one name, several weights",)
    assert differ[0] in page.to_html(board)


def test_a_cell_that_another_run_finished_is_no_hole(bench: Path, tmp_path: Path) -> None:
    other = Grid(tmp_path / "other")
    other.attack("c", "adaptive", first_right(5), first_right(1))
    board = board_of(bench, other.close())
    assert not len(board.failed)
    assert [e.correct for c in board.comparisons if c.protocol == "adaptive" for e in c.entries] == [1]


# Directories as they come


def test_a_run_under_way_says_so(bench: Path) -> None:
    key = results_csv(bench)["cell"].iloc[0]
    (bench / "cells" / f"{key}.json").unlink()
    (bench / "results.csv").unlink()
    board = board_of(bench)
    assert any("results.csv is not written yet: 8 cells are finished" in note for note in board.notes)
    assert any("1 of 10 cells asked for are not there yet" in note for note in board.notes)
    assert board.failed["error"].tolist() == ["RuntimeError: out of <memory>"], "a crash is told at once"


def test_a_results_csv_alone_has_numbers_without_ties(bench: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.csv").write_bytes((bench / "results.csv").read_bytes())
    board = board_of(alone)
    assert {e.ties for c in board.comparisons for e in c.entries} == {""}
    assert "There is no run.json" in page.to_html(board)
    numbers = [[e.accuracy for e in c.entries if not e.error] for c in board.comparisons]
    assert numbers == [[e.accuracy for e in c.entries if not e.error] for c in board_of(bench).comparisons]


def test_a_results_csv_that_differs_from_its_cells_is_noted(bench: Path) -> None:
    path = bench / "results.csv"
    path.write_text(path.read_text().replace(",95.0,100.0,", ",96.0,100.0,", 1))
    assert any("1 rows of results.csv differ" in note for note in board_of(bench).notes)


def test_reading_writes_nothing(bench: Path, tmp_path: Path) -> None:
    before = sorted(bench.rglob("*"))
    page.to_html(board_of(bench))
    assert sorted(bench.rglob("*")) == before
    with pytest.raises(UserError, match="no results there"):
        read_run(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_page_too_large_leaves_out_what_is_elsewhere(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = board_of(bench)
    whole = len(page.to_html(board).encode())
    monkeypatch.setattr(page, "LIMIT_BYTES", whole - 1)
    text = page.to_html(board)
    assert "too many to carry along" in text
    check_page(text)
    monkeypatch.setattr(page, "LIMIT_BYTES", len(text.encode()) - 1)
    text = page.to_html(board)
    assert "too many to list here" in text
    check_page(text)
    monkeypatch.setattr(page, "LIMIT_BYTES", 1000)
    with pytest.raises(UserError, match="report fewer runs"):
        page.to_html(board)


def test_a_section_has_its_place(bench: Path) -> None:
    made = page.Section("matrix", "Exit matrix", "<p>hand-made</p>")
    text = page.to_html(board_of(bench), [lambda _: made, lambda _: None])
    assert '<a href="#matrix">Exit matrix</a>' in text
    assert "<p>hand-made</p>" in text
    check_page(text)


# The command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["robustglimpse", "report", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise


def test_report_writes_the_formats_asked_for(
    bench: Path,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "bench")
    assert capsys.readouterr().out == "bench/report.html\n"
    run(monkeypatch, "bench", "sweep", "--format", "md,tex,csv,html", "--out", "tables/run.html")
    assert capsys.readouterr().out.split() == [f"tables/run.{name}" for name in ("md", "tex", "csv", "html")]
    text = (tmp_path / "tables" / "run.md").read_text()
    assert "| a     | 80.0 [71.1, 86.7]" in text
    assert "robustglimpse corruptions --model a" in text
    tex = (tmp_path / "tables" / "run.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    assert r"c & 0.0 [$\leq$ 3.7] & B & 96.0 & 0.250 \\" in tex
    assert len(pd.read_csv(tmp_path / "tables" / "run.csv")) == 10 + 4
    run(monkeypatch, "bench", "sweep", "--out", "tables")
    check_page((tmp_path / "tables" / "report.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["empty"], "no results there"),
        (["bench", "empty"], "empty: no results there"),
        (["bench", "--format", "pdf"], "unknown format 'pdf'; choose from html, md, tex, csv"),
    ],
)
def test_report_refuses_in_one_line(
    arguments: list[str],
    says: str,
    bench: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert not list((tmp_path / "empty").iterdir())


def test_a_report_loads_no_torch_and_its_help_no_pandas(bench: Path) -> None:
    script = (
        "import sys; sys.argv = ['robustglimpse', 'report', *sys.argv[1:]]\n"
        "from robustglimpse.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules\n"
        "assert ('pandas' in sys.modules) == ('--help' not in sys.argv)\n"
    )
    for arguments in (["--help"], [str(bench)]):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
