"""Other libraries' attacks behind our signature, on models whose exact answer is known.

What needs a library is skipped without it; the errors of a missing one are tested everywhere.
"""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustglimpse import Bench, bench, evaluate, from_tensors, wrap
from robustglimpse.attacks import (
    ATTACKS,
    LIBRARIES,
    adapted_defaults,
    attack_function,
    canonical,
    check_call,
    check_threat,
    defaults_of,
    options_of,
)
from robustglimpse.attacks.geometry import ball
from robustglimpse.cli import Listing, _listing
from robustglimpse.compare import compare
from robustglimpse.models.surrogates import surrogates
from robustglimpse.records import Batch, Classifier, Norm, Threat, UserError
from robustglimpse.registry import parse_call
from robustglimpse.rng import KeyedDraws

SIZE, COUNT, REACH = 8, 8, 0.05
README = Path(__file__).parents[2] / "README.md"
NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def needs(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def run(
    text: str, logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: Threat, seed: int = 0
) -> Tensor:
    """Return what the library returned."""
    call = parse_call(text)
    check_call(call, threat.norm)
    draws = KeyedDraws(seed, torch.arange(len(x)))
    *_, x_adv = attack_function(call)(logits, x, y, threat, draws, **dict(call.arguments))
    return x_adv


def linear(norm: Norm) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Return logits of five classes, images whose nearest boundary is exactly REACH away, and their class.

    All images have one score: they differ across the weight only. Three more classes never come first.
    """
    generator = torch.Generator().manual_seed(1)
    weight = torch.logspace(-1.5, 0, 3 * SIZE * SIZE)[torch.randperm(3 * SIZE * SIZE, generator=generator)]
    weight *= torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
    noise = torch.rand(COUNT, len(weight), generator=generator) * 0.2 - 0.1
    noise -= (noise @ weight)[:, None] * weight / (weight @ weight)
    x = (0.5 + noise).view(COUNT, 3, SIZE, SIZE)
    far = REACH * (weight.abs().sum() if norm == "linf" else weight.norm())
    bias = float(far - 0.5 * weight.sum())

    def logits(images: Tensor) -> Tensor:
        score = (images.flatten(1) * weight).sum(1) + bias
        return torch.stack([score, -score, *(torch.full_like(score, -9.0 - k) for k in range(3))], 1)

    return logits, x, torch.zeros(COUNT, dtype=torch.int64)


def sizes(delta: Tensor, norm: Norm) -> Tensor:
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


FIXED: list[tuple[Norm, str]] = [
    ("linf", "torchattacks:FGSM"),
    ("linf", "torchattacks:PGD(steps=20, step_size=0.01)"),
    ("linf", "torchattacks:APGD(steps=20)"),
    ("l2", "torchattacks:APGD(steps=20)"),
    ("l2", "torchattacks:PGDL2(steps=20, alpha=0.02)"),
    ("linf", "torchattacks:APGDT(steps=20)"),
    ("linf", "foolbox:FGSM"),
    ("linf", "foolbox:LinfPGD(random_start=False)"),
    ("l2", "foolbox:L2PGD(random_start=False)"),
    ("linf", "foolbox:MIFGSM"),
    ("linf", "pyautoattack:apgd-ce(steps=20, n_restarts=1)"),
    ("l2", "pyautoattack:apgd-ce(steps=20, n_restarts=1)"),
    ("l2", "pyautoattack:apgd-dlr(steps=20, n_restarts=1)"),
    ("linf", "pyautoattack:apgd-t(steps=20)"),
    ("linf", "pyautoattack:fab-t(steps=20)"),
    ("l2", "pyautoattack:fab-t(steps=20)"),
    ("linf", "pyautoattack:standard(steps=20, n_queries=100)"),
]


@pytest.mark.parametrize(("norm", "text"), FIXED)
@pytest.mark.parametrize(("share", "fooled"), [(0.98, 0), (1.02, COUNT)])
def test_attacks_of_a_given_eps_reach_the_exact_distance_and_no_further(
    norm: Norm, text: str, share: float, fooled: int
) -> None:
    needs(text.partition(":")[0])
    logits, x, y = linear(norm)
    x_adv = run(text, logits, x, y, Threat(norm, share * REACH))
    assert sizes(x_adv - x, norm).max() <= share * REACH + 1e-5
    assert int((logits(x_adv).argmax(1) != y).sum()) == fooled


# What is found may be so many times as far as the exact distance.
NEAREST: list[tuple[Norm, str, float]] = [
    ("l2", "torchattacks:DeepFool", 1.03),
    ("l2", "torchattacks:CW(steps=100)", 1.5),
    ("l2", "foolbox:L2DeepFoolAttack", 1.03),
    ("linf", "foolbox:LinfDeepFoolAttack", 1.03),
    ("l2", "foolbox:L2CarliniWagnerAttack(steps=60, binary_search_steps=5)", 1.5),
    ("linf", "foolbox:LInfFMNAttack(steps=40)", 1.1),
    ("l2", "foolbox:BoundaryAttack(steps=1000)", 8),
    ("linf", "foolbox:HopSkipJumpAttack(steps=3)", 3),
    ("l2", "foolbox:HopSkipJumpAttack(steps=3)", 4),
]


@pytest.mark.parametrize(("norm", "text", "at_most"), NEAREST)
def test_attacks_of_no_eps_return_an_image_just_past_the_boundary_wherever_it_is(
    norm: Norm, text: str, at_most: float
) -> None:
    needs(text.partition(":")[0])
    logits, x, y = linear(norm)
    x_adv = run(text, logits, x, y, Threat(norm, REACH / 100))
    found = sizes(x_adv - x, norm)
    assert (logits(x_adv).argmax(1) != y).all()
    assert found.min() >= REACH * 0.999
    assert found.max() <= REACH * at_most


@pytest.mark.parametrize(("share", "fooled"), [(0.98, 0), (6, COUNT)])
@pytest.mark.parametrize("text", ["torchattacks:Square(steps=300)", "pyautoattack:square(steps=300)"])
def test_square_needs_room_to_search(text: str, share: float, fooled: int) -> None:
    needs(text.partition(":")[0])
    logits, x, y = linear("linf")
    x_adv = run(text, logits, x, y, Threat("linf", share * REACH))
    assert int((logits(x_adv).argmax(1) != y).sum()) == fooled


def classifier(logits: Callable[[Tensor], Tensor], classes: int = 5) -> Classifier:
    def exits(x: Tensor) -> Tensor:
        return logits(x)[None]

    return Classifier(
        "linear", logits, exits, surrogates(lambda x, _: exits(x), 1), lambda x: x,
        tuple(str(k) for k in range(classes)), SIZE, "", NORMALISATION,
    )  # fmt: skip


def test_the_loop_measures_what_is_found_draws_it_back_and_judges_that() -> None:
    needs("foolbox")
    logits, x, _ = linear("linf")
    images = (x * 255).round().to(torch.uint8)
    batch = Batch(images, torch.zeros(COUNT, dtype=torch.int64), torch.arange(COUNT))
    held = {}
    for eps in (REACH / 2, REACH * 2):
        plan = evaluate.make_plan(
            parse_call("foolbox:LinfDeepFoolAttack"), protocol="standard", threat=Threat("linf", eps),
            normalisation=NORMALISATION, restarts=1, seed=0, all_exits=False,
        )  # fmt: skip
        held[eps] = evaluate.attack(classifier(logits), batch, plan, device="cpu")
    inside, outside = held[REACH * 2], held[REACH / 2]
    assert (inside["first_success_step"] == 1).all()
    assert (inside["excess"] == 0).all()
    assert (outside["first_success_step"] == -1).all(), "what is too far away is no success"
    assert outside["linf"] == pytest.approx(REACH / 2, abs=1e-6)
    assert outside["excess"] == pytest.approx(inside["linf"] - REACH / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("norm", "text"),
    [("l2", "torchattacks:DeepFool"), ("linf", "torchattacks:Square(steps=60)"),
     ("linf", "pyautoattack:apgd-t(steps=5)"), ("linf", "pyautoattack:square(steps=60)"),
     ("l2", "foolbox:L2DeepFoolAttack"), ("linf", "foolbox:LInfFMNAttack(steps=10)")],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.5, 1.3, 6])
def test_verdicts_are_of_what_is_returned_and_of_no_image_shown_on_the_way(
    norm: Norm, text: str, share: float
) -> None:
    # Libraries ask about images singly, in parts, outside the ball, and write into what they are answered.
    needs(text.partition(":")[0])
    logits, x, y = linear(norm)
    images = (x * 255).round().to(torch.uint8)
    x, threat = images.float() / 255, Threat(norm, share * REACH)
    plan = evaluate.make_plan(
        parse_call(text), protocol="standard", threat=threat, normalisation=NORMALISATION, restarts=1,
        seed=0, all_exits=False,
    )  # fmt: skip
    columns = evaluate.attack(classifier(logits), Batch(images, y, torch.arange(COUNT)), plan, device="cpu")
    draws = KeyedDraws(0, torch.arange(COUNT), "restart 0 as-trained")
    *_, returned = attack_function(plan.attack)(logits, x, y, threat, draws, **dict(plan.attack.arguments))
    allowed = ball(threat, x).project(returned)
    is_fooled = logits(allowed).argmax(1) != y
    assert (columns["first_success_step"] == 1).tolist() == is_fooled.tolist()
    held = sizes(allowed - x, norm)
    assert columns[norm] == pytest.approx(held.numpy(), abs=1e-6)
    outside = (sizes(returned - x, norm) - threat.eps).clamp_min(0)
    assert columns["excess"] == pytest.approx(outside.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    "text",
    ["torchattacks:PGD(steps=2)", "torchattacks:Square(steps=60)", "foolbox:LinfPGD(steps=2)",
     "foolbox:LinfAdditiveUniformNoiseAttack", "pyautoattack:square(steps=100)"],
)  # fmt: skip
def test_random_numbers_belong_to_the_run_and_nothing_of_the_callers_changes(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(text.partition(":")[0])
    logits, x, y = linear("linf")

    def state() -> tuple[Any, ...]:
        of_numpy = np.random.get_state()[1]
        assert isinstance(of_numpy, np.ndarray)
        return (
            torch.get_rng_state().tolist(), of_numpy.tolist(), random.getstate(), sys.gettrace(),
            list(logging.root.handlers),
        )  # fmt: skip

    before, threat = state(), Threat("linf", REACH * 6)
    first, again, other = (run(text, logits, x, y, threat, seed) for seed in (0, 0, 1))
    assert state() == before
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("norm", "text"),
    [("linf", "torchattacks:PGD(steps=2)"), ("l2", "torchattacks:PGDL2(steps=2)"),
     ("l2", "torchattacks:CW(steps=2)"), ("linf", "foolbox:LinfPGD(steps=2)"),
     ("l2", "foolbox:L2DeepFoolAttack(steps=2)"),
     ("linf", "pyautoattack:apgd-t(steps=2, n_target_classes=2)"), ("linf", "pyautoattack:square(steps=5)")],
)  # fmt: skip
def test_images_logits_and_weights_are_left_alone_even_channels_last(norm: Norm, text: str) -> None:
    needs(text.partition(":")[0])
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)
    ).to(memory_format=torch.channels_last)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def logits(x: Tensor) -> Tensor:
        out = network(x.to(memory_format=torch.channels_last))
        seen.append((x.detach(), x.detach().clone(), out.detach(), out.detach().clone()))
        return out

    x = torch.rand(4, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    y, kept = network(x).argmax(1), x.clone()
    run(text, logits, x, y, Threat(norm, 0.01))
    assert torch.equal(x, kept)
    assert all(weight.grad is None for weight in network.parameters())
    assert seen
    for images, images_then, answers, answers_then in seen:
        assert torch.equal(images, images_then), "what the model was shown is not written to later"
        assert torch.equal(answers, answers_then), "nor is what it answered"


def test_a_gradient_reaches_the_images_and_lets_go_of_the_graph_as_the_library_asks() -> None:
    from robustglimpse.attacks.adapters import LogitsModule

    graphs: list[weakref.ref[Any]] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.held = torch.nn.Module()
            graphs.append(weakref.ref(ctx.held))
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return 2 * gradients[0]

    weight = torch.randn(12, 5, requires_grad=True)
    module = LogitsModule(lambda x: Doubled.apply(x.flatten(1)) @ weight, torch.device("cpu"))
    x = torch.rand(4, 3, 2, 2, requires_grad=True)
    loss = module(x)[:, 0].sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert graphs[-1]() is not None
    (second,) = torch.autograd.grad(loss, x)
    assert graphs[-1]() is None, "activations are not held until the next pass"
    assert torch.equal(first, second)
    assert torch.allclose(first.flatten(1), (2 * weight[:, 0]).expand(4, 12))
    assert not module(x.detach()).requires_grad


def test_an_image_that_gives_a_decision_attack_no_start_stays_as_it_is() -> None:
    needs("foolbox")

    def logits(x: Tensor) -> Tensor:  # noise is never bright: a dark image has nothing to start from
        bright = 20 * (x.flatten(1).mean(1) - 0.8)
        return torch.stack([-bright, bright], 1)

    x = torch.cat([torch.full((2, 3, SIZE, SIZE), 0.5), torch.full((2, 3, SIZE, SIZE), 0.85)])
    y = torch.tensor([0, 0, 1, 1])
    for text in ("foolbox:BoundaryAttack(steps=20)", "foolbox:HopSkipJumpAttack(steps=1)"):
        x_adv = run(text, logits, x, y, Threat("l2", 1.0))
        assert torch.equal(x_adv[:2], x[:2])
        assert (logits(x_adv).argmax(1) == torch.tensor([0, 0, 0, 0])).all()


def test_labels_and_scores_are_all_that_an_attack_reads_that_says_so() -> None:
    wanted = {
        "torchattacks:PGD": "gradients", "torchattacks:Square": "scores",
        "torchattacks:AutoAttack": "gradients and scores", "foolbox:LinfPGD": "gradients",
        "foolbox:BoundaryAttack": "labels", "foolbox:HopSkipJumpAttack": "labels",
        "foolbox:SaltAndPepperNoiseAttack": "labels", "pyautoattack:square": "scores",
        "pyautoattack:apgd-ce": "gradients",
    }  # fmt: skip
    l2 = {"foolbox:BoundaryAttack", "foolbox:SaltAndPepperNoiseAttack"}
    for text, told in wanted.items():
        if find_spec(text.partition(":")[0]) is not None:
            row = check_call(parse_call(text), "l2" if text in l2 else "linf")
            assert (row.needs, row.is_adapted) == (told, True), text


@pytest.mark.parametrize(
    "text",
    ["foolbox:BoundaryAttack(steps=20)", "foolbox:HopSkipJumpAttack(steps=1)",
     "foolbox:SaltAndPepperNoiseAttack(steps=5)", "torchattacks:Square(steps=5)"],
)  # fmt: skip
def test_what_reads_no_gradients_works_where_there_are_none(text: str) -> None:
    needs(text.partition(":")[0])
    logits, x, y = linear("l2")
    x_adv = run(text, lambda v: logits((v.detach() * 255).round() / 255), x, y, Threat("l2", 1.0))
    assert x_adv.shape == x.shape


@pytest.mark.parametrize(
    ("text", "norm", "told"),
    [
        ("torchattacks:pgd", "linf", "did you mean 'PGD'"),
        ("foolbox:LinfPDG", "linf", "did you mean 'LinfPGD'"),
        ("pyautoattack:apgd", "linf", "did you mean 'apgd-"),
        ("torchattacks:MultiAttack", "linf", "unknown torchattacks attack"),
        ("torchattacks:PGD(stepz=3)", "linf", "has no argument 'stepz'; it takes step_size, steps"),
        ("torchattacks:PGD(steps=[1,2])", "linf", "one whole number of steps"),
        ("torchattacks:PGD(step_size=-1)", "linf", "must be a number above 0"),
        ("torchattacks:PGD(alpha=0.1, step_size=0.1)", "linf", "step_size and alpha are one argument"),
        ("foolbox:LinfPGD(abs_stepsize=0.1, step_size=0.1)", "linf", "step_size and abs_stepsize are one"),
        ("foolbox:LinfPGD(rel_stepsize=0.1, step_size=0.1)", "linf", "both set the step"),
        ("pyautoattack:square(n_queries=9, steps=9)", "linf", "steps and n_queries are one argument"),
        ("torchattacks:PGD(eps=0.1)", "linf", "takes its eps from --eps"),
        ("torchattacks:APGD(norm='L2')", "linf", "takes its norm from --norm"),
        ("torchattacks:PGD", "l2", "is defined for linf, not 'l2'; use --norm linf"),
        ("foolbox:L2PGD", "linf", "is defined for l2, not 'linf'; use --norm l2"),
        ("torchattacks:JSMA", "linf", "measures L0; balls here are linf and l2"),
        ("foolbox:L1PGD", "linf", "measures L1 distance; balls here are linf and l2"),
        ("foolbox:GenAttack", "linf", "is targeted"),
        ("foolbox:SpatialAttack", "linf", "turns and shifts images"),
        ("foolbox:VirtualAdversarialAttack", "l2", "needs steps"),
        ("foolbox:LinearSearchBlendedUniformNoiseAttack(directions=0)", "linf", "cannot be made (ValueError"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told_in_one_line_before_anything_runs(
    text: str, norm: str, told: str
) -> None:
    needs(text.partition(":")[0])
    with pytest.raises(UserError) as error:
        check_call(parse_call(text), norm)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_brendel_and_bethge_ask_for_numba_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("foolbox")
    if find_spec("numba") is not None:
        pytest.skip("numba is installed")
    with pytest.raises(UserError, match="pip install numba"):
        check_call(parse_call("foolbox:L2BrendelBethgeAttack"), "l2")


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [("torchattacks:PGD", "torchattacks", "torchattacks"), ("foolbox:LinfPGD", "foolbox", "foolbox"),
     ("pyautoattack:standard", "pyautoattack", "robustbench")],
)  # fmt: skip
def test_a_missing_library_is_one_line_with_the_pip_command(
    text: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        check_call(parse_call(text), "linf")
    assert str(error.value) == (
        f"expected the package {package}, which is not installed; pip install 'robustglimpse[{extra}]'"
    )


MISSING = """
import sys
sys.modules["foolbox"] = None
from robustglimpse.cli import main
main()
"""


def test_a_missing_library_is_told_before_the_first_cell_runs(tmp_path: Path) -> None:
    asked = ["--model", "ffnet-r18", "--attack", "fgsm", "--attack", "foolbox:LinfPGD", "--limit", "2"]
    done = subprocess.run(
        [sys.executable, "-c", MISSING, "bench", *asked, "--out", "run"],
        cwd=tmp_path, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'robustglimpse[foolbox]'" in done.stderr
    assert not list(tmp_path.rglob("*.csv*"))


def test_a_cell_that_crashes_in_a_library_is_a_row_with_its_error(tmp_path: Path) -> None:
    needs("pyautoattack")
    # Two classes are too few for the targeted DLR loss.
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 2))
    torch.manual_seed(0)
    x = torch.rand(6, 3, SIZE, SIZE)
    with torch.no_grad():
        y = network((x * 255).round() / 255).argmax(1)
    model = wrap(network, name="two", classes=2, size_px=SIZE)
    asked = Bench(
        models=(model,), attacks=("pyautoattack:apgd-t", "native:fgsm"),
        data=from_tensors(x, y, name="noise"), device="cpu",
    )  # fmt: skip
    results = bench(asked, tmp_path / "run").set_index("attack")
    crashed = results.loc["pyautoattack:apgd-t"]
    assert crashed["status"] == "failed"
    assert "apgd-t needs 4 classes, the model has 2" in crashed["error"]
    assert np.isnan(crashed["accuracy"])
    assert results.loc["fgsm", "status"] == "ok"


def test_bench_runs_three_libraries_beside_our_own(tmp_path: Path) -> None:
    calls = {
        "torchattacks": "torchattacks:PGD", "foolbox": "foolbox:LinfPGD",
        "pyautoattack": "pyautoattack:apgd-ce(steps=3, n_restarts=1)",
    }  # fmt: skip
    calls = {library: call for library, call in calls.items() if find_spec(library) is not None}
    if not calls:
        pytest.skip("none of the libraries is installed")
    asked = Bench(
        models=("ffnet-r18",), attacks=("pgd(random_start=False)", *calls.values()), steps=(1, 3), limit=6,
        device="cpu",
    )  # fmt: skip
    results = bench(asked, tmp_path / "run")
    assert (results["status"] == "ok").all()
    theirs = results[results["attack"].isin([call.partition("(")[0] for call in calls.values()])]
    assert len(theirs) == len(calls)
    assert (theirs["steps"] == 3).all(), "the largest of --steps"
    assert (theirs["judge"] == "worst").all()
    again = bench(asked, tmp_path / "run")
    assert again["cell"].tolist() == results["cell"].tolist()


@pytest.mark.parametrize("library", ["torchattacks:PGD", "foolbox:LinfPGD"])
def test_a_comparison_begins_at_the_image_as_the_plain_protocol_does(library: str, tmp_path: Path) -> None:
    if find_spec(library.partition(":")[0]) is None:
        pytest.skip("the library is not installed")
    asked = Bench(
        models=("ffnet-r18",), attacks=("native:pgd", library), steps=(8,), step_size="2/255", eps="16/255",
        limit=16, device="cpu",
    )  # fmt: skip
    frame = compare(asked, tmp_path / "compare")
    assert frame["other_verdicts"].tolist() == [0, 0]
    assert frame["other_predictions"].tolist() == [0, 0]
    plain = bench(replace(asked, protocols=("plain", "standard")), tmp_path / "bench")
    theirs = plain[(plain["attack"] == library) & (plain["kind"] == "attack")].set_index("protocol")
    assert theirs.loc["plain", "accuracy"] == frame["accuracy"][1]
    records = [
        tmp_path / "bench" / "cells" / f"{theirs.loc[name, 'cell']}.json" for name in ("plain", "standard")
    ]
    told = ["random_start=False" in record.read_text() for record in records]
    assert told == [True, False], "where the protocol starts at random it is the library's own default"


def test_what_a_call_leaves_open_is_filled_in_as_for_ours() -> None:
    def filled(text: str) -> str:
        return str(adapted_defaults(parse_call(text), steps=40, step_size=0.01))

    assert filled("native:pgd") == "pgd"
    if find_spec("torchattacks"):
        assert filled("torchattacks:PGD") == "torchattacks:PGD(step_size=0.01, steps=40)"
        assert filled("torchattacks:BIM(alpha=0.02)") == "torchattacks:BIM(step_size=0.02, steps=40)"
        assert filled("torchattacks:APGD") == "torchattacks:APGD(steps=10)", "its own: it takes no step size"
        assert filled("torchattacks:CW") == "torchattacks:CW(steps=50)"
        assert filled("torchattacks:FGSM") == "torchattacks:FGSM"
    if find_spec("foolbox"):
        assert filled("foolbox:LinfPGD(rel_stepsize=0.1)") == ("foolbox:LinfPGD(rel_stepsize=0.1, steps=40)")
        assert filled("foolbox:VirtualAdversarialAttack").endswith("(steps=40)")
        assert filled("foolbox:BoundaryAttack") == "foolbox:BoundaryAttack(steps=25000)"
    if find_spec("pyautoattack"):
        assert filled("pyautoattack:square") == "pyautoattack:square(steps=5000)"
        assert filled("pyautoattack:standard") == "pyautoattack:standard(steps=100)"


def test_the_librarys_own_defaults_can_be_shown() -> None:
    assert defaults_of(parse_call("native:apgd(steps=7)")) == {**options_of(ATTACKS["apgd"]), "steps": 7}
    if find_spec("torchattacks"):
        told = defaults_of(parse_call("torchattacks:PGD(steps=7)"))
        assert told == {"step_size": 2 / 255, "steps": 7, "random_start": True}
    if find_spec("foolbox"):
        told = defaults_of(parse_call("foolbox:LinfPGD"))
        assert told["steps"] == 40
        assert told["step_size"] == "0.03333 eps"
        assert defaults_of(parse_call("foolbox:LinfPGD(step_size=0.01)"))["step_size"] == 0.01
    if find_spec("pyautoattack"):
        assert defaults_of(parse_call("pyautoattack:standard"))["n_target_classes"] == 9


def test_settings_reach_the_objects_of_a_suite() -> None:
    needs("pyautoattack")
    calls = 0
    logits, x, y = linear("linf")

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits(v)

    spent = []
    for steps in (10, 30):
        calls = 0
        run(f"pyautoattack:apgd-ce(steps={steps}, n_restarts=1)", counted, x, y, Threat("linf", REACH / 2))
        spent.append(calls)
    assert spent[1] - spent[0] == 20


def test_native_is_a_prefix_of_our_own_names() -> None:
    assert canonical(parse_call("native:pgd(steps=3)")) == parse_call("pgd(steps=3)")
    assert check_call(parse_call("native:pgd"), "linf") is ATTACKS["pgd"]
    assert attack_function(parse_call("native:pgd")) is attack_function(parse_call("pgd"))
    with pytest.raises(UserError, match="unknown attack 'torchatacks:PGD'; did you mean 'torchattacks:NAME'"):
        check_call(parse_call("torchatacks:PGD"), "linf")


def test_a_library_cannot_be_told_of_normalised_pixels() -> None:
    for row in LIBRARIES.values():
        check_threat(row, Threat("linf", 0.1))
        with pytest.raises(UserError, match="use --protocol standard or adaptive"):
            check_threat(row, Threat("linf", 0.1, scale=(0.2, 0.2, 0.2), bounds=None))
    check_threat(ATTACKS["pgd"], Threat("linf", 0.1, scale=(0.2, 0.2, 0.2), bounds=None))


def test_the_readmes_table_is_of_what_list_attacks_prints() -> None:
    header, rows = _listing(Listing.attacks)
    printed = ["| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *rows)]
    _, _, after = README.read_text().partition(f"{printed[0]}\n")
    shown = [printed[0], *after.partition("\n\n")[0].splitlines()]
    assert shown == [line for line in printed if line in shown], "no other rows, and in that order"
    assert len(shown) >= 10
