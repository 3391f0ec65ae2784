"""What the loop enters beside who fell: lost gradients, nearest images, answers at random, library images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import anisotropic_weight, attacked, batch_of, classifier_of, linear, make_plan, random_batch
from torch import Tensor

from robustglimpse import evaluate
from robustglimpse.attacks import ATTACKS, AttackRow, options_of
from robustglimpse.evaluate import FRESH, SURE, Plan, judge_clean
from robustglimpse.records import Batch, Classifier, Norm, Threat
from robustglimpse.registry import Call

WEIGHT = anisotropic_weight()


def bright(limit: float) -> Classifier:
    """Class 1 where the mean of the image is above limit, else class 0."""

    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - limit
        return torch.stack([-score, score], 1)

    return classifier_of(logits)


def greys(count: int = 4, label: int = 0) -> Batch:
    """Images of 0.4 everywhere."""
    return batch_of(torch.full((count, 3, 8, 8), 102, dtype=torch.uint8), torch.full((count,), label))


def half_blind() -> tuple[Classifier, Batch]:
    """A network whose gradient is gone for every second image, and the images."""
    batch = random_batch(8)
    batch.images[::2] //= 2
    bias = 0.5 - float((batch.images / 255 * WEIGHT).flatten(1).sum(1).min())  # all are of class 1

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        seen = torch.where(flat.mean(1, keepdim=True) < 0.4, flat.detach(), flat)
        score = (seen * WEIGHT.flatten()).sum(1)
        return torch.stack([0 * score, score + bias], 1)

    return classifier_of(logits), batch


@pytest.mark.parametrize(
    ("call", "restarts", "passes"),
    [
        ("fgsm", 1, 1),
        ("pgd(steps=7, step_size=0.002)", 1, 7),
        ("pgd(steps=7, step_size=0.002)", 3, 21),
        ("pgd(steps=7, step_size=0.002, eot=4)", 1, 28),
        ("apgd(steps=7)", 1, 7),
        ("fab_t(steps=7)", 1, 7),
        ("square(steps=7)", 1, 0),
    ],
)
def test_gradients_that_are_missing_are_counted_for_the_samples_that_lack_them(
    call: str, restarts: int, passes: int
) -> None:
    model, batch = half_blind()
    columns = attacked(model, batch, call, Threat("linf", 0.01), restarts=restarts)
    assert columns["zero_gradients"].tolist() == [passes, 0] * 4
    assert columns["backwards"].tolist() == [passes] * 8


def test_a_flat_sample_keeps_its_count_as_others_leave() -> None:
    model, batch = half_blind()
    gone = model.logits(batch.images / 255)[1::2, 1].max() / WEIGHT.abs().sum()
    columns = attacked(model, batch, "pgd(steps=9, step_size=0.02)", Threat("linf", 1.2 * float(gone)))
    assert (columns["first_success_step"][1::2] > 0).all()
    assert len(set(columns["first_success_step"].tolist())) > 2, "they leave one by one"
    assert (columns["first_success_step"][::2] == -1).all()
    assert columns["zero_gradients"].tolist() == [9, 0] * 4


def test_nothing_attacked_has_lost_nothing_and_is_nowhere_near() -> None:
    columns = judge_clean(bright(0.5), greys(), device="cpu", all_exits=False)
    assert not columns["zero_gradients"].any()
    assert np.isnan(columns["nearest"]).all()
    assert not judge_clean(bright(0.5), greys(label=1), device="cpu", all_exits=False)["nearest"].any()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts a generator into the table, under the name "made_up"."""

    def enter(images: Any, **fields: bool) -> None:
        def generator(logits, x, y, threat, draws, **options) -> Iterator[Tensor]:  # type: ignore[no-untyped-def]
            yield from images(logits, x)

        monkeypatch.setitem(globals(), "_generator", generator)
        row = AttackRow(
            f"{__name__}:_generator",
            ("linf", "l2"),
            False,
            "nothing",
            "0",
            "this file",
            runs_long=True,
            **fields,
        )
        monkeypatch.setitem(ATTACKS, "made_up", row)

    return enter


