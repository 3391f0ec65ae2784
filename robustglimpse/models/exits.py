"""Exit by confidence: a sample leaves at the first exit that is sure, and costs nothing after it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustglimpse.models.surrogates import Surrogate
from robustglimpse.records import Classifier, UserError


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
    computes all its exits first, and saves nothing.  Raises UserError for a threshold outside [0,1].
    """
    check_threshold(threshold)
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


def check_threshold(threshold: float) -> None:
    """Raise UserError unless the threshold is a probability."""
    if not 0 <= threshold <= 1:
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

    def surrogate(name: str, own: Any) -> Surrogate:
        is_rule = name in RULED
        return Surrogate(ruled(own.exits), _last if is_rule else lambda exits: own.pick(exits[:-1]))

    table = {name: surrogate(name, own) for name, own in classifier.surrogates.items()}
    if "as-trained" in table:
        table["last-exit"] = Surrogate(table["as-trained"].exits, _before_rule)
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
