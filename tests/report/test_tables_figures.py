"""Tables and figures from hand-written rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from robustglimpse.records import RESULT_COLUMNS
from robustglimpse.report import figures, tables
from robustglimpse.stats import wilson


def row(model: str, protocol: str, judge: str, steps: int, correct: int, **other: Any) -> dict[str, Any]:
    estimate = wilson(correct, 100)
    family, backbone = model.split("-")
    return {
        **dict.fromkeys(RESULT_COLUMNS, None),
        "model": model,
        "family": family,
        "backbone": {"r18": "resnet18", "r50": "resnet50"}[backbone],
        "dataset": "set",
        "n": 100,
        "kind": "attack" if protocol else "clean",
        "attack": "pgd" if protocol else "",
        "norm": "linf",
        "eps_text": "4/255",
        "protocol": protocol,
        "judge": judge,
        "steps": steps,
        "exit": 1,
        "correct": correct,
        "total": 100,
        "accuracy": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "status": "ok",
        **other,
    }


ROWS = pd.DataFrame(
    [
        row("mgnet-r18", "", "", 0, 94),
        row("mgnet-r18", "standard", "worst", 1, 80),
        row("mgnet-r18", "standard", "worst", 4, 0),
        row("mgnet-r18", "paper", "last", 1, 91),
        row("mgnet-r18", "paper", "worst", 1, 89),
        row("ffnet-r18", "", "", 0, 98),
        row("ffnet-r18", "standard", "worst", 1, 70),
        row("ffnet-r50", "", "", 0, 99),
        row("ffnet-r50", "standard", "worst", 1, 60),
        row("ffnet-r50", "standard", "worst", 4, 50, status="failed", accuracy=None),
    ]
)


def test_a_protocol_is_quoted_by_its_own_verdict_and_the_last_exit() -> None:
    earlier = pd.DataFrame([row("mgnet-r18", "", "", 0, 90, exit=0)])
    rows = tables.headline(pd.concat([earlier, ROWS]))
    quoted = set(zip(rows["model"], rows["protocol"], rows["judge"], rows["correct"], strict=True))
    assert ("mgnet-r18", "paper", "last", 91) in quoted
    assert ("mgnet-r18", "paper", "worst", 89) not in quoted
    assert ("mgnet-r18", "", "", 90) not in quoted


def test_steps_table_has_a_line_per_model_and_protocol() -> None:
    lines = tables.steps_table(ROWS).splitlines()
    assert len(lines) == 2 + 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "attack", "protocol", "clean", "1 step", "4 steps"]
    assert [c[0] for c in cells[2:]] == ["ffnet-r18", "mgnet-r18", "mgnet-r18", "ffnet-r50"]
    assert [c[2] for c in cells[2:]] == ["standard", "paper", "standard", "standard"]
    # 80 of 100: Wilson's interval is 0.7112 to 0.8666.
    assert cells[4][4] == "80.0 [71.1, 86.7]"
    # Nothing left standing of 100: the bound is z^2 / (n + z^2) = 3.7 %.
    assert cells[4][5] == "0.0 [<= 3.7]"
    # A crashed cell is a hole.
    assert cells[5][5] == "-"


def test_steps_table_has_a_line_per_exit_where_several_were_judged() -> None:
    rows = pd.DataFrame(
        [
            *(row("mgnet-r18", "", "", 0, 90 + k, exit=k) for k in (1, 2)),
            *(row("mgnet-r18", "standard", "worst", 1, 80 + k, exit=k) for k in (1, 2)),
        ]
    )
    lines = [line.split("|")[1:-1] for line in tables.steps_table(rows).splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["model", "exit", "attack", "protocol", "clean", "1 step"]
    assert [line[1].strip() for line in lines[2:]] == ["1", "2"]
    assert [line[4].split()[0] for line in lines[2:]] == ["91.0", "92.0"]
    assert [line[5].split()[0] for line in lines[2:]] == ["81.0", "82.0"]


def test_figure4_draws_a_panel_per_backbone_and_a_line_per_model_and_protocol() -> None:
    figure = figures.figure4(ROWS)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["ResNet-18", "ResNet-50"]
    labels = [line.get_label() for line in panels[0].get_lines()]
    assert labels == ["FF-Net, standard", "MGNet, paper", "MGNet, standard"]
    standard = panels[0].get_lines()[2]
    assert list(standard.get_xdata()) == [0, 1, 4]
    assert list(standard.get_ydata()) == pytest.approx([94, 80, 0])
    assert len(panels[0].collections) == 3, "each line has its interval band"


@pytest.mark.parametrize(("file_format", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_renders_to_the_same_bytes_twice(file_format: str, magic: bytes) -> None:
    content = figures.render(figures.figure4(ROWS), file_format)
    assert content.startswith(magic)
    assert content == figures.render(figures.figure4(ROWS), file_format)
