"""What early exits keep and cost: rules from hand-written confidences, and runs that can be killed."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from robustglimpse import cli, cost, evaluate
from robustglimpse.data import Dataset, from_tensors
from robustglimpse.exits import (
    POINT_COLUMNS,
    RULE_COLUMNS,
    THRESHOLDS,
    ExitStudy,
    exit_points,
    leave_at,
    study_exits,
    threshold_table,
)
from robustglimpse.models.wrapped import wrap
from robustglimpse.records import Classifier, UserError
from robustglimpse.report import figures
from robustglimpse.report.board import make_board
from robustglimpse.stats import mean_difference
from robustglimpse.store import Store, read_outcomes, read_results, read_run

# Four images at three exits: how sure each exit is, and whether it is right.
SURE = [[0.9, 0.6, 0.6, 0.6], [0.9, 0.8, 0.6, 0.6], [0.9, 0.9, 0.9, 0.6]]
RIGHT = [[True, False, True, False], [True, True, False, False], [False, True, True, False]]
GMACS = (1.0, 2.0, 4.0)


def cell_outcomes(sure: Any = SURE, right: Any = RIGHT) -> pd.DataFrame:
    """Return outcomes as a cell that judged every exit on one image keeps them, rows out of order."""
    rows = [
        {"index": i, "label": 3, "exit": t + 1, "confidence": s, "pred": 3 if right[t][i] else 5}
        for t, exits in enumerate(sure)
        for i, s in enumerate(exits)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.mark.parametrize(
    "threshold, left, right",
    [
        (0.5, [0, 0, 0, 0], [True, False, True, False]),
        (0.7, [0, 1, 2, 2], [True, True, True, False]),
        (0.85, [0, 2, 2, 2], [True, True, True, False]),
        (0.95, [2, 2, 2, 2], [False, True, True, False]),
    ],
)
def test_a_rule_leaves_where_an_exit_is_sure(threshold: float, left: list[int], right: list[bool]) -> None:
    found = leave_at(cell_outcomes(), threshold)
    assert found[0].tolist() == left
    assert found[1].tolist() == right


def results_of(store: Store, cells: dict[str, pd.DataFrame], **attack: Any) -> pd.DataFrame:
    """Return results of hand-written cells, "clean" and "attack", whose outcomes go into the store."""
    rows = []
    for kind, frame in cells.items():
        path = store.root / "outcomes" / f"{kind}.csv.gz"
        path.parent.mkdir(exist_ok=True)
        frame.to_csv(path, index=False)
        rows += [
            {
                "model": "m", "network": "m", "threshold": nan, "family": "mgnet", "dataset": "set",
                "kind": "clean" if kind == "clean" else "attack", "attack": "" if kind == "clean" else "pgd",
                "options": "", "norm": "linf", "eps": 0.1, "eps_text": "0.1", "steps": 4,
                "protocol": "standard", "exit": t + 1, "gmacs": gmacs, "cell": kind, "status": "ok", **attack,
            }
            for t, gmacs in enumerate(GMACS)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_table_of_thresholds_by_hand(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attacked = cell_outcomes([[0.6] * 4, [0.8, 0.6, 0.6, 0.8], [0.9] * 4], [[False] * 4] * 2 + RIGHT[2:])
    results = results_of(store, {"attack": attacked, "clean": cell_outcomes()})
    table = threshold_table(results, store, (0.7, 0.5))
    assert tuple(table.columns) == (*RULE_COLUMNS, "left_1", "left_2", "left_3")
    assert table[["condition", "threshold"]].to_numpy().tolist() == [
        ["clean", 0.5], ["clean", 0.7], ["attack", 0.5], ["attack", 0.7],
    ]  # fmt: skip
    assert table["against"].tolist() == ["", "", "last exit", "last exit"]
    # At 0.7 clean images leave at exits 1, 2, 3, 3; attacked ones at 2, 3, 3, 2.
    assert table["mean_gmacs"].tolist() == pytest.approx([1, 11 / 4, 1, 12 / 4])
    assert table["more_gmacs"].tolist()[2:] == pytest.approx([0, 1 / 4])
    assert table["more_gmacs"].isna().tolist() == [True, True, False, False]
    assert table["correct"].tolist() == [2, 3, 0, 2]
    assert set(table["n"]) == {4}
    assert table.loc[1, ["left_1", "left_2", "left_3"]].tolist() == [0.25, 0.25, 0.5]
    assert table.loc[3, ["left_1", "left_2", "left_3"]].tolist() == [0, 0.5, 0.5]
    interval = mean_difference(np.array([1, 2, 0, -2]) / 4)
    assert table.loc[3, ["more_low", "more_high"]].tolist() == pytest.approx(
        [4 * interval.low, 4 * interval.high]
    )


def test_a_rule_that_was_attacked_itself_is_told_beside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    both = results_of(store, {"clean": cell_outcomes(), "attack": cell_outcomes()})
    of_rule = pd.DataFrame(
        {"index": [3, 2, 1, 0], "label": 3, "exit": 1, "pred": [5, 5, 5, 3], "left_at": [3, 3, 1, 2]}
    )
    of_rule.to_csv(tmp_path / "outcomes" / "rule.csv.gz", index=False)
    ruled = both[both["kind"] == "attack"][:1].assign(
        model="m leaving at 0.7", threshold=0.7, cell="rule", gmacs=nan
    )
    table = threshold_table(pd.concat([ruled, both]), store, (0.7,))
    assert table["against"].tolist() == ["", "last exit", "rule"]
    told = table.iloc[2]
    # By index they leave at 2, 1, 3, 3: 2 + 1 + 4 + 4; clean at 1, 2, 3, 3.
    assert (told["mean_gmacs"], told["more_gmacs"], told["correct"]) == (11 / 4, 0, 1)
    assert told[["left_1", "left_2", "left_3"]].tolist() == [0.25, 0.25, 0.5]


def test_without_clean_images_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    store = Store(tmp_path)
    results = results_of(store, {"clean": cell_outcomes(), "attack": cell_outcomes()})
    failed = results.assign(status=results["status"].mask(results["kind"] == "clean", "failed"))
    table = threshold_table(failed, store, (0.7,))
    assert table["condition"].tolist() == ["attack"]
    assert table["more_gmacs"].isna().all()
    empty = threshold_table(results[:0], store, (0.7,))
    assert tuple(empty.columns) == RULE_COLUMNS


# Runs

STUDY = ExitStudy(
    (),
    thresholds=(0.12, 0.2),
    attacks=("pgd",),
    steps=(1,),
    limit=4,
    batch_size=2,
    device="cpu",
    sizes=(32, 64),
)


@pytest.fixture(scope="module")
def asked(mgnet: Classifier, ffnet: Classifier) -> ExitStudy:
    return replace(STUDY, models=(mgnet, ffnet))


@pytest.fixture(scope="module")
def straight(asked: ExitStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    study_exits(asked, out, command="test")
    return out


def test_a_study_leaves_figure_3s_points(asked: ExitStudy, straight: Path, mgnet: Classifier) -> None:
    results = study_exits(asked, straight, command="test")
    points = exit_points(results)
    assert tuple(points.columns) == POINT_COLUMNS
    told = points[["condition", "model", "size_px", "exit"]].to_numpy().tolist()
    assert told == [
        [condition, *point]
        for condition in ("clean", "attack")
        for point in (
            ["tiny-ffnet", 32, 1], ["tiny-ffnet", 64, 1],
            *(["tiny-mgnet", 64, k] for k in (1, 2, 3)),
        )
    ]  # fmt: skip
    architecture = mgnet.meta["architecture"]
    ours = points[(points["model"] == "tiny-mgnet") & (points["condition"] == "clean")]
    assert ours["gmacs"].tolist() == pytest.approx(cost.gmacs_per_exit(architecture, 64))
    sizes = points[(points["model"] == "tiny-ffnet") & (points["condition"] == "clean")]
    plain = replace(architecture, glimpses=1, downsample="1")
    assert sizes["gmacs"].tolist() == pytest.approx([cost.gmacs_per_exit(plain, s)[0] for s in (32, 64)])
    assert set(points["n"]) == {4}
    assert set(points.loc[points["condition"] == "attack", "protocol"]) == {"standard"}


def test_every_exit_is_judged_on_the_image_made_against_the_last(
    asked: ExitStudy, straight: Path, mgnet: Classifier, digits: Dataset
) -> None:
    import torch

    from robustglimpse.runner import Bench, plan_work

    frame = read_results(straight)
    rows = frame[(frame["model"] == "tiny-mgnet") & (frame["kind"] == "attack")].sort_values("exit")
    assert rows["judge"].tolist() == ["image", "image", "worst"]
    outcomes = Store(straight).outcomes(rows["cell"].iloc[0])
    bench = Bench((mgnet,), steps=(1,), limit=4, device="cpu")
    _, work = plan_work(bench, "cpu")
    assert work.plan is not None
    batch = next(work.dataset.batches(4))
    last, shown = evaluate.attack_images(mgnet, batch, work.plan, device="cpu")
    expected = evaluate.attack(mgnet, batch, work.plan, device="cpu")
    for name in ("pred", "first_success_step", "linf"):
        assert last[name].tolist() == expected[name].tolist()
    distance = (shown - batch.images.float() / 255).flatten(1).abs().amax(1)
    assert distance.tolist() == pytest.approx(last["linf"].tolist()), "the image is the one judged"
    exits = mgnet.exits(shown)
    assert outcomes["pred"].tolist()[:8] == exits[:2].argmax(2).flatten().tolist()
    assert outcomes["pred"].tolist()[8:] == last["pred"].tolist()
    sure = exits.softmax(2).amax(2).flatten()
    assert outcomes["confidence"].to_numpy() == pytest.approx(sure.numpy(), abs=1e-4)
    assert rows["correct"].tolist() == [
        int((outcomes.loc[outcomes["exit"] == k, "pred"] == batch.labels.numpy()).sum()) for k in (1, 2, 3)
    ]
    assert torch.isfinite(exits).all()


def test_the_papers_protocol_shows_the_last_iterate(mgnet: Classifier, tmp_path: Path) -> None:
    asked = replace(STUDY, models=(mgnet,), protocols=("paper",))
    results = study_exits(asked, tmp_path)
    row = results[(results["kind"] == "attack") & (results["exit"] == 3)].iloc[0]
    assert row["judge"] == "last"
    outcomes = Store(tmp_path).outcomes(row["cell"])
    assert outcomes["pred"].tolist() == outcomes["pred_at_1"].tolist()
    assert row["correct"] == (outcomes["pred"] == outcomes["label"])[outcomes["exit"] == 3].sum()


def test_a_study_of_several_protocols_has_one_point_for_each(mgnet: Classifier, tmp_path: Path) -> None:
    asked = replace(STUDY, models=(mgnet,), protocols=("standard", "adaptive"))
    points = exit_points(study_exits(asked, tmp_path))
    attacked = points[points["condition"] == "attack"]
    assert sorted(zip(attacked["protocol"], attacked["exit"], strict=True)) == [
        (protocol, k) for protocol in ("adaptive", "standard") for k in (1, 2, 3)
    ]


def test_the_gate_and_the_report_read_a_study(straight: Path) -> None:
    frame = read_results(straight)
    assert {o.cell["model"] for o in read_outcomes(straight)} == {
        "tiny-mgnet",
        "tiny-ffnet",
        "tiny-ffnet at 32 px",
    }
    board = make_board([read_run(straight)])
    assert [c.kind for c in board.comparisons] == ["clean", "attack"]
    assert len(frame[frame["status"] == "ok"]) == 2 * (3 + 1 + 1)


def test_a_finished_study_does_nothing_again(
    asked: ExitStudy, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing was missing")

    monkeypatch.setattr(evaluate, "attack_images", refuse)
    monkeypatch.setattr(evaluate, "judge_clean", refuse)
    before = read_results(straight)
    study_exits(asked, straight, command="again")
    pd.testing.assert_frame_equal(read_results(straight), before)


def test_a_killed_study_goes_on_to_the_same_outcomes(
    asked: ExitStudy, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = evaluate.attack_images, [2]

    def dies(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(*arguments, **options)

    monkeypatch.setattr(evaluate, "attack_images", dies)
    with pytest.raises(KeyboardInterrupt):
        study_exits(asked, tmp_path, command="test")
    monkeypatch.setattr(evaluate, "attack_images", whole)
    study_exits(asked, tmp_path, command="test")
    for path in (straight / "outcomes").iterdir():
        assert (tmp_path / "outcomes" / path.name).read_bytes() == path.read_bytes()


def test_rules_are_attacked_at_every_threshold(mgnet: Classifier, tmp_path: Path) -> None:
    asked = replace(STUDY, models=(mgnet,), against_rule=True, limit=4)
    results = study_exits(asked, tmp_path)
    ruled = results[results["threshold"].notna()]
    assert ruled["model"].tolist() == ["tiny-mgnet leaving at 0.12", "tiny-mgnet leaving at 0.2"]
    assert set(ruled["surrogate"]) == {"as-trained+last-exit+mean-exits"}
    assert set(exit_points(results)["model"]) == {"tiny-mgnet"}
    table = threshold_table(results, Store(tmp_path), asked.thresholds)
    assert table["against"].tolist() == ["", "", "last exit", "last exit", "rule", "rule"]
    assert table["correct"].tolist()[4:] == ruled["correct"].tolist()
    assert not any(isnan(value) for value in table["mean_gmacs"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"thresholds": (0.5, 1.5)}, "threshold must be a confidence from 0 to 1, got 1.5"),
        ({"thresholds": ()}, "expected a threshold or more"),
        ({"sizes": (0,)}, "sizes must be at least 1 px, got 0"),
        ({"attacks": ("pdg",)}, "did you mean 'pgd'?"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    asked: ExitStudy, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        study_exits(replace(asked, **change), tmp_path / "out")
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


# The command


def test_the_command_writes_tables_and_figures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (
        "exits --model mgnet-r18 --model ffnet-r18 --sizes 32,64 --attack pgd --steps 1 --thresholds 0.8,0.99"
        f" --limit 4 --device cpu --out {out}"
    )
    done = CliRunner().invoke(cli.app, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    points, rules = pd.read_csv(out / "figure3.csv"), pd.read_csv(out / "thresholds.csv")
    assert tuple(points.columns) == POINT_COLUMNS
    assert len(points) == 2 * (3 + 2)
    assert rules[["condition", "threshold"]].to_numpy().tolist() == [
        [condition, threshold] for condition in ("clean", "attack") for threshold in (0.8, 0.99)
    ]
    assert (rules[["left_1", "left_2", "left_3"]].sum(axis=1) - 1).abs().max() < 1e-9
    for name in ("figure3", "thresholds"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert f"{out / name}.png" in done.stdout
    assert "| ffnet-r18 | 32 px | 1    |" in done.stdout


def test_a_model_with_one_exit_has_no_thresholds(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = f"exits --model ffnet-r18 --limit 2 --device cpu --out {out}"
    done = CliRunner().invoke(cli.app, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (out / "figure3.png").exists()
    assert not (out / "thresholds.csv").exists()


def test_a_models_notes_are_told_once_whatever_the_sizes(
    ffnet: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = replace(ffnet, meta={**ffnet.meta, "notes": ("its weights are random",)})
    study_exits(ExitStudy((noted,), sizes=(32, 48), limit=1, device="cpu"), tmp_path)
    assert capsys.readouterr().err.count("its weights are random\n") == 1


class Red(nn.Module):
    """Tells how red an image is, in five steps; one layer of four channels, to have something to count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].mean((1, 2))[:, None]
        return -((red * 4 - torch.arange(5)) ** 2) + 0 * self.layer(x).mean((1, 2, 3))[:, None]