_generator: Any = None


def brighter(*amounts: float) -> Any:
    return lambda logits, x: (x + amount for amount in amounts)


def test_nearest_is_the_nearest_that_fools_inside_the_ball_or_not(made_up: Any) -> None:
    made_up(brighter(0.3, 0.05, 0.2, 0.15, 0.25), may_leave=True)
    model = bright(0.5)  # 0.1 above the images
    far = attacked(model, greys(), "made_up", Threat("linf", 0.12))
    assert (far["first_success_step"] == -1).all()
    assert far["nearest"] == pytest.approx(0.15)
    assert far["pred"].tolist() == [0] * 4, "a standing sample shows what was tried inside"
    assert far["linf"] == pytest.approx(0.05)
    near = attacked(model, greys(), "made_up", Threat("linf", 0.18))
    assert (near["first_success_step"] == 4).all()
    assert near["nearest"] == pytest.approx(0.15)
    in_l2 = attacked(model, greys(), "made_up", Threat("l2", 0.01))
    assert in_l2["nearest"] == pytest.approx(0.15 * 192**0.5)
    assert np.isnan(attacked(bright(0.8), greys(), "made_up", Threat("linf", 0.12))["nearest"]).all()
    assert not attacked(bright(0.3), greys(), "made_up", Threat("linf", 0.12))["nearest"].any()


def moody(model: Classifier, share: float, seed: int = 0) -> Classifier:
    """Return the model with its answers swapped in a share of the passes, sample by sample."""
    generator = torch.Generator().manual_seed(seed)

    def logits(x: Tensor) -> Tensor:
        plain = model.logits(x)
        is_off = torch.rand(len(x), generator=generator) < share
        return torch.where(is_off[:, None], plain.flip(1), plain)

    return classifier_of(logits, is_random=True)


RANDOM_CALLS = ["pgd(steps=20, step_size=0.001)", "square(steps=20)"]


@pytest.mark.parametrize("call", RANDOM_CALLS)
def test_a_model_at_random_stands_where_most_passes_are_right(call: str) -> None:
    # Sixty samples and twenty steps: luck has 1200 chances, and three of ten single passes go wrong.
    batch, threat = greys(60), Threat("linf", 0.001)
    columns = attacked(moody(bright(0.5), 0.3), batch, call, threat)
    assert (columns["first_success_step"] == -1).all()
    assert (columns["pred"] == 0).all()
    assert np.isnan(columns["nearest"]).all()
    assert (columns["margin"] > 0).mean() > 0.5
    unsaid = replace(moody(bright(0.5), 0.3), meta={})
    assert (attacked(unsaid, batch, call, threat)["first_success_step"] != -1).mean() > 0.9, (
        "by one draw each"
    )


def mostly_wrong_on_perturbed() -> Classifier:
    """Return a model that is right on greys and goes wrong in eight of ten passes on anything else."""
    plain = bright(0.5)
    generator = torch.Generator().manual_seed(0)

    def logits(x: Tensor) -> Tensor:
        is_perturbed = (x - 0.4).flatten(1).abs().amax(1) > 1e-4
        is_off = is_perturbed & (torch.rand(len(x), generator=generator) < 0.8)
        steady = plain.logits(x)  # the way to go is always the same
        return steady + is_off[:, None] * (steady.flip(1) - steady).detach()

    return classifier_of(logits, is_random=True)


@pytest.mark.parametrize("call", RANDOM_CALLS)
def test_a_model_at_random_falls_where_most_passes_are_wrong(call: str) -> None:
    columns = attacked(mostly_wrong_on_perturbed(), greys(60), call, Threat("linf", 0.001))
    assert (columns["first_success_step"] > 0).all()
    assert (columns["pred"] == 1).all()
    assert (columns["margin"] < 0).all()
    assert columns["nearest"] == pytest.approx(columns["linf"], rel=1e-3)


