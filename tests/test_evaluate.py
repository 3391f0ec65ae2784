"""The loop, on models whose exact answer is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import (
    NORMALISATION,
    SIZE,
    anisotropic_weight,
    classifier_of,
    linear,
    make_plan,
    random_batch,
)
from torch import Tensor

from robustglimpse import evaluate
from robustglimpse.attacks import ATTACKS, LOSS_NAMES, AttackRow, options_of
from robustglimpse.attacks.adapters import LogitsModule
from robustglimpse.attacks.geometry import ball
from robustglimpse.attacks.loss import LOSSES
from robustglimpse.models.surrogates import surrogate_of
from robustglimpse.records import Batch, Classifier, Norm, Threat, UserError
from robustglimpse.registry import parse_call
from robustglimpse.watched import Watched


def at_distance(weight: Tensor, images: Tensor, radius: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Return logits under which every image is exactly `radius` from the decision boundary."""
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    own = ((images.float() / 255) * weight).flatten(1).sum(1)

    def logits(x: Tensor) -> Tensor:
        # The score of each image, less its own score at the start, plus what makes the distance right.
        score = (x * weight).flatten(1).sum(1) - own[: len(x)] + radius * dual
        return torch.stack([torch.zeros_like(score), score], 1)

    return logits


def test_a_pgd_whose_steps_cannot_reach_the_boundary_fools_nobody() -> None:
    weight, batch = anisotropic_weight(), random_batch(1)
    model = classifier_of(at_distance(weight, batch.images, 0.05, "linf"))
    plan = make_plan("pgd(steps=4, step_size=0.01, random_start=False)", Threat("linf", 0.06))
    assert evaluate.attack(model, batch, plan, device="cpu")["first_success_step"].tolist() == [-1]
    plan = make_plan("pgd(steps=6, step_size=0.01, random_start=False)", Threat("linf", 0.06))
    assert evaluate.attack(model, batch, plan, device="cpu")["first_success_step"].tolist() == [6]


def mixed() -> tuple[Classifier, Batch, Threat]:
    """A linear model on samples at many distances, some of them misclassified already."""
    weight, batch = anisotropic_weight(), random_batch()
    scores = ((batch.images.float() / 255) * weight).flatten(1).sum(1)
    return linear(weight, -float(scores.quantile(0.15))), batch, Threat("linf", 0.01)


@pytest.mark.parametrize("protocol", ["standard", "paper", "adaptive"])
def test_one_run_gives_the_curve_that_separate_runs_give(protocol: str) -> None:
    model, batch, threat = mixed()
    whole = evaluate.attack(
        model,
        batch,
        make_plan("pgd(steps=[1,2,5,9], step_size=0.002)", threat, protocol=protocol),
        device="cpu",
    )
    for steps in (1, 2, 5, 9):
        plan = make_plan(f"pgd(steps={steps}, step_size=0.002)", threat, protocol=protocol)
        alone = evaluate.attack(model, batch, plan, device="cpu")
        fooled = (whole["first_success_step"] >= 0) & (whole["first_success_step"] <= steps)
        assert fooled.tolist() == (alone["first_success_step"] >= 0).tolist()
        if protocol == "paper":
            assert whole[f"pred_at_{steps}"].tolist() == alone[f"pred_at_{steps}"].tolist()
    assert 0 < (whole["first_success_step"] > 0).sum() < len(batch.labels)


def test_misclassified_samples_are_not_attacked_and_count_as_fooled() -> None:
    model, batch, threat = mixed()
    columns = evaluate.attack(model, batch, make_plan("pgd(steps=4, step_size=0.002)", threat), device="cpu")
    wrong = columns["clean_pred"] != columns["label"]
    assert 0 < wrong.sum() < 64
    assert (columns["first_success_step"][wrong] == 0).all()
    assert (columns["forwards"][wrong] == 1).all()
    assert (columns["backwards"][wrong] == 0).all()


def test_standing_samples_are_charged_every_pass() -> None:
    model, batch, threat = mixed()
    plan = make_plan("pgd(steps=4, step_size=0.002)", threat)
    columns = evaluate.attack(model, batch, plan, device="cpu")
    standing = columns["first_success_step"] == -1
    assert standing.any()
    # The clean pass, one at the start and after each of four steps; a gradient for each step.
    assert (columns["forwards"][standing] == 6).all()
    assert (columns["backwards"][standing] == 4).all()


