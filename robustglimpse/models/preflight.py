"""What a model is asked before anything is judged on it, and why it may see nothing in the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import comb

import torch
from torch import Tensor

from robustglimpse.models.foreign import undisturbed
from robustglimpse.models.surrogates import Surrogate, is_asked_for
from robustglimpse.models.zoo import IMAGENET_MEAN, IMAGENET_STD
from robustglimpse.records import Channels, Classifier, UserError

PROBES = 4
REPEATS, MORE_REPEATS = 2, 16
# How far logits may differ, as a share of the largest: the same pass again, and in another batch (where a
# GPU picks another algorithm, in TF32).
AGAIN, ELSEWHERE = 1e-4, 5e-3
# How far outputs that are probabilities may leave [0,1], and their sum 1: in f16 they are rounded.
ROUNDED, ADDED = 1e-6, 5e-3

# Ways in which images are prepared, as they are spelled in a call.
PREPARATIONS: Mapping[str, tuple[Channels, Channels]] = {
    "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]": (IMAGENET_MEAN, IMAGENET_STD),
    "mean=[0, 0, 0], std=[1, 1, 1]": ((0.0,) * 3, (1.0,) * 3),
    "mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]": ((0.5,) * 3, (0.5,) * 3),
    "mean=[0, 0, 0], std=[1/255, 1/255, 1/255]": ((0.0,) * 3, (1 / 255,) * 3),
    "mean=[0.4914, 0.4822, 0.4465], std=[0.247, 0.2435, 0.2616]": (
        (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616),
    ),
    "mean=[0.1307, 0.1307, 0.1307], std=[0.3081, 0.3081, 0.3081]": ((0.1307,) * 3, (0.3081,) * 3),
}  # fmt: skip
# What no option of a call says: how to say it in the model.
BGR = "its channels in the order blue, green, red (as OpenCV reads them: x[:, [2, 1, 0]] in front of it)"
CAFFE = "channels blue, green, red from 0 to 255, less 103.94, 116.78, 123.68 (as Caffe's models)"
CAFFE_MEAN: Channels = (103.94 / 255, 116.78 / 255, 123.68 / 255)
SOFTMAX = (
    "its outputs look like probabilities (softmax inside), whose gradients vanish; remove the softmax, or "
    "say output='probabilities' to take their log"
)
UNLIKELY = 0.01  # the p-value below which another preparation is called better


def check_model(classifier: Classifier, images: Tensor) -> Classifier:
    """Return the classifier, once it has answered images as a model should, with what was seen in its meta.

    images: f32 [B,3,H,W] in [0,1], on the model's device; the first few are used, noise or real ones.
    It must give finite logits [B,K] in which every image has its own, the same in any batch, and exits
    [T,B,K] whose last are these.  A model that answers the same batch otherwise each time is random: what its
    batch does cannot be told then.  meta: "is_random"; "exits", how many; "notes", lines for the user.
    Raises UserError for others.  The global random state stays as it was.
    """
    x, name = images[:PROBES], classifier.name
    is_random = bool(classifier.meta.get("is_random"))
    with undisturbed():  # from seed 0, so that a model meets the same verdict each time
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
        count, is_random = _count_exits(classifier, x, together, is_random)
    meta = {**classifier.meta, "is_random": is_random, "exits": count}
    notes = [*classifier.meta.get("notes", ()), *_notes(classifier, together)]
    if notes:
        meta["notes"] = tuple(dict.fromkeys(notes))
    return replace(classifier, meta=meta)


def _notes(classifier: Classifier, logits: Tensor) -> Iterator[str]:
    """Yield what a user should know of a model that has given these logits."""
    if are_distributions(logits):
        yield f"{classifier.name}: {SOFTMAX}"
    unused = [name for name in classifier.surrogates if not is_asked_for(name)]
    if unused:
        yield (
            f"{classifier.name}: its surrogate {unused[0]!r} is never asked for; those that are: as-trained, "
            "no-detach, exact, mean-exits, last-exit and exit:1 to exit:T"
        )


def _count_exits(classifier: Classifier, x: Tensor, logits: Tensor, is_random: bool) -> tuple[int, bool]:
    """Return how many exits the classifier has, and whether it is random after all.

    Raises UserError unless they are [T,B,K], the last being its logits, and surrogates give [B,K].
    """
    name, cure = classifier.name, "of one exit they are lambda x: logits(x)[None]"
    for called, surrogate in classifier.surrogates.items():
        if not isinstance(surrogate, Surrogate):
            finite_logits(surrogate, x, f"{name}, surrogate {called!r}")
    try:
        with torch.no_grad():
            exits = classifier.exits(x)
    except Exception as error:
        raise UserError(f"{name}: its exits give {reason(error)}; {cure}") from error
    if not isinstance(exits, Tensor) or exits.ndim != 3 or exits.shape[1:] != logits.shape:
        what = list(exits.shape) if isinstance(exits, Tensor) else type(exits).__name__
        raise UserError(f"{name}: expected exits [T,{len(x)},{logits.shape[1]}], got {what}; {cure}")
    if not is_random and not _is_near(exits[-1].float(), logits, ELSEWHERE):
        is_random = _varies(classifier, x, logits, MORE_REPEATS)
        if not is_random:
            far = float((exits[-1].float() - logits).abs().max())
            raise UserError(f"{name}: its last exit differs from its logits, by up to {far:.3g}; {cure}")
    return len(exits), is_random


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
    what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    if isinstance(found, Tensor) and not found.is_floating_point():
        raise UserError(
            f"{name}: expected logits, floats [{len(x)},K], got {what}; give the scores before classes are "
            "chosen (argmax)"
        )
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
        raise UserError(f"{name}: expected logits [{len(x)},K], got {what}; name them with output=")
    wrong = int((~found.isfinite()).sum())
    if wrong:
        raise UserError(
            f"{name}: expected finite logits, {wrong} of {found.numel()} are NaN or infinite; "
            "are its weights whole, and its images prepared as in training?"
        )
    return found.float()


def is_inside_unit(outputs: Tensor) -> bool:
    """Return whether all outputs lie in [0,1]."""
    return bool(len(outputs)) and float(outputs.min()) >= -ROUNDED and float(outputs.max()) <= 1 + ROUNDED


def are_distributions(outputs: Tensor) -> bool:
    """Return whether the outputs f32 [B,K] of each image lie in [0,1] and add up to 1."""
    if outputs.shape[1] < 2 or not is_inside_unit(outputs):
        return False
    return float((outputs.sum(1) - 1).abs().max()) <= ADDED


def _is_near(a: Tensor, b: Tensor, share: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= share * float(b.abs().max())


def reason(error: Exception) -> str:
    """Return an exception on one line, not too long."""
    text = next(iter(str(error).splitlines()), "")
    text = text if len(text) <= 140 else f"{text[:140]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def right_if_prepared(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Return how many images the model gets right under each of PREPARATIONS, instead of its own.

    images: f32 [B,3,H,W] in [0,1].  For a model below expectation: the wrong one shows as chance.
    """
    return {
        text: int((_predicted(classifier, prepared) == labels).sum())
        for text, prepared in _prepared(classifier, images)
        if text in PREPARATIONS
    }


