"""Any module or function of images is a Classifier: what it takes and returns is found out, and told."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustglimpse.data import from_tensors
from robustglimpse.models.sources import wrap
from robustglimpse.records import Classifier, UserError
from robustglimpse.runner import Bench, bench
from robustglimpse.store import Store

SIZE = 8


class Net(nn.Module):
    """A linear model of the means of its channels: images between black and white give all scores."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.weight = nn.Parameter(10 * torch.randn(classes, channels, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.mean((2, 3)), self.weight, self.bias)


class Convolutional(nn.Module):
    """Takes so many channels and no others, and a size that the linear layer fixes."""

    def __init__(self, channels: int = 3, sides: tuple[int, int] = (SIZE, SIZE)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)
        self.head = nn.Linear(4 * sides[0] * sides[1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.convolution(x)).flatten(1))


def images(count: int = 6, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """Images of different brightness, of 256 levels."""
    noise = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))
    shades = torch.linspace(0.1, 0.9, count)[:, None, None, None]
    return ((0.5 * noise + 0.5 * shades) * 255).round() / 255


def wrapped(module: Any, **options: Any) -> Classifier:
    return wrap(module, **{"name": "it", "size_px": SIZE, **options})


def notes(classifier: Classifier) -> str:
    return " | ".join(classifier.meta["notes"])


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def attacked(model: Classifier, folder: Path, size: tuple[int, int] = (SIZE, SIZE), **asked: Any) -> Any:
    """Return the rows of a bench whose labels are what the model says: clean accuracy is 1."""
    x = images(size=size)
    with torch.no_grad():
        labels = model(x).argmax(1)
    rows = bench(Bench(models=(model,), data=from_tensors(x, labels, name="d"), steps=(2,), **asked), folder)
    assert (rows["status"] == "ok").all(), rows["error"].tolist()
    assert rows[rows["kind"] == "clean"]["accuracy"].item() == 1
    return rows[rows["kind"] == "attack"]


# Kinds of callables


class Called:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda net: net,
        lambda net: net.train(),
        torch.jit.script,
        lambda net: torch.jit.trace(net, images(2)),
        lambda net: torch.jit.freeze(torch.jit.script(net.eval())),
        pytest.param(lambda net: torch.compile(net, backend="eager"), marks=pytest.mark.slow),
        lambda net: lambda x: net(x) + 0,
        lambda net: net.forward,
        Called,
        lambda net: lambda x: net(x)[:, :, None, None],
        lambda net: lambda x: net(x).squeeze(),
        lambda net: lambda x: net(x).double(),
    ],
    ids=[
        "module", "training", "scripted", "traced", "frozen", "compiled", "lambda", "method", "object",
        "maps", "squeezed", "f64",
    ],
)  # fmt: skip
def test_a_callable_of_any_kind_gives_its_own_logits(make: Callable[[Net], Any], tmp_path: Path) -> None:
    net, x = Net(), images()
    expected = net(x).detach()
    model = wrapped(make(net))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x[:1]), expected[:1])
    torch.testing.assert_close(model.exits(x), expected[None])
    assert model.trace(x).shape == (1, len(x), 3)
    assert model.meta["notes"] == ()
    assert (model.classes, model.is_named) == (tuple("0123"), False)
    assert model.renew is not None
    assert model.renew() == model.sha256
    rows = attacked(model, tmp_path, eps="0.5", step_size="0.25")
    assert rows["backwards"].item() > 0
    assert rows["accuracy"].item() < 1, "its gradient is followed"


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("is_opened", [True, False])
def test_an_exported_module_is_asked_as_many_images_as_it_was_exported_for(
    batch: int, is_opened: bool, tmp_path: Path
) -> None:
    net, x = Net(), images()
    program = torch.export.export(net.eval(), (images(batch),))
    model = wrapped(program.module() if is_opened else program)
    torch.testing.assert_close(model(x[:5]), net(x[:5]).detach())
    assert f"it is asked {batch} images at a time: it takes no other number" in notes(model)
    attacked(model, tmp_path, eps="0.5", step_size="0.25")


def test_an_exported_module_of_any_batch_is_asked_plainly() -> None:
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    net, x = Net(), images()
    model = wrapped(torch.export.export(net.eval(), (images(2),), dynamic_shapes=dynamic))
    torch.testing.assert_close(model(x), net(x).detach())
    assert model.meta["notes"] == ()