def test_the_recorded_iterate_is_the_one_that_fooled() -> None:
    model, batch, threat = mixed()
    columns = evaluate.attack(model, batch, make_plan("pgd(steps=5, step_size=0.002)", threat), device="cpu")
    fooled = columns["first_success_step"] > 0
    assert (columns["margin"][fooled] <= 0).all()
    assert (columns["pred"][fooled] != columns["label"][fooled]).all()
    assert (columns["linf"] <= threat.eps + 1e-6).all()
    assert (columns["linf"][fooled] > 0).all()


def test_rows_do_not_depend_on_batch_or_order() -> None:
    model, batch, threat = mixed()
    plan = make_plan("pgd(steps=[1,3], step_size=0.002)", threat, protocol="adaptive", restarts=2)
    whole = evaluate.attack(model, batch, plan, device="cpu")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    pieces = []
    for rows in order.split(7):
        piece = Batch(batch.images[rows], batch.labels[rows], rows)
        pieces.append(evaluate.attack(model, piece, plan, device="cpu"))
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in whole}
    back = np.argsort(joined["index"])
    for name in whole:
        np.testing.assert_array_equal(joined[name][back], whole[name], err_msg=name)


def test_worst_is_never_above_last_under_the_paper_protocol() -> None:
    model, batch, threat = mixed()
    plan = make_plan("pgd(steps=[1,2,4,8], step_size=0.004)", replace(threat, eps=0.05), protocol="paper")
    columns = evaluate.attack(model, batch, plan, device="cpu")
    for steps in (1, 2, 4, 8):
        last = columns[f"pred_at_{steps}"] == columns["label"]
        worst = (columns["first_success_step"] == -1) | (columns["first_success_step"] > steps)
        assert (worst <= last).all()


def test_paper_protocol_is_the_normalised_attack_in_pixels() -> None:
    # eps and step are divided by nothing: in pixels the ball is eps times the standard deviations.
    model, batch, _ = mixed()
    plan = make_plan("pgd(steps=8, step_size=1/255)", Threat("linf", 4 / 255), protocol="paper")
    assert plan.threat.bounds is None
    columns = evaluate.attack(model, batch, plan, device="cpu")
    standing = columns["first_success_step"] == -1
    assert standing.any()
    assert columns["linf"][standing] == pytest.approx(4 / 255 * 0.229, rel=1e-4)


def test_an_attack_that_leaves_its_ball_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = AttackRow(f"{__name__}:jump", ("linf",), True, "nothing", "0", "this test")
    monkeypatch.setitem(ATTACKS, "jump", row)
    model, batch, threat = mixed()
    plan = make_plan("jump(steps=1, step_size=0.1)", threat)
    with pytest.raises(ValueError, match="left the ball"):
        evaluate.attack(model, batch, plan, device="cpu")


def jump(logits, x, y, threat, draws, *, steps, step_size, random_start=True):  # type: ignore[no-untyped-def]
    """Leave the ball."""
    for _ in range(steps):
        yield x + step_size


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_and_stay_in_it(norm: Norm) -> None:
    from robustglimpse.attacks.geometry import distance
    from robustglimpse.rng import KeyedDraws

    x = torch.full((256, 3, SIZE, SIZE), 0.5)
    threat = Threat(norm, 0.1, scale=NORMALISATION[1], bounds=None)
    start = ball(threat, x).random_start(KeyedDraws(0, torch.arange(256)))
    share = distance(start, x, threat) / threat.eps
    assert share.max() <= 1 + 1e-5
    # In d dimensions the share's mean is d/(d+1) for both norms: E of the largest of d uniforms.
    d = x[0].numel()
    assert float(share.mean()) == pytest.approx(d / (d + 1), abs=4 / d / 16)


def test_autoattack_is_its_four_parts_in_their_order() -> None:
    assert ATTACKS["autoattack"].parts == ("apgd", "apgd_t", "fab_t", "square(rescale=False)")


def test_iterates_outside_the_ball_are_no_success() -> None:
    weight, batch = anisotropic_weight(), random_batch(1)
    model = classifier_of(at_distance(weight, batch.images, 0.05, "linf"))
    columns = evaluate.attack(model, batch, make_plan("fab_t(steps=5)", Threat("linf", 0.04)), device="cpu")
    assert columns["first_success_step"].tolist() == [-1], "it crosses the boundary, beyond its reach"
    assert columns["pred"].tolist() == columns["label"].tolist()


