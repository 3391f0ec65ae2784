"""What a model is asked before anything is judged on it, and why it may see nothing in the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustglimpse.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from robustglimpse.records import Channels, Classifier, UserError

PROBES = 4
REPEATS, MORE_REPEATS = 2, 16
# How far logits may differ, as a share of the largest: the same pass again, and in another batch (where a
# GPU picks another algorithm, in TF32).
AGAIN, ELSEWHERE = 1e-4, 5e-3

# Ways in which images are prepared, as they are spelled in a call.
PREPARATIONS: Mapping[str, tuple[Channels, Channels]] = {
    "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]": (IMAGENET_MEAN, IMAGENET_STD),
    "mean=[0, 0, 0], std=[1, 1, 1]": ((0.0,) * 3, (1.0,) * 3),
    "mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]": ((0.5,) * 3, (0.5,) * 3),
    "mean=[0, 0, 0], std=[1/255, 1/255, 1/255]": ((0.0,) * 3, (1 / 255,) * 3),
}


def check_model(classifier: Classifier, images: Tensor) -> Classifier:
    """Return the classifier with meta["is_random"], once it has answered images as a model should.

    images: f32 [B,3,H,W] in [0,1], on the model's device; the first few are used, noise or real ones.
    It must give finite logits [B,K] in which every image has its own, the same in any batch.  A model
    that answers the same batch otherwise each time is random: what its batch does cannot be told then.
    Raises UserError for others.  The global random state stays as it was.
    """
    x, name = images[:PROBES], classifier.name
    is_random = bool(classifier.meta.get("is_random"))
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)  # so that a model meets the same verdict each time
        together = finite_logits(classifier.logits, x, name)
        if together.shape[1] != len(classifier.classes):
            raise UserError(
                f"{name}: expected a logit for each of {len(classifier.classes)} classes, got "
                f"{list(together.shape)}; say how many with classes={together.shape[1]}"
            )
        is_random = is_random or _varies(classifier, x, together, REPEATS)
        if not is_random and not all(
            _is_alone_alike(classifier, x[k : k + 1], together[k : k + 1]) for k in {0, len(x) - 1}
        ):
            is_random = _varies(classifier, x, together, MORE_REPEATS)  # it may throw but one coin
            if not is_random:
                raise UserError(
                    f"{name}: an image's logits depend on the other images of its batch; "
                    "put the module in eval mode (model.eval()), its batch norms above all"
                )
    return replace(classifier, meta={**classifier.meta, "is_random": is_random})


def _varies(classifier: Classifier, x: Tensor, expected: Tensor, times: int) -> bool:
    """Return whether one of so many passes gives other logits than expected."""
    passes = (finite_logits(classifier.logits, x, classifier.name) for _ in range(times))
    return not all(_is_near(again, expected, AGAIN) for again in passes)


def _is_alone_alike(classifier: Classifier, x: Tensor, expected: Tensor) -> bool:
    """Return whether one image alone gives what it gave among others: a training batch norm may refuse it."""
    try:
        return _is_near(finite_logits(classifier.logits, x, classifier.name), expected, ELSEWHERE)
    except UserError:
        return False


def finite_logits(logits: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    """Return logits(x) as f32 [B,K]. Raises UserError, naming the model, where they are something else."""
    try:
        with torch.no_grad():
            found = logits(x)
    except UserError:
        raise
    except Exception as error:  # it is somebody else's code
        raise UserError(
            f"{name}: expected a model that turns f32 {list(x.shape)} into logits, got {reason(error)}; "
            "are the images of its size (size_px=N)?"
        ) from error
    if (
        not isinstance(found, Tensor)
        or not found.is_floating_point()
        or found.ndim != 2
        or len(found) != len(x)
    ):
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{name}: expected logits [{len(x)},K], got {what}; name them with output=")
    wrong = int((~found.isfinite()).sum())
    if wrong:
        raise UserError(
            f"{name}: expected finite logits, {wrong} of {found.numel()} are NaN or infinite; "
            "are its weights whole, and its images prepared as in training?"
        )
    return found.float()


def _is_near(a: Tensor, b: Tensor, share: float) -> bool:
    return float((a - b).abs().max()) <= share * float(b.abs().max())


def reason(error: Exception) -> str:
    """Return an exception on one line, not too long."""
    text = next(iter(str(error).splitlines()), "")
    text = text if len(text) <= 140 else f"{text[:140]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def right_if_prepared(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Return how many images the model gets right under each of PREPARATIONS, instead of its own.

    images: f32 [B,3,H,W] in [0,1].  For a model below expectation: the wrong one shows as chance.
    """
    mean, std = (torch.tensor(c, device=images.device)[:, None, None] for c in classifier.normalisation)
    right = {}
    with torch.no_grad():
        for text, (shift, scale) in PREPARATIONS.items():
            x = images - torch.tensor(shift, device=images.device)[:, None, None]
            x = x / torch.tensor(scale, device=images.device)[:, None, None]
            found = classifier.logits(x * std + mean).argmax(1)
            right[text] = int((found == labels).sum())
    return right
