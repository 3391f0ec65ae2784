"""What must not change, or may change one way alone, whatever the attack: every row of the table in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import attacked, classifier_of, make_plan
from torch import Tensor

from robustglimpse.attacks import ATTACKS, can_start, options_of
from robustglimpse.attacks.geometry import ROUNDING, ball
from robustglimpse.evaluate import Columns, Turn, attack, in_turns, start_attack
from robustglimpse.records import Batch, Classifier, Norm, Threat
from robustglimpse.registry import Call, parse_call
from robustglimpse.rng import KeyedDraws

CLASSES = 5
# Short runs; an attack that is not here is run with its defaults, or with 6 steps of a quarter of eps.
CALLS: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 8},
    "apgd_t": {"steps": 5, "targets": 3},
    "fab_t": {"steps": 4, "targets": 3},
    "square": {"steps": 40},
}
EPS: dict[Norm, float] = {"linf": 0.02, "l2": 0.2}


def call_of(name: str, eps: float, **options: Any) -> str:
    steps = {"steps": 6, "step_size": eps / 4} if ATTACKS[name].iterative else {}
    return str(Call(name, tuple({**steps, **CALLS.get(name, {}), **options}.items())))


@pytest.fixture(autouse=True)
def _short_autoattack() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        row = ATTACKS["autoattack"]
        calls = map(parse_call, row.parts)
        parts = tuple(call_of(call.name, 0, **dict(call.arguments)) for call in calls)
        patch.setitem(ATTACKS, "autoattack", replace(row, parts=parts))
        yield


def network(height: int = 8, width: int = 8) -> Classifier:
    """An untrained network of one hidden layer of squares.  Sums per sample: the same bits in any batch."""
    generator = torch.Generator().manual_seed(0)
    size = 3 * height * width
    first = torch.randn(16, size, generator=generator) * 2 / size**0.5
    last = torch.randn(CLASSES, 16, generator=generator)

    def logits(x: Tensor) -> Tensor:
        hidden = ((x.flatten(1)[:, None] - 0.5) * first).sum(2) ** 2
        return (hidden[:, None] * last).sum(2)

    return classifier_of(logits, CLASSES)


def images(model: Classifier, height: int = 8, width: int = 8) -> Batch:
    """Images over the whole range of pixels, one in eight with a wrong label."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (24, 3, height, width), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = model.logits(pixels / 255).argmax(1)
    labels[::8] = (labels[::8] + 1) % CLASSES
    return Batch(pixels, labels, torch.arange(24))


def is_fooled(columns: Columns) -> np.ndarray[Any, np.dtype[np.bool_]]:
    fooled: np.ndarray[Any, np.dtype[np.bool_]] = columns["first_success_step"] >= 0
    return fooled


def pairs(*names: str) -> pytest.MarkDecorator:
    """Every named attack, or every one of the table, in each of its norms."""
    cases = [(name, norm) for name in names or ATTACKS for norm in ATTACKS[name].norms]
    return pytest.mark.parametrize(("name", "norm"), cases)


def taking(option: str) -> list[str]:
    return [name for name, row in ATTACKS.items() if option in options_of(row)]


