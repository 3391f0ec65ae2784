"""Exit by confidence: who leaves where, that leaving changes no answer, and what an attacker of it sees."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from math import log

import pytest
import torch
from hand_made import classifier_of
from torch import Tensor

from robustglimpse import evaluate
from robustglimpse.data import Dataset
from robustglimpse.models.exits import by_confidence, confidence, exit_early, first_sure
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.models.resized import at_size, resize
from robustglimpse.models.surrogates import surrogates
from robustglimpse.records import Batch, Classifier, Threat, UserError
from robustglimpse.registry import parse_call

# The probability of class 1 after each of three exits, of six images that carry it in their pixels.
SURE = torch.tensor(
    [
        [0.95, 0.95, 0.95],
        [0.60, 0.95, 0.60],
        [0.60, 0.60, 0.95],
        [0.60, 0.60, 0.60],
        [0.05, 0.60, 0.95],
        [0.85, 0.90, 0.95],
    ]
)
IMAGES = SURE.view(6, 3, 1, 1).expand(6, 3, 4, 4).contiguous()


def told_exits(x: Tensor) -> Tensor:
    """Return logits whose softmax is what the three channels say: [3,B,2]."""
    p = x.mean((2, 3)).T.clamp(1e-6, 1 - 1e-6)
    return torch.stack([torch.zeros_like(p), (p / (1 - p)).log()], -1)


def told(**meta: object) -> Classifier:
    made = classifier_of(lambda x: told_exits(x)[-1], exits=3, **meta)
    table = surrogates(lambda x, _: told_exits(x), 3)
    return replace(made, exits=told_exits, surrogates=table, size_px=4)


@pytest.mark.parametrize(
    "threshold, left",
    [
        (0.0, [1, 1, 1, 1, 1, 1]),
        (0.7, [1, 2, 3, 3, 1, 1]),
        (0.89, [1, 2, 3, 3, 1, 2]),
        (0.94, [1, 2, 3, 3, 1, 3]),
        (1.0, [3, 3, 3, 3, 3, 3]),
    ],
)
def test_an_image_leaves_at_the_first_exit_that_is_sure(threshold: float, left: list[int]) -> None:
    answer = exit_early(told(), IMAGES, threshold=threshold)
    assert answer.exit.tolist() == left
    chosen = SURE[torch.arange(6), torch.tensor(left) - 1]
    assert answer.logits.softmax(1)[:, 1].tolist() == pytest.approx(chosen.tolist(), abs=1e-5)
    assert answer.confidence.tolist() == pytest.approx(chosen.clamp(1 - chosen).tolist(), abs=1e-5)
    assert (first_sure(told_exits(IMAGES), threshold) + 1).tolist() == left


def test_confidence_is_the_largest_probability() -> None:
    assert confidence(torch.tensor([[0.0, log(3), -100.0]])).tolist() == pytest.approx([0.75])
    assert confidence(torch.tensor([0.0, 0.0, 0.0, 0.0]).half()).item() == pytest.approx(0.25)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        exit_early(told(), IMAGES, threshold=threshold)
    with pytest.raises(UserError, match="from 0 to 1"):
        by_confidence(told(), threshold)


def test_who_is_sure_leaves_the_batch() -> None:
    sizes: list[int] = []

    def glances(x: Tensor) -> Generator[Tensor, Tensor | None, None]:
        for t in range(3):
            sizes.append(len(x))
            keep = yield told_exits(x)[t]
            assert keep is not None
            x = x[keep]

    model = replace(told(), glances=glances)
    assert exit_early(model, IMAGES, threshold=0.89).exit.tolist() == [1, 2, 3, 3, 1, 2]
    assert sizes == [6, 4, 2]
    sizes.clear()
    assert exit_early(model, IMAGES[:1], threshold=0.89).exit.tolist() == [1]
    assert sizes == [1], "nobody is left to look again"


def thresholds_between(sure: Tensor) -> list[float]:
    """Return thresholds at which many images leave early, all away from any image's confidence."""
    levels = sure.flatten().sort().values
    gaps = (levels[1:] - levels[:-1]) > 1e-4
    middles = ((levels[1:] + levels[:-1]) / 2)[gaps]
    return [float(middles[int(len(middles) * share)]) for share in (0.3, 0.6, 0.9)]