def test_a_model_at_random_is_wrong_before_where_most_passes_are() -> None:
    columns = attacked(moody(bright(0.5), 0.8), greys(60), "fgsm", Threat("linf", 0.001))
    is_wrong = columns["clean_pred"] == 1
    assert is_wrong.mean() > 0.9, "five of ten may be right by luck"
    assert ((columns["first_success_step"] == 0) == is_wrong).all()
    columns = judge_clean(moody(bright(0.5), 0.3), greys(60), device="cpu", all_exits=False)
    assert (columns["clean_pred"] == 0).all()


def drawn(x: Tensor) -> Tensor:
    """Answer by torch's own random numbers, as dropout does."""
    score = torch.rand(len(x)) - 0.5
    return torch.stack([-score, score], 1)


def test_a_model_at_random_draws_by_the_key_of_its_cell_and_by_nothing_else() -> None:
    model, batch, threat = classifier_of(drawn, is_random=True), greys(60), Threat("linf", 0.001)
    plan = make_plan("pgd(steps=2, step_size=0.001)", threat)
    renamed = replace(plan, protocol=replace(plan.protocol, summary="told otherwise", rank=9))

    def margins(plan: Plan, key: str) -> list[float]:
        torch.rand(7)  # what the process has drawn before does not matter
        return evaluate.attack(model, batch, plan, device="cpu", key=key)["margin"].tolist()

    assert margins(plan, "a") == margins(renamed, "a")
    assert margins(plan, "a") != margins(plan, "b")
    clean = [judge_clean(model, batch, device="cpu", all_exits=False, key=k)["margin"] for k in "aab"]
    assert clean[0].tolist() == clean[1].tolist() != clean[2].tolist()
    images = [evaluate.attack_images(model, batch, p, device="cpu", key="a")[0] for p in (plan, renamed)]
    assert images[0]["margin"].tolist() == images[1]["margin"].tolist()


def test_votes_are_charged(made_up: Any) -> None:
    made_up(brighter(0.05, 0.15))
    steady = replace(bright(0.5), meta={"is_random": True})
    # One look at the images and a vote, one pass for each iterate; the second goes wrong: both votes on it.
    columns = attacked(steady, greys(), "made_up", Threat("linf", 0.2))
    assert (columns["first_success_step"] == 2).all()
    assert columns["forwards"].tolist() == [1 + FRESH + 2 + FRESH + SURE] * 4
    columns = attacked(steady, greys(label=1), "made_up", Threat("linf", 0.2))
    assert columns["forwards"].tolist() == [1 + FRESH + SURE] * 4, "wrong before, and nothing else"


def test_the_last_iterate_of_a_model_at_random_is_judged_by_vote() -> None:
    call = "pgd(steps=[1,5], step_size=0.001)"
    columns = attacked(moody(bright(0.5), 0.3), greys(60), call, Threat("linf", 0.001), protocol="paper")
    assert (columns["pred_at_1"] == 0).all()
    assert (columns["pred_at_5"] == 0).all()
    columns = attacked(mostly_wrong_on_perturbed(), greys(60), call, Threat("linf", 0.001), protocol="paper")
    assert (columns["pred_at_5"] == 1).mean() > 0.9, "and where it fell before, two of ten draws are right"


def test_library_images_are_drawn_back_and_how_far_they_were_is_entered(made_up: Any) -> None:
    made_up(brighter(0.3), may_leave=True, is_adapted=True)
    model = bright(0.5)  # 0.1 above the images
    wide = attacked(model, greys(), "made_up", Threat("linf", 0.2))
    assert (wide["first_success_step"] == 1).all()
    assert wide["linf"] == pytest.approx(0.2)
    assert wide["excess"] == pytest.approx(0.1)
    assert wide["nearest"] == pytest.approx(0.2), "drawn back it fools as well"
    narrow = attacked(model, greys(), "made_up", Threat("linf", 0.05))
    assert (narrow["first_success_step"] == -1).all()
    assert narrow["linf"] == pytest.approx(0.05)
    assert narrow["excess"] == pytest.approx(0.25)
    assert narrow["nearest"] == pytest.approx(0.3), "where the library left it"
    in_l2 = attacked(model, greys(), "made_up", Threat("l2", 0.05 * 192**0.5))
    assert in_l2["l2"] == pytest.approx(0.05 * 192**0.5)
    assert in_l2["nearest"] == pytest.approx(0.3 * 192**0.5)
    inside = attacked(model, greys(), "made_up", Threat("linf", 0.35))
    assert not inside["excess"].any()
    assert inside["nearest"] == pytest.approx(0.3)
    assert np.isnan(attacked(bright(0.9), greys(), "made_up", Threat("linf", 0.2))["nearest"]).all()


