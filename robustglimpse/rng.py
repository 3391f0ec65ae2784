"""Random numbers that belong to a sample, not to a batch."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeyedDraws:
    """Random arrays for a batch of samples, one numpy Philox stream per (seed, stream, label, index).

    seed: the run's seed.  index: i64 [B], each sample's place in its data set.
    stream: tells one use of the seed from another, such as two restarts.
    The same sample draws the same bits in any batch, order, shard or resume, on any device, because
    a stream is named and never advanced: asking twice for a label gives the same numbers twice.
    """

    seed: int
    index: Tensor
    stream: str = ""

    def __getitem__(self, keep: Tensor) -> KeyedDraws:
        """Return the draws of the samples that keep (bool [B] or i64) selects."""
        return KeyedDraws(self.seed, self.index[keep.to(self.index.device)], self.stream)

    def uniform(self, label: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return f32 [B,*shape] uniform in [low,high), on the CPU."""
        import torch

        out = np.empty((len(self.index), *shape), np.float32)
        for row, stream in zip(out, self._streams(label), strict=True):
            stream.random(out=row, dtype=np.float32)
        return torch.from_numpy(out).mul_(high - low).add_(low)

    def normal(self, label: str, shape: tuple[int, ...]) -> Tensor:
        """Return f32 [B,*shape] of the standard normal distribution, on the CPU."""
        import torch

        out = np.empty((len(self.index), *shape), np.float32)
        for row, stream in zip(out, self._streams(label), strict=True):
            stream.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out)

    def _streams(self, label: str) -> list[np.random.Generator]:
        # Philox takes a 128-bit key: the seed and the label in one word, the sample in the other.
        word = (self.seed % 2**32) << 32 | zlib.crc32(f"{self.stream}/{label}".encode())
        return [
            np.random.Generator(np.random.Philox(key=np.array([word, i], np.uint64)))
            for i in self.index.tolist()
        ]