def test_leaving_early_changes_no_answer(small_classifier: Classifier, digits: Dataset) -> None:
    x = torch.from_numpy(digits.images[:24]) / 255
    with torch.no_grad():
        exits = small_classifier.exits(x)
    sure = confidence(exits)
    for threshold in (0.0, *thresholds_between(sure), 1.0):
        answer = exit_early(small_classifier, x, threshold=threshold)
        left = first_sure(exits, threshold)
        assert torch.equal(answer.exit, left + 1)
        expected = exits[left, torch.arange(len(x))]
        torch.testing.assert_close(answer.logits, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(answer.confidence, confidence(expected), atol=1e-4, rtol=0)
        assert not answer.logits.requires_grad


def test_some_leave_at_every_exit_of_the_small_network(mgnet: Classifier, digits: Dataset) -> None:
    x = torch.from_numpy(digits.images[:24]) / 255
    found = {
        int(k)
        for threshold in thresholds_between(confidence(mgnet.exits(x)))
        for k in exit_early(mgnet, x, threshold=threshold).exit
    }
    assert found == {1, 2, 3}, "the test before would see nothing else"


def test_mgnets_backbone_runs_on_those_alone_who_look_again() -> None:
    torch.manual_seed(0)
    network = MGNet(Architecture("resnet18", 3, "2", 5, 0.02)).eval().requires_grad_(False)
    sizes: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    x = torch.randn(6, 3, 32, 32)
    whole = network(x)
    assert sizes == [6, 6, 6]
    sizes.clear()
    keep = torch.tensor([True, False, True, True, False, True])
    again = torch.tensor([False, True, True, False])
    glances = network.glances(x)
    next(glances)
    second, third = glances.send(keep), glances.send(again)
    assert sizes == [6, 4, 2]
    torch.testing.assert_close(second.logits, whole.logits[1][keep], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.region, whole.regions[1][keep], atol=1e-5, rtol=0)
    torch.testing.assert_close(third.logits, whole.logits[2][keep][again], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(third.feature, whole.features[2][keep][again], atol=1e-3, rtol=1e-3)
    assert list(glances) == []


# What an attacker of the rule sees


def test_the_rule_as_a_classifier_answers_as_leaving_early(mgnet: Classifier, digits: Dataset) -> None:
    x = torch.from_numpy(digits.images[:16]) / 255
    threshold = thresholds_between(confidence(mgnet.exits(x)))[1]
    ruled = by_confidence(mgnet, threshold)
    answer = exit_early(mgnet, x, threshold=threshold)
    torch.testing.assert_close(ruled.logits(x), answer.logits, atol=1e-3, rtol=1e-3)
    exits = ruled.exits(x)
    assert torch.equal(exits[:-1], mgnet.exits(x))
    assert torch.equal(exits[-1], ruled.logits(x))
    for path in ("as-trained", "exact"):
        assert torch.equal(ruled.surrogates[path](x), exits[-1])
        assert torch.equal(ruled.surrogates[path].exits(x), exits), "a pass of the attack is a verdict"
    assert torch.equal(ruled.surrogates["mean-exits"](x), exits[:-1].mean(0))
    assert torch.equal(ruled.surrogates["exit:2"](x), exits[1])
    assert torch.equal(ruled.surrogates["last-exit"](x), exits[2])
    assert (ruled.meta["exits"], ruled.meta["network"], ruled.meta["threshold"]) == (4, mgnet.name, threshold)


def test_the_rules_gradient_goes_through_the_exit_where_an_image_leaves() -> None:
    x = IMAGES.clone().requires_grad_()
    logits = by_confidence(told(), 0.89).surrogates["as-trained"](x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert gradient.abs().sum((2, 3)).gt(0).nonzero()[:, 1].tolist() == [0, 1, 2, 2, 0, 1]


def test_an_attack_on_the_rule_fools_what_one_on_the_last_exit_leaves() -> None:
    # Class 1 at every exit; the last exit looks at another channel than the first, where all images leave.
    images = torch.full((4, 3, 4, 4), 0.9).mul(255).round().byte()
    batch = Batch(images, torch.ones(4, dtype=torch.int64), torch.arange(4))
    threat = Threat("linf", 0.65)
    ruled = by_confidence(told(), 0.55)
    for model, fooled in ((told(), 0), (ruled, 4)):
        plan = evaluate.make_plan(
            parse_call("pgd(steps=4, step_size=0.3, random_start=False)"), protocol="standard",
            threat=threat, normalisation=model.normalisation, restarts=1, seed=0, all_exits=False,
        )  # fmt: skip
        _, shown = evaluate.attack_images(model, batch, plan, device="cpu")
        assert int((ruled.logits(shown).argmax(1) != 1).sum()) == fooled


# Other input sizes


def test_a_resized_network_sees_smaller_images_and_keeps_its_gradient(
    ffnet: Classifier, digits: Dataset
) -> None:
    x = torch.from_numpy(digits.images[:4]) / 255
    small = at_size(ffnet, 48)
    assert small.name == "tiny-ffnet at 48 px"
    assert (small.meta["input_px"], small.meta["network"]) == (48, ffnet.name)
    expected = ffnet.logits(resize(x, 48))
    assert torch.equal(small.logits(x), expected)
    assert torch.equal(small.exits(x)[-1], expected)
    assert torch.equal(small.surrogates["exact"](x), expected)
    assert torch.equal(exit_early(small, x, threshold=1.0).logits, expected)
    assert small.trace(x).shape == (1, 4, 3)
    (gradient,) = torch.autograd.grad(
        small.surrogates["exact"](y := x.clone().requires_grad_())[:, 0].sum(), y
    )
    assert gradient.shape == x.shape
    assert gradient.abs().sum() > 0


def test_resizing_averages_what_it_leaves_out() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[..., ::2] = 1  # columns of 1 and 0: without anti-aliasing some sizes would see one of them alone
    assert resize(x, 4)[..., 1:-1].sub(0.5).abs().max() < 0.05
    assert resize(x, 8) is x


def test_a_size_is_a_number_of_pixels(ffnet: Classifier) -> None:
    with pytest.raises(UserError, match="at least 1 px"):
        at_size(ffnet, 0)
