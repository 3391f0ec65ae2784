"""What an attacker differentiates. The network's answer is the same for all; only gradients differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustglimpse.models.mgnet import GRADIENT_PATHS, GradientPath
from robustglimpse.records import Classifier, UserError

ExitsAlong = Callable[[Tensor, GradientPath], Tensor]
Wrapper = Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]
NAMES = (*GRADIENT_PATHS, "mean-exits", "last-exit")


@dataclass(frozen=True)
class Surrogate:
    """A function x [B,3,H,W] -> [B,K] to take gradients of, that also gives every exit.

    exits: x -> [T,B,K]; the same numbers as the classifier's own exits, so that one forward pass of an
        attack is also a verdict on its iterate.
    pick: [T,B,K] -> [B,K]; what the attack's loss looks at.
    lent: x -> [B,K]; looked at instead where another function lends its gradient, in a pass of its own.
    """

    exits: Callable[[Tensor], Tensor]
    pick: Callable[[Tensor], Tensor]
    lent: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[1] if self.lent is None else self.lent(x)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exits [T,B,K], and what the loss looks at, [B,K]; both f32."""
        if self.lent is None:
            exits = self.exits(x).float()
            return exits, self.pick(exits)
        with torch.no_grad():
            exits = self.exits(x.detach()).float()
        return exits, self.lent(x).float()

    @property
    def passes(self) -> int:
        """How many forward passes it makes of each image."""
        return 1 if self.lent is None else 2

    def through(self, wrapper: Wrapper) -> Surrogate:
        """Return the surrogate of a classifier whose functions of images are all wrapped so."""
        return Surrogate(wrapper(self.exits), self.pick, None if self.lent is None else wrapper(self.lent))


def as_surrogate(given: Any, classifier: Classifier) -> Surrogate:
    """Return what a classifier's table of surrogates holds as a Surrogate.

    given: one, or a bare function x -> [B,K].
    """
    if isinstance(given, Surrogate):
        return given
    return Surrogate(classifier.exits, _last, None if given is classifier.logits else given)


def surrogate_of(classifier: Classifier, name: str) -> Surrogate:
    """Return the classifier's surrogate of that name; the gradient of its own exits where it has none.

    Raises UserError for a name that no surrogate has.
    """
    if name in classifier.surrogates:
        return as_surrogate(classifier.surrogates[name], classifier)
    if not is_asked_for(name):
        raise UserError(
            f"{classifier.name} has no surrogate {name!r}; give one of {', '.join(NAMES)}, exit:t"
        )
    pick = _nth(int(name.partition(":")[2]) - 1) if ":" in name else _mean if name == "mean-exits" else _last
    return Surrogate(classifier.exits, pick)


def is_asked_for(name: str) -> bool:
    """Return whether a protocol may ask for a surrogate of this name."""
    return name in NAMES or re.fullmatch(r"exit:[1-9]\d*", name) is not None


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