def test_every_pass_over_library_images_is_charged(made_up: Any) -> None:
    made_up(brighter(0.3), may_leave=True, is_adapted=True)
    columns = attacked(bright(0.5), greys(), "made_up", Threat("linf", 0.35))
    assert columns["forwards"].tolist() == [2] * 4, "before, and as they came"
    columns = attacked(bright(0.5), greys(), "made_up", Threat("linf", 0.05))
    assert columns["forwards"].tolist() == [3] * 4, "and drawn back"


def test_library_images_beyond_the_range_of_pixels_are_none(made_up: Any) -> None:
    # Only beyond white would it fool.
    made_up(brighter(0.8), may_leave=True, is_adapted=True)
    columns = attacked(bright(1.1), greys(), "made_up", Threat("linf", 0.9))
    assert (columns["first_success_step"] == -1).all()
    assert columns["linf"] == pytest.approx(0.6)
    assert np.isnan(columns["nearest"]).all()


def test_what_a_library_asks_on_its_way_is_no_verdict(made_up: Any) -> None:
    def some(logits: Any, x: Tensor) -> Iterator[Tensor]:
        logits(x[:1])
        logits(x + 0.2)
        logits(x[1:] + 5)
        yield x + 0.05

    made_up(some, may_leave=True, is_adapted=True)
    columns = attacked(bright(0.5), greys(), "made_up", Threat("linf", 0.3))
    assert (columns["first_success_step"] == -1).all()
    assert columns["forwards"].tolist() == [4] * 4, "before, eight images of the four, and as they came"


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (lambda x: x * torch.nan, "finite"),
        (lambda x: x / 0, "finite"),
        (lambda x: x[:2], "finite images"),
        (lambda x: x[:, :, :4], "finite images"),
    ],
)
def test_library_images_that_are_none_are_an_error(broken: Any, what: str, made_up: Any) -> None:
    made_up(lambda logits, x: iter([broken(x)]), may_leave=True, is_adapted=True)
    with pytest.raises(ValueError, match=what):
        attacked(bright(0.5), greys(), "made_up", Threat("linf", 0.3))


def test_a_model_at_random_is_not_nearest_by_luck_where_a_library_left_it(made_up: Any) -> None:
    made_up(brighter(0.05), may_leave=True, is_adapted=True)
    columns = attacked(moody(bright(0.5), 0.3), greys(60), "made_up", Threat("linf", 0.01))
    assert np.isnan(columns["nearest"]).all()


def fragile(pixels: int, batch: Batch) -> Classifier:
    """A linear model, right on the batch, whose gradient is NaN for so many pixels, its answers as ever."""
    plain = linear(WEIGHT, 0.5 - float((batch.images / 255 * WEIGHT).flatten(1).sum(1).min()))

    def logits(x: Tensor) -> Tensor:
        return plain.logits(x) + torch.sqrt(0 * x.flatten(1)[:, :pixels]).sum(1)[:, None]

    return classifier_of(logits)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", [n for n, r in ATTACKS.items() if r.needs == "gradients" and not r.parts])