def test_a_model_from_outside_has_one_exit_and_no_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = wrap(Red(), name="red", size_px=64)
    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 64, 64)
    data = from_tensors(images, torch.arange(5), name="reds")
    asked = replace(STUDY, models=(red,), data=data, against_rule=True)
    results = study_exits(asked, tmp_path)
    assert (results["status"] == "ok").all()
    points = exit_points(results)
    assert points[["condition", "size_px", "exit", "correct"]].to_numpy().tolist()[:2] == [
        ["clean", 32, 1, 4], ["clean", 64, 1, 4],
    ]  # fmt: skip
    assert threshold_table(results, Store(tmp_path), asked.thresholds).empty
    assert "red: it has one exit, so there is no rule to attack" in capsys.readouterr().err
    counted = [cost.gmacs_of(red, size)[0] for size in (32, 64)]
    assert counted == pytest.approx([12 * 32**2 / 1e9, 12 * 64**2 / 1e9])


def test_a_figure_of_models_without_products_has_an_axis() -> None:
    points = pd.DataFrame([dict.fromkeys(POINT_COLUMNS, "")]).assign(
        model="m", family="", condition="clean", exit=1, size_px=8, gmacs=0.0, accuracy=0.5, ci_low=0.4,
        ci_high=0.6,
    )  # fmt: skip
    figures.render(figures.figure3(points, pd.DataFrame(columns=list(RULE_COLUMNS))), "png")


def test_the_commands_thresholds_are_those_of_python() -> None:
    import typer

    group = typer.main.get_command(cli.app)
    option = next(p for p in group.commands["exits"].params if p.name == "thresholds")  # type: ignore[attr-defined]
    assert cli._confidences(str(option.default)) == THRESHOLDS


@pytest.mark.parametrize("text", ["0.5,often", "", "0.5,"])
def test_thresholds_are_numbers(text: str) -> None:
    with pytest.raises(UserError, match="try --thresholds"):
        cli._confidences(text)
