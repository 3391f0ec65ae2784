"""What an attack is given to ask, so that the loop knows what it asked: no pass is made for judging alone."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from robustglimpse.models.surrogates import Surrogate


class _Joined(torch.autograd.Function):
    """The logits, and a gradient for the images whatever the network's own is.

    Where it is cut off from its images, or a function in it returns None, their gradient is 0, and counted,
    not missing.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.like = x.new_zeros(()).expand(x.shape)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], ctx.like


class Watched:
    """A surrogate that counts the images it is asked about and remembers the last ones, with their exits.

    It also counts, per sample, the backward passes that left it without any gradient.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate
        self.forwards = self.backwards = 0
        self.remembers = 0  # so many images at least, if there were so many
        self._passes: deque[tuple[Tensor, Tensor]] = deque()
        self._flat: list[Tensor] = []
        self._lost: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(self._count_flat)  # type: ignore[no-untyped-call]
        exits, picked = self._surrogate.both(x)
        if x.requires_grad and torch.is_grad_enabled():
            joined: Tensor = _Joined.apply(picked, x)
            picked = joined
        self.forwards += len(x) * self._surrogate.passes
        self.backwards += len(x) * picked.requires_grad
        self._passes.append((x.detach(), exits.detach()))
        while sum(len(seen) for seen, _ in self._passes) - len(self._passes[0][0]) >= max(1, self.remembers):
            self._passes.popleft()
        return picked

    def note_lost(self, is_lost: Tensor) -> None:
        """Count the samples [B] whose loss gave no gradient, where the next backward pass is of another."""
        self._lost = is_lost

    def _count_flat(self, gradient: Tensor) -> None:
        is_flat = (gradient.nan_to_num(0.0).flatten(1) == 0).all(1)
        if self._lost is not None:
            is_flat, self._lost = is_flat | self._lost, None
        self._flat.append(is_flat.long())

    def take_flat(self, count: int, ways: int) -> Tensor | int:
        """Return how many backward passes gave each of `count` samples no gradient since the last call.

        ways: how many images of each sample, side by side, a pass was on.
        """
        flat, self._flat = torch.cat(self._flat) if self._flat else torch.zeros(0), []
        if not len(flat) or len(flat) % (count * ways):
            return 0  # a library may pass samples singly
        return flat.view(-1, count, ways).sum((0, 2))

    @property
    def last(self) -> Tensor | None:
        """The images of the last pass, None before the first."""
        return self._passes[-1][0] if self._passes else None

    def forget(self) -> None:
        """Forget the last passes, so that the next question makes a new one."""
        self._passes.clear()

    def exits_on(self, x: Tensor, at_once: int) -> Tensor:
        """Return the exits' logits on x, from the last passes where those were on x, else from new ones."""
        passes = list(self._passes)
        if not passes or not _is_cut(x, [seen for seen, _ in passes]):
            self.forget()
            self.remembers = max(self.remembers, len(x))
            with torch.no_grad():
                for part in torch.split(x, at_once):
                    self(part)
            passes = list(self._passes)
        return torch.cat([exits for _, exits in passes], 1)


def _is_cut(x: Tensor, parts: list[Tensor]) -> bool:
    """Return whether the parts, one after the other, are x."""
    sizes = [len(part) for part in parts]
    if sum(sizes) != len(x):
        return False
    return all(torch.equal(mine, part) for mine, part in zip(torch.split(x, sizes), parts, strict=True))