def test_gradients_that_are_no_numbers_are_counted_as_lost(name: str, norm: Norm) -> None:
    batch = random_batch(4)
    eps = 0.2 if norm == "linf" else 2.0
    short = {"steps": 7, "step_size": eps / 4}
    call = str(Call(name, tuple((k, v) for k, v in short.items() if k in options_of(ATTACKS[name]))))
    columns = attacked(fragile(192, batch), batch, call, Threat(norm, eps))
    assert columns["zero_gradients"].tolist() == columns["backwards"].tolist()
    assert (columns["zero_gradients"] > 0).all()
    columns = attacked(fragile(1, batch), batch, call, Threat(norm, eps))
    assert not columns["zero_gradients"].any(), "the other pixels lead as far as ever"
    assert (columns["first_success_step"] > 0).all()


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("is_random", [False, True])
def test_an_answer_that_is_no_number_is_wrong_whatever_the_label(label: int, is_random: bool) -> None:
    def logits(x: Tensor) -> Tensor:
        score = (x.flatten(1).mean(1) - 0.4) * 0 + (0.5 if label else -0.5)
        is_lost = (x.flatten(1).mean(1) - 0.4).abs() > 0.01
        return torch.stack([-score, score], 1).masked_fill(is_lost[:, None], torch.nan)

    model = classifier_of(logits, is_random=is_random)
    columns = attacked(model, greys(label=label), "square(steps=50)", Threat("linf", 0.1))
    assert (columns["clean_pred"] == label).all()
    assert (columns["pred"] == -1).all()
    assert (columns["first_success_step"] > 0).all()


def test_a_model_at_random_answers_alike_when_it_is_asked_the_same_again() -> None:
    def logits(x: Tensor) -> Tensor:
        score = x.flatten(1).mean(1) - 0.409 + 0.02 * torch.randn(len(x))
        return torch.stack([-score, score], 1)

    model = classifier_of(logits, is_random=True)
    results = []
    for drawn in (0, 3):
        torch.rand(drawn)
        before = torch.random.get_rng_state()
        columns = attacked(model, greys(40), "pgd(steps=3, step_size=0.004)", Threat("linf", 0.01))
        assert torch.equal(torch.random.get_rng_state(), before), "nobody else's draws are touched"
        results.append({name: column.tolist() for name, column in columns.items()})
    for name, column in results[0].items():
        assert column == pytest.approx(results[1][name], nan_ok=True), name
    assert len(set(results[0]["first_success_step"])) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_are_judged(dtype: torch.dtype) -> None:
    plain = linear(WEIGHT, -0.5)
    model = classifier_of(lambda x: plain.logits(x).to(dtype))
    batch = random_batch(4)
    assert len(judge_clean(model, batch, device="cpu", all_exits=False)["pred"]) == 4
    for call in (
        "pgd(steps=2, step_size=0.1)",
        "apgd(steps=3)",
        "apgd_t(steps=3)",
        "fab_t(steps=3)",
        "square(steps=3)",
    ):
        columns = attacked(model, batch, call, Threat("linf", 0.2))
        assert columns["margin"].dtype == np.float32


def test_an_attack_that_makes_no_image_is_an_error(made_up: Any) -> None:
    made_up(brighter())
    with pytest.raises(ValueError, match="made_up made no image"):
        attacked(bright(0.5), greys(), "made_up", Threat("linf", 0.1))


def test_restarts_are_for_attacks_that_draw() -> None:
    def restarts(call: str) -> int:
        return make_plan(call, Threat("linf", 0.1), restarts=5).restarts

    drawing = ("pgd(steps=2, step_size=0.1)", "apgd(steps=2)", "square(steps=2)", "autoattack")
    assert [restarts(call) for call in drawing] == [5] * 4
    steady = ("pgd(steps=2, step_size=0.1, random_start=False)", "fgsm(random_start=False)", "fab_t(steps=2)")
    assert [restarts(call) for call in steady] == [1] * 3
    model, batch, threat = bright(0.42), greys(40), Threat("linf", 0.1)
    alone, many = (
        attacked(model, batch, "square(steps=2)", threat, restarts=count)["first_success_step"] > 0
        for count in (1, 5)
    )
    assert alone.sum() < many.sum()
    assert many[alone].all()