@pairs()
def test_batches_and_their_order_change_nothing(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    plan = make_plan(call_of(name, EPS[norm]), Threat(norm, EPS[norm]), restarts=2)
    whole = attack(model, batch, plan, device="cpu")
    assert 0 < is_fooled(whole).sum() - 3 < 21, "some stand, some fall"
    pieces = [
        attack(model, Batch(batch.images[rows], batch.labels[rows], rows), plan, device="cpu")
        for rows in torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(7)
    ]
    joined = {column: np.concatenate([piece[column] for piece in pieces]) for column in whole}
    back = np.argsort(joined["index"])
    for column in whole:
        np.testing.assert_array_equal(joined[column][back], whole[column], err_msg=column)


@pairs()
def test_turns_of_full_batches_give_what_one_batch_gives(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    plan = make_plan(call_of(name, EPS[norm]), Threat(norm, EPS[norm]), restarts=2)
    sizes, shares = [], []

    def run(turn: Turn) -> Columns:
        sizes.append((turn.part, len(turn.rows)))
        shares.append(turn.done)
        rows = torch.from_numpy(turn.rows)
        shown = Batch(batch.images[rows], batch.labels[rows], rows)
        return attack(model, shown, turn.plan, device="cpu", at_once=7, before=turn.before)

    whole = in_turns(plan, 24, 7, run)
    expected = attack(model, batch, plan, device="cpu")
    for column in expected:
        np.testing.assert_array_equal(whole[column], expected[column], err_msg=column)
    for part in range(len(plan.parts) or 1):
        *full, last = [size for at, size in sizes if at == part]
        assert set(full) <= {7}, "what is left fills batches"
        assert 1 <= last <= 7
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pairs("apgd_t", "fab_t")
def test_targets_side_by_side_never_ask_about_more_images_than_a_batch(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    asked = []

    def logits(x: Tensor) -> Tensor:
        asked.append(len(x))
        return model.logits(x)

    eps = EPS[norm] / 100  # nobody falls
    plan = make_plan(call_of(name, eps, targets=4), Threat(norm, eps))
    attack(classifier_of(logits, CLASSES), batch, plan, device="cpu")
    assert max(asked) == 24
    asked.clear()
    few = Batch(batch.images[1:6], batch.labels[1:6], batch.index[1:6])
    attack(classifier_of(logits, CLASSES), few, plan, device="cpu", at_once=24)
    assert max(asked) == 15, "three targets of five images fit into a pass"


@pairs(*(name for name, row in ATTACKS.items() if not row.parts))
def test_samples_that_are_let_go_change_nothing_for_the_others(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    plan = make_plan(call_of(name, EPS[norm]), Threat(norm, EPS[norm]))
    x, draws = batch.images / 255, KeyedDraws(0, batch.index)
    whole = list(start_attack(plan, model.logits, x, batch.labels, draws))
    run = start_attack(plan, model.logits, x, batch.labels, draws)
    generator = torch.Generator().manual_seed(4)
    rows, keep = batch.index, None
    for x_adv in whole:
        assert torch.equal(run.send(keep), x_adv[rows])
        keep = torch.rand(len(rows), generator=generator) < 0.95
        keep[0] = True
        rows = rows[keep]


@pairs(*(name for name, row in ATTACKS.items() if not row.parts and can_start(Call(name, ()))))
def test_an_attack_that_is_told_where_to_begin_begins_there(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    threat = Threat(norm, EPS[norm])
    x = batch.images / 255
    start = ball(threat, x).random_start(KeyedDraws(5, batch.index))
    asked = []

    def logits(v: Tensor) -> Tensor:
        asked.append(v.detach().clone())
        return model.logits(v)

    plan = make_plan(call_of(name, EPS[norm]), threat)
    next(start_attack(plan, logits, x, batch.labels, KeyedDraws(0, batch.index), start))
    torch.testing.assert_close(asked[0], start, atol=1e-6, rtol=0)


@pairs()
def test_a_wider_ball_never_holds_fewer_adversarials(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    radii = [share * EPS[norm] for share in (0, 0.25, 0.5, 1, 2, 4)]
    tables = [attacked(model, batch, call_of(name, eps), Threat(norm, eps)) for eps in radii]
    falls = [is_fooled(table) for table in tables]
    counts = [int(fall.sum()) for fall in falls]
    assert counts == sorted(counts)
    assert counts[0] == 3, "no ball, nobody fooled"
    assert counts[0] + 3 < counts[-1]
    row = ATTACKS[name]
    if row.may_leave and not row.parts:  # its way is the same in any ball: each sample has one distance
        for fall, table, eps in zip(falls, tables, radii, strict=True):
            assert np.array_equal(fall, table["nearest"] <= np.float32(eps + ROUNDING))
        for smaller, larger in pairwise(tables):
            assert (smaller["nearest"] <= larger["nearest"]).all()


@pairs(*taking("random_start"), "autoattack")
def test_restarts_never_raise_accuracy(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    options = {"random_start": True} if name in taking("random_start") else {}
    call, threat = call_of(name, EPS[norm], **options), Threat(norm, EPS[norm])
    falls = [is_fooled(attacked(model, batch, call, threat, restarts=count)) for count in (1, 2, 4)]
    assert (falls[0] <= falls[1]).all()
    assert (falls[1] <= falls[2]).all()


@pairs(*taking("steps"))
def test_more_steps_never_raise_accuracy(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    eps = 2 * EPS[norm]
    options = {"step_size": eps / 8} if ATTACKS[name].iterative else {}
    calls = [call_of(name, eps, **options, steps=steps) for steps in (1, 3, 30)]
    falls = [is_fooled(attacked(model, batch, call, Threat(norm, eps))) for call in calls]
    counts = [int(fall.sum()) for fall in falls]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    x, draws = batch.images / 255, KeyedDraws(0, batch.index)
    ways = [
        islice(start_attack(make_plan(call, Threat(norm, eps)), model.logits, x, batch.labels, draws), 3)
        for call in calls[1:]
    ]
    # APGD's depends on how many steps are to come, and Square's on the share of them that is done.
    is_one_way = all(torch.equal(few, many) for few, many in zip(*ways, strict=True))
    assert is_one_way or not ATTACKS[name].iterative, "one run is to be the whole curve"
    if is_one_way:
        assert (falls[0] <= falls[1]).all()
        assert (falls[1] <= falls[2]).all()


@pairs(*taking("eot"))
def test_means_over_passes_change_nothing_where_nothing_is_random(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    once, often = (
        attacked(model, batch, call_of(name, EPS[norm], eot=eot), Threat(norm, EPS[norm])) for eot in (1, 4)
    )
    for column in set(once) - {"forwards", "backwards"}:
        np.testing.assert_array_equal(often[column], once[column], err_msg=column)
    was_attacked = once["backwards"] > 0
    assert was_attacked.sum() == 21
    assert (often["backwards"] == 4 * once["backwards"]).all()


@pairs(*(name for name, row in ATTACKS.items() if row.parts))
def test_an_attack_of_parts_is_their_worst_case(name: str, norm: Norm) -> None:
    model = network()
    batch = images(model)
    threat = Threat(norm, EPS[norm])
    whole = is_fooled(attacked(model, batch, name, threat))
    each = [is_fooled(attacked(model, batch, call, threat)) for call in ATTACKS[name].parts]
    assert np.array_equal(whole, np.any(each, 0))
    assert len({tuple(part) for part in each}) > 1, "the parts differ"
    assert not whole.all()


@pytest.mark.parametrize("shape", [(8, 8), (6, 11), (11, 5)])
@pairs()
def test_every_iterate_is_in_the_box_and_what_counts_is_in_the_ball(
    name: str, norm: Norm, shape: tuple[int, int]
) -> None:
    model = network(*shape)
    batch = images(model, *shape)
    eps = EPS[norm]
    plan = make_plan(call_of(name, eps), Threat(norm, eps))
    columns = attack(model, batch, plan, device="cpu")
    assert (columns[norm] <= eps + ROUNDING).all()
    assert (columns["excess"][is_fooled(columns)] <= ROUNDING).all()
    x, draws = batch.images / 255, KeyedDraws(0, batch.index)
    for part in plan.parts or (plan,):
        for x_adv in start_attack(part, model.logits, x, batch.labels, draws):
            ways = x_adv if x_adv.ndim == 5 else x_adv[:, None]  # of each sample one, or several side by side
            assert ways.shape == (len(x), ways.shape[1], *x.shape[1:])
            assert x_adv.min() >= 0
            assert x_adv.max() <= 1
            delta = (ways - x[:, None]).flatten(0, 1).flatten(1)
            far = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
            assert part.may_leave or far.max() <= eps + ROUNDING
