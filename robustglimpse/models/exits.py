"""Exit by confidence: a sample leaves at the first exit that is sure, and costs nothing after it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustglimpse.arguments import number, shown
from robustglimpse.models.surrogates import Surrogate, as_surrogate, surrogate_of
from robustglimpse.records import Classifier, UserError

OUTSIDE = 0.5  # how far an image that was attacked without clipping may leave [0,1]


class Answer(NamedTuple):
    """What each sample left with."""

    logits: Tensor  # f32 [B,K], of the exit where it left
    confidence: Tensor  # f32 [B], the largest probability there
    exit: Tensor  # i64 [B], 1..T


def confidence(logits: Tensor) -> Tensor:
    """Return the probability of the likeliest class: [..., K] -> [...]."""
    return logits.float().softmax(-1).amax(-1)


def exit_early(classifier: Classifier, x: Tensor, *, threshold: float) -> Answer:
    """Return each image's answer at the first exit whose confidence reaches the threshold, else at the last.

    x: f32 [B,3,H,W] in [0,1].  Who is sure leaves the batch, so that later exits run on the others alone;
    the logits are those of a pass through all exits, but for rounding.  A classifier without glances
    computes all its exits first, and saves nothing.  Raises UserError for a threshold outside [0,1], and for
    other images.
    """
    check_threshold(threshold)
    threshold, x = float(threshold), _checked(classifier, x)
    waiting = torch.arange(len(x), device=x.device)
    glances = classifier.glances(x) if classifier.glances is not None else _at_once(classifier, x)
    with torch.no_grad():
        logits = next(glances)
        answer = Answer(logits.clone(), confidence(logits), torch.ones_like(waiting))
        while True:
            keep = answer.confidence[waiting] < threshold
            waiting = waiting[keep]
            if not len(waiting):
                glances.close()
                return answer
            try:
                logits = glances.send(keep)
            except StopIteration:
                return answer
            answer.logits[waiting] = logits
            answer.confidence[waiting] = confidence(logits)
            answer.exit[waiting] += 1


def _checked(classifier: Any, x: Any) -> Tensor:
    """Return images, a tensor or an array, as f32 [B,3,H,W]. Raises UserError for others and for no model."""
    if not isinstance(classifier, Classifier):
        raise UserError(
            f"exit_early takes a Classifier, got {shown(classifier)}; for example load_model('mgnet-r18')"
        )
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.array(x))
    if not isinstance(x, Tensor) or x.ndim != 4 or not len(x):
        raise UserError(f"images must be f32 [B,3,H,W], B from 1 up, got {shown(x)}; x[None] of one image")
    if not x.is_floating_point() or not (x.amin() >= -OUTSIDE and x.amax() <= 1 + OUTSIDE):
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(
            f"images must be floats in [0,1] before any normalisation, got {dtype} from {x.amin():.3g} to "
            f"{x.amax():.3g}; images.float() / 255 of levels"
        )
    return x.float()


def check_threshold(threshold: float) -> None:
    """Raise UserError unless the threshold is a probability."""
    if not 0 <= number(threshold, "threshold, a confidence from 0 to 1,", example="0.9") <= 1:
        raise UserError(f"threshold must be a confidence from 0 to 1, got {threshold}; for example 0.9")


def _at_once(classifier: Classifier, x: Tensor) -> Generator[Tensor, Tensor | None, None]:
    exits = classifier.exits(x)
    for t in range(len(exits)):
        keep = yield exits[t]
        if keep is not None:
            exits = exits[:, keep]


def first_sure(exits: Tensor, threshold: float) -> Tensor:
    """Return which exit, 0..T-1, each sample leaves at: [T,B,K] -> i64 [B]."""
    is_sure = confidence(exits) >= threshold
    is_sure[-1] = True
    return is_sure.int().argmax(0)


def by_confidence(classifier: Classifier, threshold: float) -> Classifier:
    """Return the classifier that answers as exit_early does: what an attacker of that rule differentiates.

    Its exits are those of the network and behind them, as the last, the answer of the rule.  Gradients go
    through the exit where each sample leaves; "mean-exits" and "exit:<t>" stay those of the network, and
    "last-exit" is its last one as trained: what a sample that leaves early has no gradient into.
    Raises UserError for a threshold outside [0,1].
    """
    check_threshold(threshold)

    def ruled(exits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: _with_rule(exits(x), threshold)

    def surrogate(name: str, given: Any) -> Surrogate:
        own = as_surrogate(given, classifier)
        if name in RULED:  # gradients that are lent are those of the last exit, not of the rule
            return Surrogate(ruled(own.exits), _last)
        return Surrogate(ruled(own.exits), lambda exits: own.pick(exits[:-1]), own.lent)

    table = {name: surrogate(name, own) for name, own in classifier.surrogates.items()}
    as_trained = surrogate_of(classifier, "as-trained")
    table["last-exit"] = Surrogate(ruled(as_trained.exits), _before_rule, as_trained.lent)
    table.setdefault("mean-exits", surrogate("mean-exits", surrogate_of(classifier, "mean-exits")))
    exits = ruled(classifier.exits)
    meta = {key: value for key, value in classifier.meta.items() if key != "architecture"}
    count = classifier.meta.get("exits", 1)
    return replace(
        classifier,
        name=f"{classifier.name} leaving at {threshold}",
        logits=lambda x: exits(x)[-1],
        exits=exits,
        surrogates=table,
        meta={**meta, "exits": count + 1, "network": classifier.name, "threshold": threshold},
        glances=None,
    )


RULED = ("as-trained", "no-detach", "exact")  # surrogates of the last exit, which is here the rule's answer


def _last(exits: Tensor) -> Tensor:
    return exits[-1]


def _before_rule(exits: Tensor) -> Tensor:
    return exits[-2]


def _with_rule(exits: Tensor, threshold: float) -> Tensor:
    """Return the exits with the logits that the rule answers behind them: [T,B,K] -> [T+1,B,K]."""
    leaves = first_sure(exits.detach(), threshold)
    chosen = exits[leaves, torch.arange(exits.shape[1], device=exits.device)]
    return torch.cat([exits, chosen[None]])
