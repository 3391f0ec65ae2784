"""Square against models whose answer is known, and the windows that it draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustglimpse.attacks import square as attack_module
from robustglimpse.attacks.square import _side, _window, square
from robustglimpse.records import Norm, Threat
from robustglimpse.rng import KeyedDraws


def is_bright(x: Tensor) -> Tensor:
    """Two classes by the mean of the image."""
    score = x.mean((1, 2, 3)) - 0.45
    return torch.stack([-score, score], 1)


def run(x: Tensor, threat: Threat, *, steps: int, seed: int = 0) -> list[Tensor]:
    y = torch.ones(len(x), dtype=torch.int64)
    return list(square(is_bright, x, y, threat, KeyedDraws(seed, torch.arange(len(x))), steps=steps))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(12, 12), (7, 15), (5, 4)])
def test_every_query_stays_in_the_ball_and_the_search_gains(norm: Norm, shape: tuple[int, int]) -> None:
    x = torch.full((3, 3, *shape), 0.5)
    eps = 0.08 if norm == "linf" else 0.08 * (3 * shape[0] * shape[1]) ** 0.5
    queries = run(x, Threat(norm, eps), steps=120)
    assert len(queries) == 120
    for query in queries:
        delta = (query - x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert float(size.max()) <= eps + 1e-5
    lows = torch.stack([query.mean((1, 2, 3)) for query in queries])
    assert (lows.amin(0) < lows[0] - 0.01).all(), "what was found is better than where it began"


def test_a_boundary_that_the_ball_holds_is_found_and_a_farther_one_is_not() -> None:
    x = torch.full((8, 3, 8, 8), 0.5)
    near = torch.stack([q.mean((1, 2, 3)) for q in run(x, Threat("linf", 0.1), steps=400)]).amin(0)
    far = torch.stack([q.mean((1, 2, 3)) for q in run(x, Threat("linf", 0.04), steps=400)]).amin(0)
    assert (near < 0.45).all()
    assert (far > 0.45).all()


def test_each_sample_has_squares_of_its_own_whatever_its_batch() -> None:
    x = torch.full((4, 3, 9, 9), 0.5)
    together = run(x, Threat("linf", 0.1), steps=20)
    assert not torch.equal(together[7][0], together[7][1])
    y = torch.ones(1, dtype=torch.int64)
    alone = list(
        square(is_bright, x[2:3], y, Threat("linf", 0.1), KeyedDraws(0, torch.tensor([2])), steps=20)
    )
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_samples_that_are_let_go_change_nothing_for_the_others() -> None:
    x, y = torch.full((3, 3, 9, 9), 0.5), torch.ones(3, dtype=torch.int64)
    whole = run(x, Threat("linf", 0.1), steps=100)
    queries = square(is_bright, x, y, Threat("linf", 0.1), KeyedDraws(0, torch.arange(3)), steps=100)
    found = [next(queries)]
    keep: Tensor | None = torch.tensor([True, False, True])
    for _ in range(99):
        found.append(queries.send(keep))
        keep = None
    assert torch.equal(found[-1], whole[-1][[0, 2]])


def test_squares_reach_the_last_row_and_column() -> None:
    x = torch.zeros(500, 3, 6, 9)
    corners = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    reached = _window(corners[:, 0], corners[:, 1], 2, x).amax((0, 1))
    assert reached.all()
    assert _window(corners[:, 0], corners[:, 1], 2, x).sum((1, 2, 3)).unique().tolist() == [4]


def test_squares_shrink_as_the_source_says() -> None:
    assert _side(0.8, 1, 32, 32, least=1) == 29  # sqrt(0.8) of 32
    assert _side(0.8, 11, 32, 32, least=1) == 20  # half the area
    assert _side(0.8, 4000, 32, 32, least=1) == 4  # 3.6: 0.8 / 2^6 of it
    assert _side(0.8, 1, 4, 100, least=1) == 4, "never larger than the image"


def test_the_schedule_is_fitted_to_the_number_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    def queries_asked(steps: int, **options: bool) -> list[int]:
        asked: list[int] = []

        def noted(p: float, query: int, height: int, width: int, *, least: int) -> int:
            asked.append(query)
            return _side(p, query, height, width, least=least)

        monkeypatch.setattr(attack_module, "_side", noted)
        x, y = torch.full((1, 3, 8, 8), 0.5), torch.ones(1, dtype=torch.int64)
        draws = KeyedDraws(0, torch.arange(1))
        for _ in square(is_bright, x, y, Threat("linf", 0.01), draws, steps=steps, **options):
            pass
        return asked

    assert queries_asked(1000)[:3] == [10, 20, 30]
    assert queries_asked(1000)[-1] == 9990
    assert queries_asked(1000, rescale=False)[-1] == 999