def test_a_function_of_one_image_at_a_time_is_asked_so() -> None:
    net, x = Net(), images()
    model = wrapped(lambda x: net(x.reshape(1, 3, SIZE, SIZE)))
    torch.testing.assert_close(model(x), net(x).detach())
    assert "it is asked one image at a time: it takes no other number" in notes(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_get_images_of_it(dtype: torch.dtype, tmp_path: Path) -> None:
    net, x = Net().to(dtype), images()
    model = wrapped(net)
    assert model(x).dtype is torch.float32
    torch.testing.assert_close(model(x), net(x.to(dtype)).float().detach())
    assert f"its weights are {str(dtype).removeprefix('torch.')}" in notes(model)
    assert attacked(model, tmp_path, eps="0.5", step_size="0.25")["accuracy"].item() < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["quantised", "numpy", "cut off", "without gradients"])
def test_what_has_no_gradient_is_told_and_loses_every_one(how: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    run: Any = {
        "quantised": lambda: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8),
        "numpy": lambda: lambda x: net(torch.from_numpy(x.numpy())).detach().numpy(),
        "cut off": lambda: lambda x: net(x.detach()),
        "without gradients": lambda: torch.no_grad()(net.forward),
    }[how]()
    model = wrapped(run)
    assert "no gradient reaches its images (" in notes(model)
    assert "--attack square" in notes(model)
    assert ("quantised by the range of a batch" in notes(model)) == (how == "quantised")
    row = attacked(model, tmp_path, attacks=("pgd(random_start=False)",))
    assert (row["accuracy"].item(), row["backwards"].item() > 0) == (1, True)
    outcomes = Store(tmp_path).outcomes(row["cell"].item())
    assert (outcomes["zero_gradients"] == outcomes["backwards"]).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["scripted", "traced", "frozen"])
