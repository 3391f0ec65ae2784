"""What an attacker differentiates. The network's answer is the same for all; only gradients differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from robustglimpse.models.mgnet import GRADIENT_PATHS, GradientPath

ExitsAlong = Callable[[Tensor, GradientPath], Tensor]


@dataclass(frozen=True)
class Surrogate:
    """A function x [B,3,H,W] -> [B,K] to take gradients of, that also gives every exit.

    exits: x -> [T,B,K]; the same numbers as the classifier's own exits, so that one forward pass of an
        attack is also a verdict on its iterate.
    pick: [T,B,K] -> [B,K]; what the attack's loss looks at.
    """

    exits: Callable[[Tensor], Tensor]
    pick: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.pick(self.exits(x))


def surrogates(exits: ExitsAlong, count: int) -> dict[str, Surrogate]:
    """Return the surrogates of a network with `count` exits, by name.

    "as-trained", "no-detach" and "exact" are the last exit through MGNet's gradient paths;
    "exit:1" to "exit:T" and "mean-exits" (the mean of the exits' logits) go through the exact one.
    A network with one exit has them all, so that every family meets an adaptive attack of equal effort.
    """
    table: dict[str, Surrogate] = {path: Surrogate(_along(exits, path), _last) for path in GRADIENT_PATHS}
    exact = _along(exits, "exact")
    for t in range(count):
        table[f"exit:{t + 1}"] = Surrogate(exact, _nth(t))
    return {**table, "mean-exits": Surrogate(exact, _mean)}


def _along(exits: ExitsAlong, path: GradientPath) -> Callable[[Tensor], Tensor]:
    return lambda x: exits(x, path)


def _last(logits: Tensor) -> Tensor:
    return logits[-1]


def _mean(logits: Tensor) -> Tensor:
    return logits.mean(0)


def _nth(t: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[t]