def test_a_sweep_finds_each_sample_at_the_radius_that_holds_its_boundary() -> None:
    model, batch, threat = mixed()
    weight = anisotropic_weight()
    scores = ((batch.images.float() / 255) * weight).flatten(1).sum(1)
    lead = scores - scores.quantile(0.15)
    far = (lead / weight.abs().sum()).numpy()  # no pixel meets the bounds: the exact distance
    radii = (0.002, 0.006, 0.01)
    plan = evaluate.make_plan(
        parse_call("pgd(steps=[1,12], step_size=0.002)"), protocol="standard", threat=threat,
        normalisation=NORMALISATION, restarts=1, seed=5, all_exits=False, radii=radii,
    )  # fmt: skip
    columns = evaluate.attack(model, batch, plan, device="cpu")
    expected = [0.0 if d <= 0 else next((r for r in radii if r >= d), np.inf) for d in far]
    assert {0.0, *radii, np.inf} == set(expected)
    assert columns["fell_at"].tolist() == expected
    assert ((columns["first_success_step"] == -1) == np.isinf(columns["fell_at"])).all()


def test_a_sweep_begins_each_radius_where_the_one_before_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor | None] = []
    whole = evaluate.start_attack

    def watched(plan, logits, x, y, draws, start=None, at_once=None):  # type: ignore[no-untyped-def]
        starts.append(None if start is None else (start - x).flatten(1).abs().amax(1))
        return whole(plan, logits, x, y, draws, start, at_once)

    monkeypatch.setattr(evaluate, "start_attack", watched)
    weight, batch = anisotropic_weight(), random_batch(1)
    model = classifier_of(at_distance(weight, batch.images, 0.05, "linf"))
    plan = evaluate.make_plan(
        parse_call("pgd(steps=8, step_size=0.01)"), protocol="standard", threat=Threat("linf", 0.04),
        normalisation=NORMALISATION, restarts=1, seed=5, all_exits=False, radii=(0.01, 0.02, 0.04),
    )  # fmt: skip
    evaluate.attack(model, batch, plan, device="cpu")
    assert [start is None for start in starts] == [True, False, True, False, True]
    warm = [float(start) for start in starts if start is not None]
    assert warm == pytest.approx([0.02, 0.04], rel=1e-4), "drawn out to the new radius"


@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_the_images_of_an_attack_are_those_its_columns_tell_of(protocol: str) -> None:
    # Distances from 0.02 to 0.1 in a ball of 0.05 (0.22 normalised): some fall, some stand, some are wrong.
    weight, batch = anisotropic_weight(), random_batch(12)
    own = ((batch.images.float() / 255) * weight).flatten(1).sum(1)
    bias = -float(own.median()) + 0.05 * float(weight.abs().sum())
    batch = replace(batch, labels=torch.tensor([1] * 10 + [0] * 2))
    model = linear(weight, bias)
    eps = 0.05 if protocol == "standard" else 0.22
    plan = make_plan(f"pgd(steps=[2, 6], step_size={eps / 4})", Threat("linf", eps), protocol=protocol)
    columns, shown = evaluate.attack_images(model, batch, plan, device="cpu")
    expected = evaluate.attack(model, batch, plan, device="cpu")
    for name, column in expected.items():
        assert columns[name].tolist() == pytest.approx(column.tolist(), nan_ok=True), name
    moved = (shown - batch.images.float() / 255).flatten(1).abs().amax(1)
    assert {0, 1} <= set((columns["clean_pred"] == columns["label"]).astype(int).tolist())
    assert moved[columns["clean_pred"] != columns["label"]].max() == 0
    verdict = "pred" if protocol == "standard" else "pred_at_6"
    assert model.logits(shown).argmax(1).tolist() == columns[verdict].tolist()
    if protocol == "standard":
        assert moved.tolist() == pytest.approx(columns["linf"].tolist())
        assert {-1, 0} < set(columns["first_success_step"].tolist()), "some stand, some are wrong, some fall"