@dataclass(frozen=True)
class Better:
    """A preparation of images with which a model does better than with its own.

    text: as it is spelled in a call, or said in words.  right, own: how many images of `total` it gets right
    with that, and with its own.  p_value: of McNemar's exact test.
    """

    text: str
    right: int
    own: int
    total: int
    p_value: float

    def __str__(self) -> str:
        compared = f"{self.right} of {self.total} right, not {self.own} (p {self.p_value:.1g})"
        return f"with {self.text} it gets {compared}"


def better_preparation(
    classifier: Classifier, images: Tensor, labels: Tensor, *, is_right: Tensor | None = None
) -> Better | None:
    """Return the preparation with which the model does best, where it is clearly better than its own.

    images: f32 [B,3,H,W] in [0,1], the first 64 or so, on the model's device.  labels: i64 [B].
    is_right: bool [B], what it gets right as it is; None to ask.  Clearly: p below 0.01 (McNemar, exact, two
    sides).  Only what it gets wrong is shown in other ways at first, so that a good model costs nothing.
    """
    with undisturbed():
        if is_right is None:
            is_right = _predicted(classifier, images) == labels
        own, total = int(is_right.sum()), len(labels)
        best: Better | None = None
        wrong = ~is_right.to(images.device)
        if _p_value(int(wrong.sum()), 0) >= UNLIKELY:
            return None
        of_right = dict(_prepared(classifier, images[~wrong])) if own else {}
        for text, prepared in _prepared(classifier, images[wrong]):
            gained = int((_predicted(classifier, prepared) == labels[wrong]).sum())
            if _p_value(gained, 0) >= UNLIKELY:
                continue
            lost = int((_predicted(classifier, of_right[text]) != labels[~wrong]).sum()) if own else 0
            p_value = _p_value(gained, lost)
            is_best = best is None or own + gained - lost > best.right
            if gained > lost and p_value < UNLIKELY and is_best:
                best = Better(text, own + gained - lost, own, total, p_value)
    return best


def _prepared(classifier: Classifier, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what to show the model for each preparation, so that the network inside sees that one."""
    mean, std = (_column(c, images) for c in classifier.normalisation)
    for text, (shift, scale) in PREPARATIONS.items():
        yield text, (images - _column(shift, images)) / _column(scale, images) * std + mean
    flipped = images.flip(1)
    yield BGR, flipped
    yield CAFFE, (flipped - _column(CAFFE_MEAN, images)) * 255 * std + mean


def _column(channels: Channels, images: Tensor) -> Tensor:
    return torch.tensor(channels, device=images.device)[:, None, None]


def _predicted(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the classes of the largest logits, i64 [B]."""
    with torch.no_grad():
        return classifier.logits(images).argmax(1)


def _p_value(gained: int, lost: int) -> float:
    """Return McNemar's exact p-value, two-sided, of so many discordant pairs."""
    count = gained + lost
    tail = sum(comb(count, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**count))
