"""A model asked about some of its classes alone: what ImageNet-A, ImageNet-R and the like are judged by."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustglimpse.models.surrogates import Surrogate, as_surrogate
from robustglimpse.records import Classifier, UserError


def restricted(classifier: Classifier, classes: Sequence[str]) -> Classifier:
    """Return the classifier that answers with one of `classes`, in its own order: the other logits are cut.

    Its weights, cost and name stay; meta["all_classes"] says how many logits the network has.
    Raises UserError where the model has no names, lacks one of the classes, or fewer than two are left.
    """
    if not classifier.has_names:
        raise UserError(
            f"{classifier.name}: --classes-of-data picks logits by name, and this model only numbers them; "
            "say their names with classes=[...], classes='imagenet' or a file of names"
        )
    missing = [name for name in classes if name not in classifier.classes]
    if missing or len(set(classes)) < 2:
        what = f"lacks {missing[0]!r} ({len(missing)} in all)" if missing else "would be left with one class"
        raise UserError(f"{classifier.name} {what} of the data's {len(classes)} classes; give other data")
    wanted = set(classes)
    places = torch.tensor([k for k, name in enumerate(classifier.classes) if name in wanted])

    def cut(logits: Tensor) -> Tensor:
        return logits.index_select(-1, places.to(logits.device))

    def inside(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: cut(run(x))

    def surrogate(own: Any) -> Surrogate:
        return as_surrogate(own, classifier).through(inside)

    def glances(x: Tensor) -> Generator[Tensor, Tensor | None, None]:
        assert classifier.glances is not None
        each = classifier.glances(x)
        keep: Tensor | None = None
        while True:
            try:
                logits = each.send(keep)
            except StopIteration:
                return
            keep = yield cut(logits)

    return replace(
        classifier,
        logits=inside(classifier.logits),
        exits=inside(classifier.exits),
        surrogates={name: surrogate(own) for name, own in classifier.surrogates.items()},
        classes=tuple(name for name in classifier.classes if name in wanted),
        meta={**classifier.meta, "all_classes": len(classifier.classes)},
        glances=glances if classifier.glances is not None else None,
    )