def test_a_scripted_model_with_dynamic_layers_is_asked_one_image_at_a_time(how: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    run = torch.jit.trace(quantised, images(2)) if how == "traced" else torch.jit.script(quantised)
    model = wrapped(torch.jit.freeze(run) if how == "frozen" else run)
    assert "quantised by the range of a batch" in notes(model)
    x = images()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_lazy_modules_get_their_weights_by_the_first_images() -> None:
    model = wrapped(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
    assert model(images()).shape == (6, 3)
    assert not any(weight.requires_grad for weight in model.meta["module"].parameters())


# What is taken


def test_one_channel_is_made_as_pillow_makes_grey() -> None:
    from PIL import Image

    model = wrapped(Convolutional(channels=1), mean=0.13, std=[0.3])
    assert "it takes one channel: images are made grey" in notes(model)
    assert model.normalisation == ((0.13,) * 3, (0.3,) * 3)
    x = images()
    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = torch.stack([torch.from_numpy(np.array(Image.fromarray(each).convert("L"))) for each in levels])
    expected = model.meta["module"]((grey[:, None] / 255 - 0.13) / 0.3)
    difference = (model(x) - expected).abs().max()
    assert difference < 0.02, "Pillow rounds to a level"
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    share = gradient[:, 0] / gradient[:, 1]
    torch.testing.assert_close(share, torch.full_like(share, 19595 / 38470))


@pytest.mark.parametrize("size", [(4, 12), [4, 12], (np.int64(4), 12)])
def test_other_sizes_are_resized_to_one_that_is_no_square(size: Any, tmp_path: Path) -> None:
    net = Convolutional(sides=(4, 12))
    model = wrapped(net, size_px=size)
    assert (model.size_px, model.meta["input_px"]) == (12, (4, 12))
    assert "it takes images of 4 x 12 px; others are resized inside" in notes(model)
    x = images(size=(4, 12))
    torch.testing.assert_close(model(x), net(x).detach())
    square = images(size=(12, 12))
    small = torch.nn.functional.interpolate(square, (4, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(model(square), net(small).detach())
    assert attacked(model, tmp_path / "a", (12, 12))["size_px"].item() == 4
    attacked(model, tmp_path / "b", (4, 12))


def test_equal_sides_are_one() -> None:
    model = wrapped(Convolutional(), size_px=(SIZE, SIZE))
    assert model.size_px == SIZE
    assert "input_px" not in model.meta


# What is returned


@pytest.mark.parametrize("how", ["[B,1]", "[B]"])
def test_one_output_is_the_score_of_class_1(how: str, tmp_path: Path) -> None:
    net, x = Net(1), images()
    model = wrapped(net if how == "[B,1]" else lambda x: net(x).squeeze(), classes=["dark", "light"])
    score = net(x).detach()
    torch.testing.assert_close(model(x), torch.cat([torch.zeros_like(score), score], 1))
    torch.testing.assert_close(model(x[:1]), model(x)[:1])
    assert "its one output z is taken as the logits [0, z]" in notes(model)
    attacked(model, tmp_path, eps="0.5", step_size="0.25")


@pytest.mark.parametrize("output", [None, "probabilities"])
def test_one_output_from_0_to_1_is_the_probability_of_class_1(output: str | None) -> None:
    net, x = Net(1), images()
    model = wrapped(lambda x: net(x).sigmoid(), output=output)
    score = net(x).detach()
    expected = torch.cat([-score, score], 1)
    torch.testing.assert_close(model(x).softmax(1), expected.sigmoid())
    assert model(x).argmax(1).tolist() == (score[:, 0] > 0).long().tolist()
    assert len(set(model(x).argmax(1).tolist())) == 2
    assert ("the probability p of class 1" in notes(model)) == (output is None)


def test_probabilities_are_told_with_the_cure_which_gives_gradients_back(tmp_path: Path) -> None:
    net, x = Net(), images()
    sharp = nn.Sequential(net, nn.Softmax(1))
    model = wrapped(sharp)
    assert "look like probabilities (softmax inside)" in notes(model)
    assert "output='probabilities'" in notes(model)
    cured = wrapped(sharp, output="probabilities")
    assert cured.meta["notes"] == ()
    torch.testing.assert_close(cured(x).softmax(1), net(x).softmax(1).detach())
    torch.testing.assert_close(cured(x), net(x).log_softmax(1).detach())
    assert cured.sha256 != model.sha256


def test_the_log_of_probabilities_that_vanish_has_a_finite_gradient() -> None:
    for dtype in (torch.float32, torch.float16):
        net = Net().to(dtype)
        model = wrapped(
            lambda x, net=net, dtype=dtype: (100 * net(x.to(dtype))).softmax(1), output="probabilities"
        )
        x = images().requires_grad_()
        logits = model(x)
        assert logits.isfinite().all()
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        assert gradient.isfinite().all()


def test_log_probabilities_and_ordinary_logits_are_left_alone() -> None:
    net = Net()
    assert wrapped(lambda x: net(x).log_softmax(1)).meta["notes"] == ()
    assert wrapped(net).meta["notes"] == ()


def test_sigmoids_that_do_not_add_up_are_told() -> None:
    net = Net()
    assert "as a sigmoid for each class gives" in notes(wrapped(lambda x: net(x).sigmoid()))
    cured = wrapped(lambda x: net(x).sigmoid(), output="probabilities")
    assert cured(images()).argmax(1).tolist() == net(images()).argmax(1).tolist()


def test_a_part_called_probabilities_is_taken_as_such() -> None:
    net, x = Net(), images()
    model = wrapped(lambda x: {"probabilities": net(x).softmax(1), "rest": x}, output="probabilities")
    torch.testing.assert_close(model(x), net(x).log_softmax(1).detach())


# What is refused


@pytest.mark.parametrize(
    "module, options, words",
    [
        (Net, {}, "make one: Net()"),
        ("resnet18", {}, "load_model('resnet18')"),
        (Path("mine.pth"), {}, "load_model('mine.pth')"),
        (Net().state_dict(), {}, "those are weights"),
        (None, {}, "give a module, or a function of images"),
        (3, {}, "got a int"),
        (lambda x: x.mean((2, 3)).argmax(1), {}, "before classes are chosen (argmax)"),
        (lambda x: torch.ones(len(x), 3, dtype=torch.int64), {}, "before classes are chosen (argmax)"),
        (lambda x: 1 / 0, {}, "ZeroDivisionError"),
        (lambda x: None, {}, "got a NoneType"),
        (Convolutional(channels=4), {}, "to have 4 channels, but got 3"),
        (Net(), {"output": "probabilities"}, "leave it out"),
        (Net(), {"output": "logits"}, "output='logits' is not among"),
        (Net(), {"size_px": 0}, "size_px must be at least 1"),
        (Net(), {"size_px": 8.5}, "size_px must not be 8.5"),
        (Net(), {"size_px": True}, "size_px must not be True"),
        (Net(), {"size_px": (8, 8, 8)}, "[height, width]"),
        (Net(), {"mean": [123.7, 116.3, 103.5]}, "divide it by 255"),
        (Net(), {"mean": "red"}, "mean must be three numbers"),
        (Net(), {"mean": [0.1, 0.2]}, "mean must be three numbers"),
        (Net(), {"std": [0.1, float("nan"), 0.2]}, "std must be three numbers"),
        (Net(), {"std": 0}, "std must be above 0"),
        (Net(), {"name": ""}, "name must be a text"),
        (Net(), {"name": 3}, "name must be a text"),
        (Net(), {"classes": 3}, "say how many with classes=4"),
        (Net(), {"classes": ["a", "a", "b", "c"]}, "'a' twice"),
        (Net(), {"device": "gpu"}, "cannot be moved to gpu"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_one_line(
    module: Any, options: dict[str, Any], words: str
) -> None:
    assert words in refusal(lambda: wrapped(module, **options))


def test_a_classifier_is_one_already() -> None:
    assert "use it as it is" in refusal(lambda: wrapped(wrapped(Net())))


# Names


def test_an_order_is_kept_for_matching_folders() -> None:
    model = wrapped(Net(), classes="natural")
    assert (model.meta["order"], model.is_named, model.classes) == ("natural", False, tuple("0123"))
    assert wrapped(Net(), classes=list("wxyz")).is_named
    assert not wrapped(Net(), classes=np.int64(4)).is_named


# What is left as it was


def states() -> bytes:
    return pickle.dumps(
        (
            torch.random.get_rng_state().tolist(), np.random.get_state(), random.getstate(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.backends.cudnn.benchmark,
        )
    )  # fmt: skip


def test_wrapping_draws_nothing_and_switches_nothing() -> None:
    class Drawing(Net):
        def forward(self, x: Tensor) -> Tensor:
            np.random.rand()
            random.random()
            torch.backends.cudnn.benchmark = True
            return super().forward(x) + torch.rand(())

    before = states()
    assert wrapped(Drawing()).meta["is_random"]
    assert states() == before
    with torch.no_grad():
        wrapped(Net())
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("made_inside", [True, False])
def test_modules_are_wrapped_and_attacked_under_inference_mode(made_inside: bool, tmp_path: Path) -> None:
    net = Net()
    with torch.inference_mode():
        model = wrapped(Net() if made_inside else net)
        x = images()
        labels = model(x).argmax(1)
        data = from_tensors(x, labels, name="d")
        rows = bench(Bench(models=(model,), data=data, steps=(2,), eps="0.5", step_size="0.25"), tmp_path)
    attack = rows[rows["kind"] == "attack"]
    assert attack["status"].item() == "ok"
    assert attack["accuracy"].item() < 1


def test_a_module_that_is_trained_on_between_two_benches_is_attacked_anew(tmp_path: Path) -> None:
    net = Net(2)
    model = wrapped(net)
    x = images()
    labels = model(x).argmax(1)
    asked = Bench(models=(model,), data=from_tensors(x, labels, name="d"), steps=(1,))
    first = bench(asked, tmp_path)
    again = bench(asked, tmp_path)
    assert again["seconds"].tolist() == first["seconds"].tolist(), "nothing is run again"
    net.train().requires_grad_(True)
    with torch.no_grad():
        net.weight.neg_()
        net.bias.neg_()
    rows = bench(asked, tmp_path)
    assert first[first["kind"] == "clean"]["accuracy"].item() == 1
    assert rows[rows["kind"] == "clean"]["accuracy"].item() == 0, "all its answers are reversed"
    assert not net.training
    assert not net.weight.requires_grad


def test_a_function_that_mixes_up_its_batch_is_refused_in_one_line() -> None:
    message = refusal(lambda: wrapped(lambda x: x.mean((2, 3))[0, :2]))
    assert "depend on the other images of its batch" in message
