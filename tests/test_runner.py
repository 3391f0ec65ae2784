"""The grid: done cells stay done, killed ones go on, a crash is a hole."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from robustglimpse import evaluate, from_tensors, runner, wrap
from robustglimpse.attacks import ATTACKS
from robustglimpse.records import OUTCOME_COLUMNS, RESULT_COLUMNS, UserError
from robustglimpse.registry import parse_call
from robustglimpse.report.tables import eps_curve, eps_table, steps_table
from robustglimpse.runner import Bench, bench, choose_device, radii_of, steps_unused
from robustglimpse.store import read_outcomes, read_results

MODEL = "mgnet-r18"
SMALL = Bench(
    (MODEL,), steps=(1, 3), protocols=("standard", "paper"), limit=12, batch_size=4, device="cpu", eps="2/255"
)
UNSTABLE = ["run", "seconds"]  # where and how long: the only columns that may differ between runs


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    bench(SMALL, out, command="test")
    return out


def same_results(left: Path, right: Path) -> None:
    frames = [read_results(path).drop(columns=UNSTABLE) for path in (left, right)]
    pd.testing.assert_frame_equal(*frames)
    names = sorted(p.name for p in (left / "outcomes").iterdir())
    assert names == sorted(p.name for p in (right / "outcomes").iterdir())
    for name in names:
        assert (left / "outcomes" / name).read_bytes() == (right / "outcomes" / name).read_bytes()


def test_a_run_leaves_a_tidy_table(straight: Path) -> None:
    frame = read_results(straight)
    assert tuple(frame.columns) == ("run", *RESULT_COLUMNS)
    # One clean row; standard: worst at two counts; paper: last and worst at two counts.
    assert len(frame) == 1 + 2 + 4
    assert frame["accuracy"].between(0, 1).all()
    assert (frame["ci_low"] <= frame["accuracy"]).all()
    assert (frame["accuracy"] <= frame["ci_high"]).all()
    assert set(frame["total"]) == {12}
    assert set(frame["n_total"]) == {1000}
    clean = frame[frame["kind"] == "clean"].iloc[0]
    attacked = frame[frame["kind"] == "attack"]
    assert (attacked["accuracy"] <= clean["accuracy"]).all()
    standard = attacked[attacked["protocol"] == "standard"].set_index("steps")["accuracy"]
    assert standard[3] <= standard[1]
    # In normalised pixels the same figure is a ball 4.4 times smaller.
    paper = attacked[attacked["protocol"] == "paper"]["eps"]
    assert set(paper) == {2 / 255}


def test_outcomes_tell_of_every_sample(straight: Path) -> None:
    frame = read_results(straight)
    for path in (straight / "outcomes").iterdir():
        outcomes = pd.read_csv(path)
        assert tuple(outcomes.columns)[: len(OUTCOME_COLUMNS)] == OUTCOME_COLUMNS
        assert outcomes["index"].tolist() == list(range(12))
    assert len(list((straight / "outcomes").iterdir())) == 3
    assert frame["forwards"].min() >= 12


def test_a_finished_run_does_nothing_again(straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing was missing")

    monkeypatch.setattr(evaluate, "attack", refuse)
    monkeypatch.setattr(evaluate, "judge_clean", refuse)
    before = read_results(straight)
    bench(SMALL, straight, command="again")
    pd.testing.assert_frame_equal(read_results(straight), before)


def test_long_attacks_have_one_row_by_their_worst_iterate(tmp_path: Path) -> None:
    asked = replace(SMALL, attacks=("apgd(steps=2)", "square(steps=3)"), limit=4, steps=(1, 3))
    frame = bench(asked, tmp_path)
    attacked = frame[frame["kind"] == "attack"]
    assert attacked[["attack", "protocol", "judge", "steps"]].to_numpy().tolist() == [
        ["apgd", "paper", "worst", 2],
        ["apgd", "standard", "worst", 2],
        ["square", "paper", "worst", 3],
        ["square", "standard", "worst", 3],
    ]
    table = steps_table(frame)
    assert table.count("| apgd 2/255") == table.count("| square 2/255") == 2, "paper's last verdict aside"
    # What the gate and pandas read is what the rows say.
    for outcome in read_outcomes(tmp_path):
        rows = frame[
            (frame["seed"] == outcome.cell["seed"]) & (frame["protocol"] == outcome.cell["protocol"])
        ]
        counts = {int(curve.is_correct.sum()) for curve in outcome.curves}
        assert counts <= set(rows["correct"])


@pytest.mark.parametrize("calls", [1, 4])
def test_a_killed_run_goes_on_to_the_same_rows(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    whole, left = evaluate.attack, [calls]

    def dies(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(*arguments, **options)

    monkeypatch.setattr(evaluate, "attack", dies)
    with pytest.raises(KeyboardInterrupt):
        bench(SMALL, tmp_path, command="test")
    left[0] = 6 - calls  # two cells of three batches: the finished ones are not run again
    bench(SMALL, tmp_path, command="test")
    assert left[0] == 0
    same_results(straight, tmp_path)


def test_cells_in_another_order_give_the_same_rows(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = runner.plan_work
    monkeypatch.setattr(runner, "plan_work", lambda *a, **k: reversed(list(plan(*a, **k))))
    bench(SMALL, tmp_path, command="test")
    same_results(straight, tmp_path)


def test_beside_adaptive_standard_makes_as_many_tries_too(tmp_path: Path) -> None:
    both = replace(SMALL, protocols=("standard", "paper", "adaptive"), attacks=("pgd", "fgsm"), limit=4)
    results = bench(both, tmp_path, command="test")
    attacked = results[(results["kind"] == "attack") & (results["attack"] == "pgd")]
    tried = attacked[["protocol", "restarts"]].drop_duplicates()
    assert sorted(map(tuple, tried.to_numpy().tolist())) == [
        ("adaptive", 1), ("paper", 1), ("standard", 1), ("standard", 3),
    ]  # fmt: skip
    worst = attacked[attacked["protocol"] == "standard"].set_index(["restarts", "steps"])["correct"]
    assert (worst[3] <= worst[1]).all()
    assert not results.duplicated(["cell", "exit", "judge", "steps"]).any()


def test_batch_size_changes_nothing_but_float_noise(straight: Path, tmp_path: Path) -> None:
    bench(replace(SMALL, batch_size=7), tmp_path, command="test")
    left, right = read_results(straight), read_results(tmp_path)
    assert left["correct"].tolist() == right["correct"].tolist()


def test_every_exit_is_judged_when_asked(straight: Path, tmp_path: Path) -> None:

    bench(replace(SMALL, all_exits=True), tmp_path, command="test")
    frame = read_results(tmp_path)
    assert sorted(frame["exit"].unique()) == [1, 2, 3]
    assert frame.groupby("exit")["gmacs"].first().is_monotonic_increasing
    # Judging the others changes nothing for the last.
    last = frame[frame["exit"] == 3]["correct"].tolist()
    assert last == read_results(straight)["correct"].tolist()


def test_a_crash_is_a_hole_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate.attack

    def crashes(classifier: Any, batch: Any, plan: Any, **options: Any) -> Any:
        if plan.protocol.normalised:
            raise RuntimeError("out of memory")
        return whole(classifier, batch, plan, **options)

    monkeypatch.setattr(evaluate, "attack", crashes)
    frame = bench(SMALL, tmp_path, command="test")
    hole = frame[frame["status"] == "failed"]
    assert len(hole) == 1
    assert hole["accuracy"].isna().all()
    assert "out of memory" in hole["error"].iloc[0]
    assert (frame["status"] == "ok").sum() == 3
    monkeypatch.setattr(evaluate, "attack", whole)
    assert (bench(SMALL, tmp_path, command="test")["status"] == "ok").all()


def test_changed_weights_run_again(straight: Path, tmp_path: Path) -> None:
    import shutil

    from robustglimpse.models import WEIGHTS, zoo

    copied = tmp_path / "run"
    shutil.copytree(straight, copied)
    for record in (copied / "cells").iterdir():
        record.write_text(
            record.read_text().replace(
                zoo.hash_file(WEIGHTS / f"{MODEL}-glimpse-digits.safetensors"), "0" * 64
            )
        )
    bench(SMALL, copied, command="test")
    same_results(straight, copied)


def test_what_cannot_be_asked_is_refused_before_anything_runs(tmp_path: Path) -> None:
    from dataclasses import replace

    for change in (
        {"restarts": 0},
        {"batch_size": 0},
        {"eps": "-1/255"},
        {"steps": ()},
        {"step_size": "0"},
        {"limit": 0},
    ):
        with pytest.raises(UserError):
            bench(replace(SMALL, **change), tmp_path / "out", command="test")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_run_killed_outright_goes_on_to_the_same_rows(straight: Path, tmp_path: Path) -> None:
    flags = "--model mgnet-r18 --steps 1,3 --protocol standard --protocol paper --limit 12 --batch-size 4"
    command = [
        sys.executable,
        "-m",
        "robustglimpse",
        "bench",
        *flags.split(),
        "--eps",
        "2/255",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("parts/*/*.npz")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "results.csv").exists(), "it was killed before its end"
    done = subprocess.run([*command, "--out", str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == 0
    same_results(straight, tmp_path)


def test_an_attack_of_parts_goes_on_with_the_part_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ATTACKS["autoattack"]
    short = "apgd(steps=5)", "apgd_t(steps=4, targets=3)", "fab_t(steps=3, targets=3)", "square(steps=5)"
    monkeypatch.setitem(ATTACKS, "autoattack", replace(row, parts=short))
    asked = replace(SMALL, attacks=("autoattack",), protocols=("standard",), all_exits=True, eps="8/255")
    bench(asked, tmp_path / "straight", command="test")
    whole, done = evaluate.attack, []

    def killed(classifier: Any, batch: Any, plan: Any, **options: Any) -> Any:
        if plan.attack.name == "fab_t" and len(done) < 100:
            raise KeyboardInterrupt
        done.append((plan.attack.name, len(batch.labels)))
        return whole(classifier, batch, plan, **options)

    monkeypatch.setattr(evaluate, "attack", killed)
    with pytest.raises(KeyboardInterrupt):
        bench(asked, tmp_path / "killed", command="test")
    assert [size for name, size in done if name == "apgd"] == [4, 4, 4]
    assert 0 < sum(size for name, size in done if name == "apgd_t") < 12, "only who still stands"
    done[:] = [("", 0)] * 100
    bench(asked, tmp_path / "killed", command="test")
    assert {name for name, _ in done[100:]} == {"fab_t", "square"}
    same_results(tmp_path / "straight", tmp_path / "killed")


# A sweep over eps

SWEEP = replace(
    SMALL, protocols=("standard",), steps=(2,), curve="eps", eps="1/255,4/255,16/255", step_size="4/255",
    all_exits=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    bench(SWEEP, out, command="test")
    return out


def test_a_sweep_gives_a_row_for_every_eps_and_exit_that_never_rises(swept: Path) -> None:
    frame = read_results(swept)
    attacked = frame[frame["kind"] == "attack"]
    assert attacked["cell"].nunique() == 1
    assert sorted(set(attacked["eps_text"])) == ["1/255", "16/255", "4/255"]
    assert attacked["step_size"].tolist() == pytest.approx((attacked["eps"] / 4).tolist())
    for _, of_exit in attacked.groupby("exit"):
        assert of_exit.sort_values("eps")["accuracy"].is_monotonic_decreasing
    assert attacked["accuracy"].nunique() > 1
    curve = eps_curve(frame)
    assert curve.index.get_level_values("exit").tolist() == [1, 2, 3]
    hand = [curve[k].to_numpy() for k in curve.columns[:-1]]
    area = (hand[0] + hand[1]) / 2 * 1 + (hand[1] + hand[2]) / 2 * 3 + (hand[2] + hand[3]) / 2 * 12
    assert curve["area"].tolist() == pytest.approx((area / 16).tolist())
    assert "| area" in eps_table(frame)


def test_the_gate_sees_the_largest_eps_of_a_sweep(swept: Path) -> None:
    frame = read_results(swept)
    largest = frame[frame["eps_text"] == "16/255"].sort_values("exit")["correct"].tolist()
    (found,) = (one for one in read_outcomes(swept) if one.cell["perturb"] != "clean")
    assert [int(curve.is_correct.sum()) for curve in found.curves] == largest
    assert found.eps_text == "16/255"


def test_one_eps_is_swept_in_equal_parts() -> None:
    assert radii_of(replace(SWEEP, eps="8/255")) == pytest.approx([k / 255 for k in range(1, 9)])
    assert radii_of(replace(SWEEP, eps="2/255, 1/255")) == pytest.approx([1 / 255, 2 / 255])
    assert radii_of(SMALL) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"curve": "steps"}, "a curve is over eps, got 'steps'"), ({"eps": "1/255,0"}, "eps must be above 0")],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(replace(SWEEP, **change), tmp_path)  # type: ignore[arg-type]


def test_convolutions_on_a_gpu_keep_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert choose_device("cpu") == "cpu"
    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert not torch.backends.cudnn.allow_tf32


def test_ctrl_c_says_that_the_run_can_go_on(tmp_path: Path) -> None:
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from robustglimpse.cli import main; main()"
    )
    command = [
        sys.executable, "-c", code, "bench", "--model", "mgnet-r18", "--attack", "square",
        "--out", str(tmp_path), "--device", "cpu",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not list(tmp_path.glob("cells/*")) and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in err
    assert "Traceback" not in out + err


def test_steps_are_told_to_be_unused_where_they_are() -> None:
    def lines(*attacks: str, **fields: Any) -> list[str]:
        return steps_unused(Bench(("mgnet-r18",), attacks=attacks, **fields))

    assert lines("pgd", "apgd", "autoattack") == []
    assert lines("pgd", "fgsm", "apgd(steps=5)", "native:square", "autoattack", steps=(3,)) == [
        "square: --steps is for attacks whose every step is reported; it takes its own: square(steps=N)",
        "autoattack: --steps is for attacks whose every step is reported; it has its own numbers of steps",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": "8"}, "linf eps must be at most 1, in [0,1] pixel units, got 8; did you mean 8/255?"),
        (
            {"step_size": "2"},
            "linf step size must be at most 1, in [0,1] pixel units, got 2; did you mean 2/255?",
        ),
        ({"attacks": ("pgd(steps=True)",)}, "steps must be whole numbers from 1 up, got True"),
        ({"attacks": ("pgd(step_size='1/255')",)}, "step_size must be a number from 0 up"),
    ],
)
def test_what_no_image_holds_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        bench(Bench(("ffnet-r18",), limit=2, device="cpu", **fields), tmp_path)


def blind(weight: float) -> Any:
    """A linear classifier whose answers are cut off from their images."""

    class Blind(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = x.detach().flatten(1).mean(1) - weight
            return torch.stack([-score, score], 1)

    return wrap(Blind(), name="blind", classes=2, size_px=8)


def test_robustness_without_gradients_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.7
    data = from_tensors(images, torch.ones(8, dtype=torch.int64), name="bright")
    bench(Bench((blind(0.5),), steps=(2,), data=data, device="cpu"), tmp_path)
    told = capsys.readouterr().err
    assert "100% of the gradients on what stands were zero or no number (zero_gradients)" in told


class Unsteady(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1).mean(1) - 0.5 + 0.001 * torch.randn(len(x))
        return torch.stack([-score, score], 1)


def test_a_model_that_answers_at_random_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = from_tensors(torch.full((4, 3, 8, 8), 0.9), torch.ones(4, dtype=torch.int64), name="bright")
    model = wrap(Unsteady(), name="unsteady", classes=2, size_px=8)
    bench(Bench((model,), attacks=("fgsm",), data=data, device="cpu"), tmp_path)
    assert "unsteady: answers at random; judged by the vote of 10 passes" in capsys.readouterr().err


def test_the_step_size_is_the_calls_and_none_where_an_attack_finds_its_own(tmp_path: Path) -> None:
    calls = ("fgsm", "pgd(step_size=0.01)", "apgd(steps=1)")
    results = bench(Bench(("ffnet-r18",), attacks=calls, steps=(1,), limit=2, device="cpu"), tmp_path)
    sizes = results[results["kind"] == "attack"].set_index("attack")["step_size"]
    assert sizes["fgsm"] == pytest.approx(4 / 255)
    assert sizes["pgd"] == 0.01
    assert np.isnan(sizes["apgd"])
    assert runner._step_size(parse_call("foolbox:LinfPGD(rel_stepsize=0.1)"), 0.02) == pytest.approx(0.002)