def test_a_sweep_goes_on_from_the_better_of_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    whole = evaluate.start_attack

    def watched(plan, logits, x, y, draws, start=None, at_once=None):  # type: ignore[no-untyped-def]
        if start is not None:
            starts.append(float((start - x).abs().max()))
        return whole(plan, logits, x, y, draws, start, at_once)

    monkeypatch.setattr(evaluate, "start_attack", watched)
    weight, batch = anisotropic_weight(), random_batch(1)
    model = classifier_of(at_distance(weight, batch.images, 0.5, "linf"))
    plan = evaluate.make_plan(
        parse_call("pgd(steps=1, step_size=0.01, random_start=False)"), protocol="standard",
        threat=Threat("linf", 0.04), normalisation=NORMALISATION, restarts=1, seed=5, all_exits=False,
        radii=(0.01, 0.02, 0.03, 0.04),
    )  # fmt: skip
    evaluate.attack(model, batch, plan, device="cpu")
    # A fresh run moves a quarter of eps.  A warm one adds that to where it begins, and is the better one:
    # 0.0025 of 0.01, drawn out to 0.005 of 0.02; 0.01 of it, drawn out to 0.015 of 0.03; 0.0225, to 0.03.
    assert starts == pytest.approx([0.005, 0.015, 0.03], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("apgd(steps=0)", "steps must be a whole number from 1 up, got 0"),
        ("apgd(steps=2.5)", "steps must be a whole number from 1 up, got 2.5"),
        ("square(steps=True)", "steps must be a whole number from 1 up, got True"),
        ("apgd_t(targets=0)", "targets must be a whole number from 1 up, got 0"),
        ("pgd(steps=3, step_size=0.1, eot=0)", "eot must be a whole number from 1 up, got 0"),
        ("pgd(steps=3, step_size=0.1, loss='cee')", "loss must be one of ce, dlr, margin, got 'cee'"),
        ("apgd(random_start='no')", "random_start must be True or False, got 'no'"),
        ("square(p=-1)", "p must be a share above 0, at most 1, got -1"),
        ("mifgsm(steps=3, step_size=0.1, decay=-1)", "decay must be a number from 0 up, got -1"),
    ],
)
def test_values_that_an_attack_cannot_take_are_refused_before_anything_runs(call: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(call, Threat("linf", 0.1))


def test_the_names_of_losses_are_those_there_are() -> None:
    assert set(LOSS_NAMES) == set(LOSSES)


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.items() if not row.parts])
def test_attacks_cost_what_their_rows_say(name: str) -> None:
    """Asked of a model that never falls; the pass over the clean images is nobody's."""
    steps, targets = 10, 4
    row = ATTACKS[name]
    short = {"steps": steps, "step_size": 0.01, "targets": targets}
    options = {key: value for key, value in short.items() if key in options_of(row)}
    shift = torch.arange(10.0).flip(0) + 100 * torch.nn.functional.one_hot(torch.tensor(0), 10)
    model = classifier_of(lambda x: x.flatten(1).mean(1)[:, None] * shift + shift, classes=10)
    batch = replace(random_batch(3), labels=torch.zeros(3, dtype=torch.int64))
    call = f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
    columns = evaluate.attack(model, batch, make_plan(call, Threat("linf", 0.01)), device="cpu")
    forwards, backwards = spelled_out(row.cost, steps, targets)
    assert columns["forwards"].tolist() == [1 + forwards] * 3
    assert columns["backwards"].tolist() == [backwards] * 3


def spelled_out(cost: str, steps: int, targets: int) -> tuple[int, int]:
    """Return the forwards and backwards of a row's cost: "(steps + 1) + steps"."""
    depths = np.cumsum([(letter == "(") - (letter == ")") for letter in cost])
    at = next(k for k, letter in enumerate(cost) if letter == "+" and depths[k] == 0)
    sides = (cost[:at], cost[at + 1 :])
    text = [side.replace("2 steps", "2 * steps").replace(" x ", " * ") for side in sides]
    forwards, backwards = (eval(side, {"steps": steps, "targets": targets}) for side in text)
    return forwards, backwards


def test_autoattack_costs_the_sum_of_its_parts() -> None:
    totals = [0, 0]
    for part in ATTACKS["autoattack"].parts:
        row = ATTACKS[parse_call(part).name]
        options = options_of(row)
        cost = spelled_out(row.cost, options["steps"], options.get("targets", 0))
        totals = [a + b for a, b in zip(totals, cost, strict=True)]
    assert ATTACKS["autoattack"].cost.startswith(f"{totals[0]} + {totals[1]} ")


