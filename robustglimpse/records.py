"""The nouns that flow through the package, and the columns of its two tables. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2"]
Judge = Literal["last", "worst"]
Channels = tuple[float, float, float]

SCHEMA = 1

# results.csv: one row per cell, exit, verdict and step count. Accuracies are fractions.
# options: the attack's arguments that have no column of their own.
# labels: how the data's classes were matched to the model's logits: "by name", "by number", ...
# preparation: what was done to an image between its file and the model: "as stored", "resize 73 crop 64", ...
# cell: the key of the cell, and so of its file of outcomes.
RESULT_COLUMNS = (
    "schema", "model", "backbone", "family", "weights_sha256", "dataset", "data_sha256", "split", "labels",
    "classes", "size_px", "preparation", "n", "n_total", "kind", "attack", "options", "norm", "eps",
    "eps_text", "step_size", "steps", "restarts", "protocol", "surrogate", "judge", "seed", "corruption",
    "severity", "preset", "store", "texture", "exit", "correct", "total", "accuracy", "ci_low", "ci_high",
    "gmacs", "forwards", "backwards", "seconds", "batch_size", "device", "torch", "robustglimpse", "cell",
    "status", "error",
)  # fmt: skip

# Per-sample outcomes: one row per sample and exit, kept for every cell.
# nearest: distance, in the threat's norm, of the nearest image seen that fooled the exit, also one outside
# the ball.  zero_gradients: backward passes that gave the sample no gradient at all.
OUTCOME_COLUMNS = (
    "index", "label", "exit", "clean_pred", "pred", "margin", "linf", "l2", "excess",
    "first_success_step", "forwards", "backwards", "zero_gradients", "nearest",
)  # fmt: skip


class UserError(Exception):
    """Something a user can mend: what was expected, what came, what to do, in one line."""


@dataclass(frozen=True)
class Threat:
    """What an attacker may do to an image in [0,1].

    eps: radius of the ball, in pixel units of [0,1] (4/255, not 4).
    scale: multiplies eps and step size per channel; with the standard deviations of a model's
        normalisation it expresses an attack made in normalised space.  None means 1 for each.
    bounds: the valid pixel range, or None where the attack does not clip to it.
    """

    norm: Norm
    eps: float
    scale: Channels | None = None
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be {' or '.join(get_args(Norm))}, got {self.norm!r}")
        if not (isinstance(self.eps, Real) and math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be finite and at least 0, got {self.eps!r}")


@dataclass(frozen=True)
class Protocol:
    """How an attack is set up and judged.

    normalised: the ball lives in the model's normalised pixels and is not clipped to valid ones.
    surrogates: whose gradients are followed, in turn, each on what the others left standing.
    judges: which verdicts become rows, the headline first; "worst" alone lets fooled samples leave early.
    rank: its place from the mildest, 1, to the hardest, as readers should meet them.
    dashes: its line in figures: lengths drawn and left out in turn, in line widths; () for a solid one.
    """

    summary: str
    normalised: bool
    random_start: bool
    surrogates: tuple[str, ...]
    judges: tuple[Judge, ...]
    rank: int = field(repr=False)
    dashes: tuple[float, ...] = field(repr=False)


PROTOCOLS: dict[str, Protocol] = {
    "plain": Protocol(
        "as libraries are compared: pixels, no random start, clipped to [0,1], last iterate",
        False, False, ("as-trained",), ("last", "worst"), rank=2, dashes=(3, 1.5, 1, 1.5),
    ),
    "standard": Protocol(
        "pixels, random start, clipped to [0,1], any iterate may fool",
        False, True, ("as-trained",), ("worst",), rank=3, dashes=(),
    ),
    "paper": Protocol(
        "as MGNet's authors: normalised pixels (eps some 4.4 times smaller), no start, no clip, last iterate",
        True, False, ("as-trained",), ("last", "worst"), rank=1, dashes=(1, 1.2),
    ),
    "adaptive": Protocol(
        "as standard, through three gradients in turn: as trained, exact, mean of exits",
        False, True, ("as-trained", "exact", "mean-exits"), ("worst",), rank=4, dashes=(5, 2),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Images u8 [B,3,H,W], labels i64 [B], and index i64 [B]: their places in the set's fixed order."""

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Classifier:
    """A frozen network as an attacker and a judge see it: images f32 [B,3,H,W] in [0,1].

    logits: x -> [B,K]; alone decides.  exits: x -> [T,B,K], the last being logits.
    surrogates: name -> (x -> [B,K]); what an attacker may differentiate instead of logits.
    trace: x -> regions [T,B,3] of (a_s, a_x, a_y).
    normalisation: the mean and standard deviation applied inside.
    glances: x -> a generator of logits [B,K] after one exit after the other, each computed when asked for.
        What is sent, bool [B], says which samples go on to the next.  None where all exits come at once.
    is_named: whether classes are names that somebody gave, or numbers that stand for none.
    renew: puts a network that its owner may have changed in eval mode again, and returns its hash of now.
        None where nobody can change it.
    """

    name: str
    logits: Callable[[Tensor], Tensor]
    exits: Callable[[Tensor], Tensor]
    surrogates: Mapping[str, Callable[[Tensor], Tensor]]
    trace: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    size_px: int
    sha256: str
    normalisation: tuple[Channels, Channels]
    meta: Mapping[str, Any] = field(default_factory=dict)
    glances: Callable[[Tensor], Generator[Tensor, Tensor | None, None]] | None = None
    is_named: bool = True
    renew: Callable[[], str] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits [B,K] of images f32 [B,3,H,W] in [0,1]."""
        return self.logits(x)

    @property
    def has_names(self) -> bool:
        """Whether the classes have names of their own: 0, 1, 2, ... only say how many there are."""
        return self.is_named and self.classes != tuple(map(str, range(len(self.classes))))


@dataclass(frozen=True)
class Cell:
    """One unit of work of a grid: strings and numbers only, so that its key is the same everywhere.

    perturb: a call string, or "clean".  exits: which exits of the network are judged: "last"; "all", each on
        what was made against it; "image", all on the one image that was made against the last.
    limit: None for the whole split.
    classes_of_data: whether the model's answer was restricted to the data's classes.
    """

    model: str
    data: str
    split: str
    perturb: str
    threat: Threat
    protocol: str
    restarts: int
    limit: int | None
    batch_size: int
    seed: int
    exits: str = "last"
    classes_of_data: bool = False

    @property
    def described(self) -> dict[str, Any]:
        """The cell as a record keeps it: what came later is left out where it asks for nothing."""
        fields = asdict(self)
        if not self.classes_of_data:
            del fields["classes_of_data"]
        return fields

    @property
    def key(self) -> str:
        """The first 16 hex digits of the SHA-256 of the cell's canonical JSON."""
        text = json.dumps(self.described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Estimate:
    """A proportion with its interval: correct of total, all three as fractions."""

    correct: int
    total: int
    value: float
    low: float
    high: float
