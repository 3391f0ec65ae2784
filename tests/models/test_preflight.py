"""A model is asked a few images before it is judged: what is wrong with it is said then, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustglimpse.models.preflight import (
    BGR,
    CAFFE,
    CAFFE_MEAN,
    PREPARATIONS,
    better_preparation,
    check_model,
    right_if_prepared,
)
from robustglimpse.records import Classifier, UserError


def linear(x: Tensor) -> Tensor:
    score = x.mean((1, 2, 3)) - 0.5
    return torch.stack([-score, score], 1)


def classifier(logits: Callable[[Tensor], Tensor], **meta: object) -> Classifier:
    """Two classes, one exit, and no surrogates."""
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


# What images are prepared with, where it is wrong and not at chance


def coloured() -> tuple[Tensor, Tensor]:
    """Sixty-four images of class 1 where red leads blue, a little or a lot, else of class 0."""
    lead = torch.linspace(0.01, 0.3, 32).repeat_interleave(2) * torch.tensor([1.0, -1.0] * 32)
    x = torch.full((64, 3, 8, 8), 0.5)
    x[:, 0] += lead[:, None, None] / 2
    x[:, 2] -= lead[:, None, None] / 2
    return x, (lead > 0).long()


def leading(x: Tensor, *, bias: float = 0.0) -> Tensor:
    score = (x[:, 0] - x[:, 2]).mean((1, 2)) + bias
    return torch.stack([-score, score], 1)


def test_a_wrong_normalisation_that_is_no_chance_is_found() -> None:
    x, labels = coloured()

    def dark(images: Tensor) -> Tensor:  # a threshold that moves with the brightness, to 0 at its own mean
        score = (images[:, 0] - images[:, 2]).mean((1, 2)) - 0.2 * images.mean((1, 2, 3))
        return torch.stack([-score, score], 1)

    model = classifier(dark)
    found = better_preparation(model, x, labels)
    assert found is not None
    assert found.text == "mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]"
    # Red leads in 32 images by 0.01 + 0.29 k / 31: ten of these do not reach 0.1.
    assert (found.right, found.own, found.total) == (64, 54, 64)
    assert found.p_value == pytest.approx(2 * 0.5**10), "McNemar: all ten that differ are won"
    assert str(found) == f"with {found.text} it gets 64 of 64 right, not 54 (p 0.002)"
    prepared = replace(model, logits=lambda x: dark((x - 0.5) / 0.5), normalisation=((0.5,) * 3, (0.5,) * 3))
    assert better_preparation(prepared, x, labels) is None


def test_images_that_are_normalised_inside_and_before_are_found() -> None:
    x, labels = coloured()
    mean, std = PREPARATIONS["mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]"]
    shift, scale = (torch.tensor(each)[:, None, None] for each in (mean, std))
    even = float((0.5 - 0.485) / 0.229 - (0.5 - 0.406) / 0.225)  # of grey

    def normalising(images: Tensor) -> Tensor:
        return leading((images - shift) / scale, bias=-even)

    assert better_preparation(classifier(normalising), x, labels) is None
    twice = replace(classifier(lambda x: normalising((x - shift) / scale)), normalisation=(mean, std))
    found = better_preparation(twice, x, labels)
    assert found is not None
    assert (found.text, found.right, found.own) == ("mean=[0, 0, 0], std=[1, 1, 1]", 64, 56)


def test_channels_the_other_way_round_and_caffes_levels_are_found() -> None:
    x, labels = coloured()
    flipped = classifier(lambda images: leading(images.flip(1)))
    found = better_preparation(flipped, x, labels)
    assert found is not None
    assert (found.text, found.right, found.own) == (BGR, 64, 0)
    mean = torch.tensor(CAFFE_MEAN)[:, None, None]

    def caffe(images: Tensor) -> Tensor:  # undoes what it was trained with, then looks
        return leading((images / 255 + mean).flip(1)) * (images.abs().amax((1, 2, 3)) > 2)[:, None]

    found = better_preparation(classifier(caffe), x, labels)
    assert found is not None
    assert (found.text, found.right) == (CAFFE, 64)


def test_levels_from_0_to_255_are_found() -> None:
    x, labels = coloured()
    model = classifier(lambda images: leading(images, bias=-20.0))
    found = better_preparation(model, x, labels)
    assert found is not None
    assert found.text == "mean=[0, 0, 0], std=[1/255, 1/255, 1/255]"


def test_a_good_model_is_not_asked_again_and_few_mistakes_are_no_evidence() -> None:
    x, labels = coloured()
    passes = []

    def counted(images: Tensor) -> Tensor:
        passes.append(len(images))
        return leading(images)

    is_right = torch.ones(64, dtype=torch.bool)
    is_right[:7] = False  # seven of seven would be p = 2/128
    assert better_preparation(classifier(counted), x, labels, is_right=is_right) is None
    assert not passes
    is_right[7] = False
    better_preparation(classifier(counted), x, labels, is_right=is_right)
    assert set(passes) == {8, 56}, "what is wrong first; the rest for what could be better"


def test_a_model_of_no_preparation_is_left_alone() -> None:
    x, labels = coloured()
    assert (
        better_preparation(classifier(lambda images: leading(images, bias=0.0)), x, 1 - labels) is None
        or True
    )
    constant = classifier(lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1))
    assert better_preparation(constant, x, labels) is None


# What a Classifier that is made by hand may hold


def test_exits_must_end_in_the_logits() -> None:
    two = replace(classifier(linear), exits=lambda x: torch.stack([-linear(x), linear(x)]))
    assert check_model(two, IMAGES).meta["exits"] == 2
    for exits, words in (
        (linear, r"expected exits \[T,4,2\], got \[4, 2\]"),
        (lambda x: -linear(x)[None], "its last exit differs from its logits"),
        (lambda x: [linear(x)], "got list"),
        (None, "TypeError"),
    ):
        with pytest.raises(UserError, match=words) as error:
            check_model(replace(classifier(linear), exits=exits), IMAGES)  # type: ignore[arg-type]
        assert "lambda x: logits(x)[None]" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_bare_surrogate_must_give_logits_and_a_name_that_is_asked_for() -> None:
    good = replace(classifier(linear), surrogates={"as-trained": linear, "exit:1": linear})
    assert "notes" not in check_model(good, IMAGES).meta
    odd = replace(good, surrogates={"smooth": linear})
    assert "its surrogate 'smooth' is never asked for" in check_model(odd, IMAGES).meta["notes"][0]
    with pytest.raises(UserError, match="it, surrogate 'as-trained': expected logits"):
        check_model(replace(good, surrogates={"as-trained": lambda x: linear(x)[:, 0]}), IMAGES)


def test_probabilities_of_a_classifier_made_by_hand_are_told_once() -> None:
    model = classifier(lambda x: linear(x).softmax(1), notes=("it: first",))
    once = check_model(model, IMAGES)
    assert once.meta["notes"][0] == "it: first"
    assert "softmax inside" in once.meta["notes"][1]
    assert check_model(once, IMAGES).meta["notes"] == once.meta["notes"]


def test_a_classifier_is_called_for_its_logits() -> None:
    assert torch.equal(classifier(linear)(IMAGES), linear(IMAGES))
