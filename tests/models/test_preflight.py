"""A model is asked a few images before it is judged: what is wrong with it is said then, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustglimpse.models.preflight import PREPARATIONS, check_model, right_if_prepared
from robustglimpse.records import Classifier, UserError


def linear(x: Tensor) -> Tensor:
    score = x.mean((1, 2, 3)) - 0.5
    return torch.stack([-score, score], 1)


def classifier(logits: Callable[[Tensor], Tensor], **meta: object) -> Classifier:
    return Classifier(
        name="it", logits=logits, exits=lambda x: logits(x)[None], surrogates={}, trace=lambda x: x,
        classes=("dark", "light"), size_px=8, sha256="", normalisation=((0.0,) * 3, (1.0,) * 3), meta=meta,
    )  # fmt: skip


IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_plain_model_passes_and_is_not_random() -> None:
    checked = check_model(classifier(linear, exits=1), IMAGES)
    assert checked.meta == {"exits": 1, "is_random": False}
    assert checked.name == "it"


def test_a_random_model_is_marked_and_leaves_our_draws_alone() -> None:
    before = torch.random.get_rng_state()
    noisy = classifier(lambda x: linear(x + 0.01 * torch.randn_like(x)))
    assert check_model(noisy, IMAGES).meta["is_random"]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_that_is_said_to_be_random_stays_so() -> None:
    assert check_model(classifier(linear, is_random=True), IMAGES).meta["is_random"]


def test_randomness_is_told_apart_from_a_batch_that_matters() -> None:
    def leaning(x: Tensor) -> Tensor:
        return linear(x) - linear(x).mean(0)

    with pytest.raises(UserError, match=r"^it: an image's logits depend on the other images"):
        check_model(classifier(leaning), IMAGES)
    noisy = classifier(lambda x: leaning(x + 0.1 * torch.randn_like(x)))
    assert check_model(noisy, IMAGES).meta["is_random"]


def test_a_model_that_throws_one_coin_a_pass_is_never_called_one_whose_batch_matters() -> None:
    def flipped(x: Tensor) -> Tensor:
        return linear(x) * (1 if torch.rand(()) < 0.9 else -1)

    for shift in range(20):  # of the draws that the model makes
        start = torch.Generator().manual_seed(shift)

        def own(x: Tensor, start: torch.Generator = start) -> Tensor:
            return linear(x) * (1 if torch.rand((), generator=start) < 0.5 else -1)

        check_model(classifier(own), IMAGES)
    assert check_model(classifier(flipped), IMAGES).meta == check_model(classifier(flipped), IMAGES).meta


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (lambda x: linear(x).log(), "finite logits, .* of 8 are NaN"),
        (lambda x: linear(x)[:, :1], r"each of 2 classes, got \[4, 1\]"),
        (lambda x: linear(x)[0], r"logits \[4,K\], got torch.float32 \[2\]"),
        (lambda x: linear(x).argmax(1), r"got torch.int64 \[4\]"),
        (lambda x: [linear(x)], "got list"),
        (lambda x: x @ torch.ones(3), "RuntimeError: .*size_px=N"),
    ],
)
def test_what_are_no_logits_is_named(logits: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        check_model(classifier(logits), IMAGES)
    assert "\n" not in str(error.value)


def test_logits_of_any_scale_are_judged_by_their_own() -> None:
    for scale in (1e-6, 1e6):
        assert not check_model(classifier(lambda x, s=scale: linear(x) * s), IMAGES).meta["is_random"]
        with pytest.raises(UserError, match="depend"):
            check_model(classifier(lambda x, s=scale: (linear(x) - linear(x).mean(0)) * s), IMAGES)


@pytest.mark.parametrize("own", list(PREPARATIONS))
@pytest.mark.parametrize("needed", list(PREPARATIONS))
def test_the_preparation_that_a_model_was_trained_with_is_found_from_any_other(own: str, needed: str) -> None:
    mean, std = (torch.tensor(c)[:, None, None] for c in PREPARATIONS[needed])
    labels = torch.arange(40) % 2
    x = (0.4 + 0.2 * labels)[:, None, None, None].expand(40, 3, 8, 8) + 0.02 * torch.randn(
        40, 3, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    shift, scale = (torch.tensor(c)[:, None, None] for c in PREPARATIONS[own])

    def logits(images: Tensor) -> Tensor:
        return linear((images - shift) / scale * std + mean)  # the network undoes what it was trained with

    model = replace(classifier(logits), normalisation=PREPARATIONS[own])
    right = right_if_prepared(model, x, labels)
    assert right[needed] == 40
