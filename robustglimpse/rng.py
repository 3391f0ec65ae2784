"""Random numbers that belong to a sample, not to a batch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robustglimpse.arguments import seed as whole_seed
from robustglimpse.arguments import several, whole
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


class Draws(Protocol):
    """A source of random arrays, one row per sample of a batch, on the CPU."""

    def __len__(self) -> int:
        """Return how many samples it draws for."""

    def named(self, stream: str) -> Draws:
        """Return the source for one use, such as "fog 3"; using another one up does not touch it."""

    def uniform(self, label: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return floats [B,*shape] uniform in [low,high)."""

    def normal(self, label: str, shape: tuple[int, ...]) -> Tensor:
        """Return floats [B,*shape] of the standard normal distribution."""

    def integers(self, label: str, shape: tuple[int, ...], low: Array | int, high: Array | int) -> Tensor:
        """Return i64 [B,*shape] uniform in [low,high); bounds may differ per sample ([B])."""

    def poisson(self, label: str, levels: Array, rates: Array, most: int) -> Array:
        """Return counts i64 like levels, u8 [B,...], each of rate rates[level], f64 [256].

        most: counts above it may come back as any number from it on.
        """


@dataclass(frozen=True)
class KeyedDraws:
    """Random arrays for a batch of samples, one numpy Philox stream per (seed, stream, label, index).

    seed: the run's seed, below 2**32.  index: i64 [B], each sample's place in its data set.
    stream: tells one use of the seed from another, such as two restarts.
    The same sample draws the same bits in any batch, order, shard or resume, on any device, because
    a stream is named and never advanced: asking twice for a label gives the same numbers twice.
    """

    seed: int
    index: Tensor
    stream: str = ""

    def __post_init__(self) -> None:
        """Take lists, arrays and ranges as well. Raises UserError for what is no seed or no place."""
        object.__setattr__(self, "seed", whole_seed(self.seed))
        object.__setattr__(self, "index", _places(self.index))

    def __getitem__(self, keep: Tensor) -> KeyedDraws:
        """Return the draws of the samples that keep (bool [B] or i64) selects."""
        return KeyedDraws(self.seed, self.index[keep.to(self.index.device)], self.stream)

    def uniform(self, label: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return f32 [B,*shape] uniform in [low,high), on the CPU."""
        import torch

        out = np.empty((len(self.index), prod(shape)), np.float32)
        for row, stream in zip(out, self._streams(label), strict=True):
            stream.random(out=row, dtype=np.float32)
        return torch.from_numpy(out).mul_(high - low).add_(low).view(len(out), *shape)

    def normal(self, label: str, shape: tuple[int, ...]) -> Tensor:
        """Return f32 [B,*shape] of the standard normal distribution, on the CPU."""
        import torch

        out = np.empty((len(self.index), prod(shape)), np.float32)
        for row, stream in zip(out, self._streams(label), strict=True):
            stream.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out).view(len(out), *shape)

    def __len__(self) -> int:
        """Return how many samples it draws for."""
        return len(self.index)

    def named(self, stream: str) -> KeyedDraws:
        """Return the source for one use, such as "fog 3"."""
        return KeyedDraws(self.seed, self.index, f"{self.stream}/{stream}")

    def integers(self, label: str, shape: tuple[int, ...], low: Array | int, high: Array | int) -> Tensor:
        """Return i64 [B,*shape] uniform in [low,high), on the CPU; bounds may differ per sample."""
        import torch

        lows, highs = (np.broadcast_to(bound, len(self.index)) for bound in (low, high))
        rows = [
            stream.integers(a, b, shape, dtype=np.int64)
            for stream, a, b in zip(self._streams(label), lows, highs, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape, dtype=torch.int64)

    def poisson(self, label: str, levels: Array, rates: Array, most: int) -> Array:
        """Return Poisson counts like levels, u8 [B,...], of rate rates[level]; `most` stands for more, too.

        A 32-bit word each: its high bits choose a column of the level's alias table, the others decide
        between the column's two counts.  Source: Walker 1977; Vose 1991.
        """
        columns_log2, threshold, counts = _alias_tables(rates.tobytes(), most)
        shift = 32 - columns_log2
        out = np.empty(levels.shape, np.int64)
        for row, level, stream in zip(out, levels, self._streams(label), strict=True):
            words = stream.bit_generator.random_raw((level.size + 1) // 2).view(np.uint32)
            words = words[: level.size].reshape(level.shape)
            at = (level.astype(np.int64) << columns_log2) + (words >> shift)
            is_other = (words << columns_log2) >= threshold.take(at)
            counts.take((at << 1) + is_other, out=row)
        return out

    def _streams(self, label: str) -> list[np.random.Generator]:
        # Philox takes a 128-bit key: the seed and the label in one word, the sample in the other.
        word = (self.seed % 2**32) << 32 | zlib.crc32(f"{self.stream}/{label}".encode())
        return [
            np.random.Generator(np.random.Philox(key=np.array([word, i], np.uint64)))
            for i in self.index.tolist()
        ]


def _places(index: Any) -> Tensor:
    """Return i64 [B] of places in a data set. Raises UserError for what is none."""
    import torch

    if isinstance(index, np.ndarray) and np.issubdtype(index.dtype, np.integer):
        index = torch.from_numpy(index.astype(np.int64))
    elif not isinstance(index, torch.Tensor):
        index = torch.tensor(several(index, "index", partial(whole, what="index")), dtype=torch.int64)
    is_whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    if not is_whole or index.ndim != 1 or (len(index) and int(index.min()) < 0):
        raise UserError(
            f"index must be i64 [B] of places from 0 up, got {str(index.dtype).removeprefix('torch.')} "
            f"{list(index.shape)}; for example torch.arange(16)"
        )
    places: Tensor = index
    return places


@lru_cache(maxsize=32)
def _alias_tables(rates: bytes, most: int) -> tuple[int, Array, Array]:
    """Return (log2 of the columns, thresholds u32 [R*columns], counts i64 [R*columns*2]) of Poisson laws.

    rates: f64 [R] as bytes.  The law of row r gives count k in 0..most-1 its Poisson probability, and
    `most` the rest.
    """
    rate = np.frombuffer(rates)
    columns_log2 = max(1, int(most).bit_length())
    columns = 1 << columns_log2
    k = np.arange(most)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = k * np.log(rate[:, None]) - rate[:, None] - log_factorial
    p = np.zeros((len(rate), columns))
    p[:, :most] = np.where(rate[:, None] > 0, np.exp(log_p), k == 0)
    p[:, most] = np.maximum(0.0, 1.0 - p[:, :most].sum(1))
    threshold = np.empty((len(rate), columns))
    counts = np.empty((len(rate), columns, 2), np.int64)
    counts[:, :, 0] = counts[:, :, 1] = np.arange(columns)
    for row, share, pair in zip(p / p.sum(1, keepdims=True), threshold, counts, strict=True):
        scaled = row * columns
        share[:] = 1.0
        small, large = list(np.flatnonzero(scaled < 1)), list(np.flatnonzero(scaled >= 1))
        while small and large:
            poor, rich = small.pop(), large[-1]
            share[poor], pair[poor, 1] = scaled[poor], rich
            scaled[rich] -= 1 - scaled[poor]
            if scaled[rich] < 1:
                small.append(large.pop())
    # A word below the threshold takes the column's own count; a share of 1 needs every word, which the
    # last one misses: the other count of such a column is its own.
    words = np.minimum(threshold * 2.0**32, 2.0**32 - 1).astype(np.uint32)
    return columns_log2, words.ravel(), counts.ravel()


class LegacyDraws:
    """Numpy's legacy global stream, one per image, to replay the 2018 corruption reference.

    seeds: what numpy.random.seed was given before each image.  Labels are ignored: like that stream it
    only moves on, so arrays come in the order in which they are asked for, and in f64.
    """

    def __init__(self, seeds: Sequence[int] | int) -> None:
        self.seeds = several(seeds, "seeds", partial(whole_seed, what="seeds"))
        self._streams = [np.random.RandomState(seed) for seed in self.seeds]

    def __len__(self) -> int:
        """Return how many samples it draws for."""
        return len(self.seeds)

    def named(self, stream: str) -> LegacyDraws:
        """Return the streams from their beginning, whatever the use."""
        return LegacyDraws(self.seeds)

    def uniform(self, label: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return f64 [B,*shape] uniform in [low,high)."""
        return self._rows(lambda stream: stream.uniform(low, high, shape))

    def normal(self, label: str, shape: tuple[int, ...]) -> Tensor:
        """Return f64 [B,*shape] of the standard normal distribution."""
        return self._rows(lambda stream: stream.standard_normal(shape))

    def integers(self, label: str, shape: tuple[int, ...], low: Array | int, high: Array | int) -> Tensor:
        """Return i64 [B,*shape] uniform in [low,high); bounds may differ per sample ([B])."""
        lows, highs = (iter(np.broadcast_to(bound, len(self)).tolist()) for bound in (low, high))
        return self._rows(lambda stream: stream.randint(next(lows), next(highs), shape))

    def poisson(self, label: str, levels: Array, rates: Array, most: int) -> Array:
        """Return counts i64 like levels, u8 [B,...], each of rate rates[level], f64 [256]."""
        pairs = zip(self._streams, levels, strict=True)
        return np.stack([stream.poisson(rates[level]) for stream, level in pairs])

    def _rows(self, draw: Callable[[np.random.RandomState], Any]) -> Tensor:
        import torch

        return torch.from_numpy(np.stack([np.asarray(draw(stream)) for stream in self._streams]))
