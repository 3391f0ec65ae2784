"""Which images a glimpse sheet shows, and that it shows what the attack and the network did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from robustglimpse import cli, evaluate
from robustglimpse.data import Dataset, from_tensors
from robustglimpse.glimpses import Sheet, find_cases, looks
from robustglimpse.models.mgnet import look
from robustglimpse.models.wrapped import wrap
from robustglimpse.records import Classifier, UserError
from robustglimpse.report import figures
from robustglimpse.report.glimpses import glimpse_sheet
from robustglimpse.runner import Bench, plan_work


@pytest.fixture(scope="module")
def answered(mgnet: Classifier, digits: Dataset) -> Dataset:
    """Digits whose labels are what the untrained network says, but for every third: so some are right."""
    x = torch.from_numpy(digits.images[:12]) / 255
    with torch.no_grad():
        labels = mgnet.logits(x).argmax(1)
    labels[::3] = (labels[::3] + 1) % 10
    return from_tensors(torch.from_numpy(digits.images[:12]), labels, name="answered", classes=digits.classes)


def sheet(mgnet: Classifier, data: Dataset, **other: Any) -> Sheet:
    return Sheet(mgnet, data=data, steps=(2,), limit=12, batch_size=5, device="cpu", **other)


def test_looks_are_what_the_network_saw(mgnet: Classifier, digits: Dataset) -> None:
    x = torch.from_numpy(digits.images[:3]) / 255
    found = looks(mgnet, x)
    regions, exits = mgnet.trace(x), mgnet.exits(x)
    for i, one in enumerate(found):
        assert np.array_equal(one.image, digits.images[i].transpose(1, 2, 0))
        assert one.regions == pytest.approx(regions[:, i].numpy())
        assert one.glimpses.shape == (3, 32, 32, 3)
        seen = look(x[i : i + 1], regions[1, i : i + 1], 32)[0].permute(1, 2, 0) * 255
        assert np.abs(one.glimpses[1] - seen.numpy()).max() <= 0.51
        assert one.answers == tuple(mgnet.classes[k] for k in exits[:, i].argmax(1))
        assert one.confidences == pytest.approx(exits[:, i].softmax(1).amax(1).tolist(), abs=1e-5)


def test_a_sheet_of_one_glimpse_shows_the_whole_image(ffnet: Classifier, digits: Dataset) -> None:
    (one,) = looks(ffnet, torch.from_numpy(digits.images[:1]) / 255)
    assert one.regions.tolist() == [[1, 0, 0]]
    assert np.abs(one.glimpses[0].astype(int) - one.image).max() <= 1


class Red(nn.Module):
    """Tells how red an image is, in five steps."""

    def forward(self, x: Tensor) -> Tensor:
        return -((x[:, 0].mean((1, 2))[:, None] * 4 - torch.arange(5)) ** 2)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_model_from_outside_sees_the_whole_image_as_it_is(size: tuple[int, int], count: int) -> None:
    model = wrap(Red(), name="red", size_px=16)
    x = torch.rand(count, 3, *size)
    found = looks(model, x)
    assert len(found) == count
    for one, image in zip(found, x, strict=True):
        assert one.regions.tolist() == [[1, 0, 0]]
        assert one.image.shape == (*size, 3)
        assert np.array_equal(one.glimpses[0], one.image)
        assert one.answers == (str(round(4 * float(image[0].mean()))),)


def test_a_sheet_of_a_model_from_outside_says_that_it_has_no_glimpses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.rand(5, 3, 16, 16)
    data = from_tensors(images, torch.full((5,), 2), name="reds", classes=5)
    model = wrap(Red(), name="red", size_px=16)
    title, cases = find_cases(sheet(model, data, count=3))
    assert title == "red on reds, PGD linf 4/255, 2 steps, standard"
    assert len(cases) == 3
    assert "red: it has no glimpses, so the sheet shows the whole image" in capsys.readouterr().err
    figures.render(glimpse_sheet(cases, title=title), "png")


def test_a_trace_of_another_shape_than_the_exits_is_refused() -> None:
    model = wrap(Red(), name="red", size_px=16)
    broken = replace(model, trace=lambda x: torch.tensor([1.0, 0, 0]).expand(len(x), 1, 3))
    with pytest.raises(
        UserError, match=r"a region for each of 1 exits from trace, \[1,2,3\], got \[2, 1, 3\]"
    ):
        looks(broken, torch.rand(2, 3, 16, 16))


def test_named_images_are_attacked_as_in_a_run(mgnet: Classifier, answered: Dataset) -> None:
    title, cases = find_cases(sheet(mgnet, answered, indices=(7, 2)))
    assert title == "tiny-mgnet on answered, PGD linf 4/255, 2 steps, standard"
    assert [case.index for case in cases] == [7, 2]
    _, work = plan_work(Bench((mgnet,), data=answered, steps=(2,), device="cpu"), "cpu")
    assert work.plan is not None
    batch = next(work.dataset.batches(12))
    _, shown = evaluate.attack_images(mgnet, batch, work.plan, device="cpu")
    for case in cases:
        assert case.label == answered.classes[answered.labels[case.index]]
        levels = (shown[case.index] * 255).round().permute(1, 2, 0).numpy()
        # A gradient near 0 may turn its sign in another batch: a few pixels may differ.
        assert (np.abs(case.attacked.image - levels) > 0.5).mean() < 0.05
        assert np.abs(case.attacked.image.astype(int) - case.clean.image).max() <= 4


def test_a_sheet_shows_some_of_each_kind(mgnet: Classifier, answered: Dataset) -> None:
    _, cases = find_cases(sheet(mgnet, answered, count=5, eps="16/255", step_size="8/255"))
    kinds = [case.kind for case in cases]
    assert len(cases) == 5
    assert kinds == sorted(kinds, key=["fooled", "stands", "wrong before"].index)
    assert kinds.count("wrong before") >= 1
    for case in cases:
        is_same = np.array_equal(case.clean.image, case.attacked.image)
        assert is_same == (case.kind == "wrong before"), "what was wrong before is not attacked"
    again = find_cases(
        replace(sheet(mgnet, answered, count=5, eps="16/255", step_size="8/255"), batch_size=12)
    )
    assert [case.index for case in again[1]] == [case.index for case in cases]


@pytest.fixture(scope="module")
def fickle(mgnet: Classifier) -> Classifier:
    """The untrained network, which answers with the next class after its first glimpse."""

    def exits(x: Tensor) -> Tensor:
        logits = mgnet.exits(x)
        return torch.cat([logits[-1:].roll(1, 2), logits[1:]])

    return replace(mgnet, name="fickle", exits=exits)


@pytest.mark.parametrize(
    "pick, expected",
    [("correct", [1, 4, 7]), ("wrong", [0, 2, 3]), ("saved", [1, 4, 7]), ("lost", [0, 3, 6])],
)
def test_a_pick_is_of_the_clean_answers(
    fickle: Classifier, digits: Dataset, pick: str, expected: list[int]
) -> None:
    # Labels are in turn what it says first, what it says last, and what it says at neither.
    images = torch.from_numpy(digits.images[:12])
    with torch.no_grad():
        first, *_, last = fickle.exits(images / 255).argmax(2)
    turn = torch.arange(12) % 3
    labels = torch.where(turn == 0, first, torch.where(turn == 1, last, (first + 1) % 10))
    data = from_tensors(images, labels, name="turns", classes=digits.classes)
    asked = sheet(fickle, data, pick=pick, count=3)
    title, cases = find_cases(asked)
    assert title.endswith(f"standard; {pick}")
    assert [case.index for case in cases] == expected
    for case in cases:
        assert (case.clean.answers[-1] == case.label) == (pick in ("correct", "saved"))
        assert (case.clean.answers[0] == case.label) == (pick == "lost" or case.index % 3 == 0)
    again = find_cases(replace(asked, batch_size=12))[1]
    assert [case.index for case in again] == expected


def test_a_pick_that_no_image_is_of_is_refused(fickle: Classifier, digits: Dataset) -> None:
    images = torch.from_numpy(digits.images[:3])
    with torch.no_grad():
        right = from_tensors(images, fickle.logits(images / 255).argmax(1), name="right", classes=10)
    with pytest.raises(UserError, match="none of the first 3 images is lost; look at more of them"):
        find_cases(sheet(fickle, right, pick="lost"))


def test_fewer_of_a_pick_than_asked_for_are_told(
    mgnet: Classifier, answered: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cases = find_cases(sheet(mgnet, answered, pick="wrong", count=9))
    assert [case.index for case in cases] == [0, 3, 6, 9]
    assert "4 of the first 12 images are wrong, fewer than the 9 asked for" in capsys.readouterr().err


def test_a_network_of_one_exit_saves_and_loses_nothing(ffnet: Classifier, answered: Dataset) -> None:
    with pytest.raises(UserError, match="answers once, so that no image is saved between"):
        find_cases(sheet(ffnet, answered, pick="saved"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pick": "lots"}, "unknown pick 'lots'; did you mean 'lost'?"),
        ({"pick": "lost", "indices": (1,)}, "by --index or by --pick; leave one of them out"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"indices": (3, -1)}, "from 0 up, got -1"),
        ({"indices": (12,)}, "answered has images 0 to 11, not 12"),
        ({"attack": "pdg"}, "did you mean 'pgd'?"),
        ({"protocol": "standrad"}, "did you mean 'standard'?"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    mgnet: Classifier, answered: Dataset, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        find_cases(replace(sheet(mgnet, answered), **change))
    assert message in str(refused.value)


def test_the_command_draws_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    arguments = f"glimpses --model mgnet-r18 --index 3 --index 1 --steps 1 --device cpu --out {out}"
    done = CliRunner().invoke(cli.app, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["3", "1"]
    assert lines[-1] == str(out)


def test_a_sheet_is_a_png_or_an_svg() -> None:
    done = CliRunner().invoke(cli.app, ["glimpses", "--model", "mgnet-r18", "--out", "sheet.jpg"])
    assert isinstance(done.exception, UserError)
    assert "--out must end in .png or .svg, got 'sheet.jpg'" in str(done.exception)