# What gradients are followed, and which are missing


class ReturnsNone(torch.autograd.Function):
    """The images as they are; a gradient of None."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return None


def near_boundary() -> tuple[Classifier, Batch]:
    """A linear model, and images of class 1 whose distance from class 0 is 0.02."""
    weight, batch = anisotropic_weight(), random_batch(4)
    return classifier_of(at_distance(weight, batch.images, 0.02, "linf")), batch


@pytest.mark.parametrize("how", ["None", "cut off", "other weights alone"])
def test_a_gradient_that_is_missing_counts_as_zero(how: str) -> None:
    model, batch = near_boundary()
    weight = torch.ones(1, requires_grad=True)
    run = {
        "None": lambda x: model.logits(ReturnsNone.apply(x)),
        "cut off": lambda x: model.logits(x.detach()),
        "other weights alone": lambda x: model.logits(x.detach()) * weight,
    }[how]
    plan = make_plan("pgd(steps=3, step_size=0.01, random_start=False)", Threat("linf", 0.06))
    columns = evaluate.attack(classifier_of(run), batch, plan, device="cpu")
    assert columns["first_success_step"].tolist() == [-1] * 4
    assert columns["backwards"].tolist() == columns["zero_gradients"].tolist() == [3] * 4
    columns = evaluate.attack(model, batch, plan, device="cpu")
    assert columns["first_success_step"].tolist() == [3] * 4, "with its own it falls past 0.02"
    assert columns["zero_gradients"].tolist() == [0] * 4


def test_a_librarys_attack_gets_zeros_where_a_gradient_is_none() -> None:
    model, batch = near_boundary()
    lost = classifier_of(lambda x: model.logits(ReturnsNone.apply(x)))
    shown = LogitsModule(Watched(surrogate_of(lost, "as-trained")), torch.device("cpu"))
    x = (batch.images.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(shown(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("protocol", ["standard", "adaptive", "paper", "plain"])
def test_a_classifier_made_by_hand_needs_no_surrogates(protocol: str) -> None:
    model, batch = near_boundary()
    bare = replace(model, surrogates={}, meta={})
    plan = make_plan("pgd(steps=[1, 4], step_size=0.01)", Threat("linf", 0.03), protocol=protocol)
    whole, own = (evaluate.attack(each, batch, plan, device="cpu") for each in (bare, model))
    for name, column in own.items():
        np.testing.assert_array_equal(whole[name], column, err_msg=name)


def test_bare_functions_lend_their_gradients_at_their_own_values() -> None:
    model, batch = near_boundary()

    def steps(x: Tensor) -> Tensor:  # flat but where the class changes
        return model.logits(x).sign()

    plan = make_plan("pgd(steps=4, step_size=0.01, random_start=False)", Threat("linf", 0.03))
    masked = replace(classifier_of(steps), surrogates={})
    columns = evaluate.attack(masked, batch, plan, device="cpu")
    assert columns["first_success_step"].tolist() == [-1] * 4
    assert columns["zero_gradients"].tolist() == [4] * 4
    lent = replace(masked, surrogates={"as-trained": model.logits})
    columns = evaluate.attack(lent, batch, plan, device="cpu")
    assert columns["first_success_step"].tolist() == [3] * 4
    assert columns["zero_gradients"].tolist() == [0] * 4
    # Clean, then twice each, its own and the lent one: the start, three steps.
    assert columns["forwards"].tolist() == [1 + 2 * 4] * 4
    wrong = replace(masked, surrogates={"as-trained": lambda x: -model.logits(x)})
    columns = evaluate.attack(wrong, batch, plan, device="cpu")
    assert columns["first_success_step"].tolist() == [-1] * 4, "the model's own logits decide"


def test_an_unknown_surrogate_is_refused() -> None:
    with pytest.raises(UserError, match="has no surrogate 'smooth'; give one of as-trained, no-detach"):
        surrogate_of(near_boundary()[0], "smooth")
    two = replace(classifier_of(lambda x: x), exits=lambda x: torch.stack([x, 3 * x]), surrogates={})
    x = torch.rand(2, 3)
    assert torch.equal(surrogate_of(two, "exit:1")(x), x)
    assert torch.equal(surrogate_of(two, "mean-exits")(x), 2 * x)
    assert torch.equal(surrogate_of(two, "exact")(x), 3 * x)
