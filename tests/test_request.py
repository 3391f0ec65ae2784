"""What people type first in Python is understood, or refused in one line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import robustglimpse
from robustglimpse import (
    Bench,
    Classifier,
    ExitStudy,
    KeyedDraws,
    LegacyDraws,
    Sweep,
    Threat,
    UserError,
    assert_no_regression,
    bench,
    exit_early,
    frames,
    from_loader,
    from_tensors,
    load_data,
    load_model,
    outcomes,
    read_results,
    study_exits,
    sweep_corruptions,
    wrap,
)
from robustglimpse.compare import compare
from robustglimpse.data import Dataset
from robustglimpse.export import Export, corrupt_folder
from robustglimpse.glimpses import Sheet
from robustglimpse.registry import parse_call, parse_fraction
from robustglimpse.request import READERS

MODULE = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), name="mine", size_px=8)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return from_tensors(IMAGES, LABELS, name="noise")


@pytest.fixture(scope="module")
def run(model: Classifier, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    bench(Bench(model, data=data, steps=1, device="cpu"), out)
    return out


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Norm(str, Enum):  # noqa: UP042 - as people write it
    LINF = "linf"


def generated(*values: Any) -> Iterator[Any]:
    yield from values


# The fields of a request


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("models", "a", ("a",)),
        ("models", ["a", "b"], ("a", "b")),
        ("models", np.array(["a", "b"]), ("a", "b")),
        ("models", {"b", "a"}, ("a", "b")),
        ("models", generated("a", "b"), ("a", "b")),
        ("models", Path("x/y.safetensors"), ("x/y.safetensors",)),
        ("models", [Path("~/y.safetensors")], (str(Path.home() / "y.safetensors"),)),
        ("models", "~/y.safetensors", (str(Path.home() / "y.safetensors"),)),
        ("attacks", "pgd", ("pgd",)),
        ("attacks", ["pgd", "fgsm"], ("pgd", "fgsm")),
        ("attacks", parse_call("pgd(steps=4)"), ("pgd(steps=4)",)),
        ("attacks", np.str_("pgd"), ("pgd",)),
        ("attacks", [], ()),
        ("protocols", "paper", ("paper",)),
        ("steps", 4, (4,)),
        ("steps", [1, 2], (1, 2)),
        ("steps", range(1, 4), (1, 2, 3)),
        ("steps", generated(1, 2), (1, 2)),
        ("steps", np.array([1, 2]), (1, 2)),
        ("steps", np.array([1.0, 2.0]), (1, 2)),
        ("steps", np.int64(4), (4,)),
        ("steps", torch.arange(1, 3), (1, 2)),
        ("steps", torch.tensor(4), (4,)),
        ("steps", pd.Series([1, 2]), (1, 2)),
        ("steps", {16, 4, 8}, (4, 8, 16)),
        ("steps", "4,8", (4, 8)),
        ("steps", "4, 8", (4, 8)),
        ("steps", (8, 4), (8, 4)),
        ("norm", "Linf", "linf"),
        ("norm", "L2", "l2"),
        ("norm", "l_inf", "linf"),
        ("norm", "L-inf", "linf"),
        ("norm", "inf", "linf"),
        ("norm", np.inf, "linf"),
        ("norm", float("inf"), "linf"),
        ("norm", 2, "l2"),
        ("norm", 2.0, "l2"),
        ("norm", Norm.LINF, "linf"),
        ("limit", 10.0, 10),
        ("limit", np.int64(10), 10),
        ("limit", np.float32(10), 10),
        ("limit", "10", 10),
        ("limit", None, None),
        ("seed", np.uint32(2**32 - 1), 2**32 - 1),
        ("restarts", torch.tensor(2), 2),
        ("size_px", 32.0, 32),
        ("data", "cifar10", "cifar10"),
        ("data", Path("photos"), "imagefolder:photos"),
        ("data", Path("~/photos"), f"imagefolder:{Path.home() / 'photos'}"),
        ("data_dir", "photos", Path("photos")),
        ("data_dir", "~/photos", Path.home() / "photos"),
        ("device", torch.device("cpu"), "cpu"),
        ("device", torch.device("cuda:1"), "cuda:1"),
        ("all_exits", np.bool_(True), True),
    ],
)
def test_first_guesses_work(name: str, given: Any, held: Any) -> None:
    asked = Bench(**{"models": "a", name: given})
    found = getattr(asked, name)
    assert found == held
    assert type(found) is type(held)
    if isinstance(found, tuple):
        assert list(map(type, found)) == list(map(type, held))
    assert replace(asked) == asked  # what is understood is understood the same again


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (8 / 255, "8/255"),
        (np.float64(8 / 255), "8/255"),
        (np.array(8) / 255, "8/255"),
        (np.float32(8 / 255), "8/255"),
        (torch.tensor(8 / 255), "8/255"),
        (np.float16(8 / 255), "8/255"),
        (Fraction(8, 255), "8/255"),
        (1.5 / 255, "1.5/255"),
        (np.float32(0.01), "0.01"),
        (0.5, "0.5"),
        (1, "1"),
        (1.0, "1"),
        (0.0157, "0.0157"),
        (0.1 / 255, "0.0003921568627450981"),
        ("8/255", "8/255"),
        (" 8 / 255 ", " 8 / 255 "),
        (np.str_("8/255"), "8/255"),
        (["8/255"], "8/255"),
    ],
)
@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_a_number_of_pixel_units_is_kept_as_the_text_that_one_would_type(
    name: str, given: Any, held: str
) -> None:
    asked = Bench("a", **{name: given})
    assert getattr(asked, name) == held
    assert type(getattr(asked, name)) is str


def test_a_float_keeps_its_last_bit() -> None:
    for value in (
        *(k / 255 for k in range(1, 256)),
        *(k * (1 / 255) for k in range(1, 256)),
        1e-9,
        0.3,
        1 / 3,
    ):
        assert parse_fraction(Bench("a", eps=value).eps, what="eps") == value


def test_several_radii_are_a_sweep() -> None:
    assert Bench("a", eps=np.array([1, 2, 4]) / 255, curve="eps").eps == "1/255,2/255,4/255"
    assert Bench("a", eps=["1/255", 2 / 255], curve="eps").eps == "1/255,2/255"
    assert "curve='eps'" in refusal(lambda: Bench("a", eps=[1 / 255, 2 / 255]))
    assert "curve='eps'" in refusal(lambda: Bench("a", eps="1/255,2/255"))
    assert "run one after the other" in refusal(lambda: ExitStudy("a", eps=[1 / 255, 2 / 255]))


WRAPPING = "of a module wrap makes one: robustglimpse.wrap(module, name='mine', size_px=...)"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("models", MODULE, f"got a Sequential; {WRAPPING}"),
        ("models", [MODULE], f"got a Sequential; {WRAPPING}"),
        ("models", torch.nn.ModuleList([MODULE]), f"got a ModuleList; {WRAPPING}"),
        ("models", torch.nn.Linear, f"got the class Linear; {WRAPPING}"),
        ("models", len, f"got the function len; {WRAPPING}"),
        ("models", [lambda x: x], WRAPPING),
        ("models", {"mine": MODULE}, f"models must be a list, got a dict; {WRAPPING}"),
        ("models", MODULE.state_dict(), f"got an OrderedDict; {WRAPPING}"),
        ("models", None, "got None; list them: robustglimpse list models"),
        ("models", 3, "got 3"),
        ("attacks", len, "attacks must be names, or calls as text such as 'pgd(steps=40)'"),
        ("attacks", None, "list them: robustglimpse list attacks"),
        ("attacks", {"pgd": 4}, "attacks must be a list, got a dict"),
        ("protocols", None, "protocols must be text, got None; for example 'standard'"),
        ("protocols", [], "protocols must be one or more, got none"),
        ("steps", None, "steps must be a whole number, got None; for example steps=(1, 2)"),
        ("steps", True, "got True"),
        ("steps", [1, np.bool_(True)], "got "),
        ("steps", torch.tensor([True]), "steps must be a whole number"),
        ("steps", 2.5, "got 2.5"),
        ("steps", np.array([1.5]), "got "),
        ("steps", "1-8", "got '1-8'"),
        ("steps", "", "got ''"),
        ("steps", b"48", "got b'48'"),
        ("steps", np.ones((2, 2)), "got an ndarray of shape [2]"),
        ("steps", itertools.count(1), "at most 100000 values"),
        ("steps", [float("nan")], "got nan"),
        ("eps", None, "eps must be a number such as 4/255 or 0.0157, got None; give it in [0,1] pixel units"),
        ("eps", True, "got True"),
        ("eps", np.bool_(True), "eps must be a number"),
        ("eps", float("nan"), "got nan"),
        ("eps", np.inf, "got inf"),
        ("eps", 1j, "got a complex"),
        ("eps", object(), "got an object"),
        ("step_size", None, "step_size must be a number"),
        ("norm", "l1", "norm must be 'linf' or 'l2', got 'l1'"),
        ("norm", 1, "got 1"),
        ("norm", -np.inf, "got -inf"),
        ("norm", True, "got True"),
        ("norm", None, "got None"),
        ("limit", True, "limit must be a whole number, got True"),
        ("limit", 10.5, "got 10.5"),
        ("limit", "ten", "got 'ten'"),
        ("limit", np.nan, "got nan"),
        ("limit", [10], "got [10]"),
        ("seed", -1, "seed must be from 0 to 2**32 - 1, got -1"),
        ("seed", 2**32, "got 4294967296"),
        ("seed", True, "seed must be a whole number, got True"),
        ("seed", None, "got None"),
        ("restarts", "many", "got 'many'"),
        ("batch_size", None, "got None"),
        ("size_px", (32, 32), "got (32, 32)"),
        ("device", 0, "device must be text, got 0; for example 'auto', 'cpu' or 'cuda:0'"),
        ("device", None, "got None"),
        ("data_dir", 3, "data_dir must be a path, got 3"),
        ("data_dir", "", "got ''"),
        ("data_dir", "~no-such-user-here/x", "whose home folder is in '~no-such-user-here/x'?"),
        ("split", 3, "split must be text, got 3"),
        ("download", "yes", "download must be True or False, got 'yes'"),
        ("all_exits", 1, "got 1"),
        ("data", (IMAGES, LABELS), "make one: robustglimpse.from_tensors(images, labels, name='mine')"),
        ("data", IMAGES, "got a Tensor of shape [6, 3, 8, 8]; make one: robustglimpse.from_tensors("),
        (
            "data",
            IMAGES.numpy(),
            "got an ndarray of shape [6, 3, 8, 8]; make one: robustglimpse.from_tensors(",
        ),
        ("data", {"images": IMAGES}, "robustglimpse.from_tensors("),
        ("data", DataLoader(TensorDataset(IMAGES, LABELS)), "robustglimpse.from_loader(loader, name='mine')"),
        (
            "data",
            TensorDataset(IMAGES, LABELS),
            "robustglimpse.from_loader(torch.utils.data.DataLoader(dataset, 64), name='mine')",
        ),
        ("data", 3, "list them: robustglimpse list data"),
        ("model", "a", "unknown field of Bench 'model'; did you mean 'models'?"),
        ("attack", "pgd", "did you mean 'attacks'?"),
    ],
)
def test_what_stands_for_nothing_is_refused_in_one_line(name: str, given: Any, message: str) -> None:
    assert message in refusal(lambda: Bench(**{"models": "a", name: given}))


def test_a_request_without_models_is_refused(tmp_path: Path) -> None:
    assert "missing a required argument: 'models'" in refusal(Bench)
    assert "expected a model or more" in refusal(lambda: bench(Bench([]), tmp_path))


@pytest.mark.parametrize("request_of", [Bench, Sweep, ExitStudy, Sheet, Export])
def test_every_field_is_read_and_its_default_stays(request_of: Any) -> None:
    first = {} if request_of is Export else {fields(request_of)[0].name: "a"}
    asked = request_of(**first)
    for field in fields(request_of):
        assert field.name in READERS
        if field.name not in first:
            assert getattr(asked, field.name) == field.default
            assert "unknown field" in refusal(lambda field=field: request_of(**{f"{field.name}_": 1}))


def test_the_other_requests_understand_the_same() -> None:
    swept = Sweep("a", corruptions="fog", severities=3, frost_dir="~/frost", preset=np.int64(64))
    assert swept == Sweep(("a",), ("fog",), (3,), frost_dir=Path.home() / "frost", preset=64)
    assert Sweep("a", severities="1,3").severities == (1, 3)
    assert "severities must be one or more" in refusal(lambda: Sweep("a", severities=()))
    study = ExitStudy("a", sizes=[32, 48.0], thresholds=np.array([0.5, 0.9]), attacks="pgd")
    assert (study.sizes, study.thresholds, study.attacks) == ((32, 48), (0.5, 0.9), ("pgd",))
    assert ExitStudy("a", thresholds=0.9).thresholds == (0.9,)
    assert ExitStudy("a", thresholds="0.8,0.9").thresholds == (0.8, 0.9)
    assert "thresholds must be a number, got 'high'" in refusal(lambda: ExitStudy("a", thresholds="high"))
    assert "against_rule must be True or False" in refusal(lambda: ExitStudy("a", against_rule="no"))
    sheet = Sheet(Path("x.safetensors"), indices=range(3), eps=4 / 255, norm="L2", limit=None)
    assert (sheet.model, sheet.indices, sheet.eps, sheet.norm) == ("x.safetensors", (0, 1, 2), "4/255", "l2")
    assert "model must be a name, a file or a Classifier, got ['a']" in refusal(lambda: Sheet(["a"]))
    assert WRAPPING in refusal(lambda: Sheet(MODULE))
    assert Export("fog", range(1, 3), size_px=None) == Export(("fog",), (1, 2), size_px=None)


# What is asked with them


def test_the_same_cells_are_asked_whatever_the_types(
    model: Classifier, data: Dataset, tmp_path: Path
) -> None:
    usual = Bench((model,), ("pgd",), (1, 2), "8/255", "2/255", norm="linf", data=data, limit=4, device="cpu")
    typed = Bench(
        [model], "pgd", np.array([1, 2]), np.float64(8 / 255), 2 / 255, norm=np.inf, data=data,
        limit=np.int64(4), seed=np.int64(0), device=torch.device("cpu"),
    )  # fmt: skip
    first = bench(usual, tmp_path / "same")
    second = bench(typed, str(tmp_path / "same"))
    assert first["cell"].tolist() == second["cell"].tolist()
    assert len(list((tmp_path / "same" / "cells").iterdir())) == 2  # clean and attacked, once
    runs = json.loads((tmp_path / "same" / "run.json").read_text())
    assert len(runs) == 1
    assert runs[0]["asked"]["eps"] == "8/255"


def test_bad_values_are_refused_where_a_run_begins(model: Classifier, data: Dataset, tmp_path: Path) -> None:
    def message(**fields: Any) -> str:
        return refusal(lambda: bench(Bench(model, data=data, device="cpu", **fields), tmp_path))

    assert "eps must be a number" in message(eps="big")
    assert "did you mean 8/255?" in message(eps=8)
    assert "did you mean 'pgd'?" in message(attacks="pdg")
    assert "did you mean 'standard'?" in message(protocols="standrad")
    assert "steps must be whole numbers from 1 up" in message(steps=0)
    assert "steps must be whole numbers from 1 up" in message(steps=[])
    assert "limit must be at least 1" in message(limit=0)


@pytest.mark.parametrize(
    ("function", "kind"),
    [(bench, "a Bench"), (compare, "a Bench"), (sweep_corruptions, "a Sweep"), (study_exits, "an ExitStudy")],
)
def test_a_study_takes_its_request_and_a_place(
    function: Callable[..., Any], kind: str, model: Classifier, tmp_path: Path
) -> None:
    for asked in ("mgnet-r18", model, MODULE, Export(), None):
        message = refusal(lambda asked=asked: function(asked, tmp_path))
        assert f"takes {kind}, got " in message
        assert f"for example {function.__name__}(" in message


def test_a_place_may_be_text(
    model: Classifier, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = Bench(model, attacks=(), data=data, device="cpu")
    bench(asked, "~/runs")
    assert (tmp_path / "runs" / "results.csv").is_file()
    swept = Sweep(model, corruptions="brightness", severities=1, data=data, device="cpu")
    sweep_corruptions(swept, f"{tmp_path}/swept")
    study_exits(ExitStudy(model, data=data, device="cpu"), f"{tmp_path}/studied")
    assert len(compare(replace(asked, attacks=["pgd", "fgsm"], steps=1), f"{tmp_path}/compared")) == 2
    assert "out must be a path, got None" in refusal(lambda: bench(asked, None))


def test_what_is_for_named_sets_alone_is_told(
    model: Classifier, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(Bench(model, attacks=(), data=data, split="train", size_px=64, device="cpu"), tmp_path)
    told = capsys.readouterr().err
    assert "noise is a Dataset, read already; split, size_px have no effect on it" in told


# The other public functions


def test_loading_understands_numbers_and_paths(tmp_path: Path) -> None:
    assert len(load_data("glimpse-digits", limit=np.int64(5)).labels) == 5
    assert len(load_data("glimpse-digits", limit=5.0).labels) == 5
    assert "limit must be a whole number, got True" in refusal(
        lambda: load_data("glimpse-digits", limit=True)
    )
    assert "split must be text" in refusal(lambda: load_data("glimpse-digits", split=1))
    assert f"read it as 'imagefolder:{tmp_path}'" in refusal(lambda: load_data(str(tmp_path)))
    assert str(tmp_path) in refusal(lambda: load_data(tmp_path))  # understood, and without images
    assert "from_tensors(images, labels" in refusal(lambda: load_data((IMAGES, LABELS)))
    assert "no such checkpoint" in refusal(lambda: load_model(tmp_path / "none.safetensors"))
    assert str(Path.home()) in refusal(lambda: load_model("~/none.safetensors"))
    assert WRAPPING in refusal(lambda: load_model(MODULE))
    assert load_model("mgnet-r18", device=torch.device("cpu")).size_px == 64
    assert "device 'nowhere' cannot be used here" in refusal(
        lambda: load_model("mgnet-r18", device="nowhere")
    )


def test_what_is_loaded_is_not_loaded_again(model: Classifier, data: Dataset) -> None:
    assert "it is loaded already" in refusal(lambda: load_model(model))
    assert "it is loaded already" in refusal(lambda: load_data(data))


def test_own_tensors_take_a_number_of_classes_of_any_type() -> None:
    for count in (3, np.int64(3), 3.0):
        assert from_tensors(IMAGES, LABELS, name="x", classes=count).classes == ("0", "1", "2")
    assert from_tensors(IMAGES, LABELS, name="x", classes=np.array(["a", "b", "c"])).classes == (
        "a",
        "b",
        "c",
    )
    for wrong in (True, "abc", {0: "a"}, 3.5):
        refusal(lambda wrong=wrong: from_tensors(IMAGES, LABELS, name="x", classes=wrong))
    assert "name must be text" in refusal(lambda: from_tensors(IMAGES, LABELS, name=None))


def test_a_torch_dataset_is_read_like_its_loader() -> None:
    samples = TensorDataset(IMAGES, LABELS)
    one, many = (from_loader(each, name="x") for each in (samples, DataLoader(samples, 4)))
    assert one.fingerprint == many.fingerprint == from_tensors(IMAGES, LABELS, name="x").fingerprint
    assert "expected a loader" in refusal(lambda: from_loader(None, name="x"))


def test_leaving_early_takes_images_in_0_to_1(mgnet: Classifier) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    answer = exit_early(mgnet, x, threshold=np.float64(0.9))
    for same in (x.numpy(), x.double(), x.numpy().astype(np.float64)):
        assert torch.equal(exit_early(mgnet, same, threshold=0.9).logits, answer.logits)
    assert "must be a number, got '0.9x'" in refusal(lambda: exit_early(mgnet, x, threshold="0.9x"))
    assert "got True" in refusal(lambda: exit_early(mgnet, x, threshold=True))
    assert "takes a Classifier, got 'mgnet-r18'" in refusal(lambda: exit_early("mgnet-r18", x, threshold=0.9))
    assert "x[None] of one image" in refusal(lambda: exit_early(mgnet, x[0], threshold=0.9))
    assert "B from 1 up" in refusal(lambda: exit_early(mgnet, x[:0], threshold=0.9))
    for wrong in ((x * 255).byte(), x * 255, x - 2, x * torch.nan):
        assert "images must be floats in [0,1]" in refusal(
            lambda wrong=wrong: exit_early(mgnet, wrong, threshold=0.9)
        )


def test_draws_take_places_of_any_type() -> None:
    usual = KeyedDraws(3, torch.arange(4)).uniform("x", (2,))
    for index in (range(4), [0, 1, 2, 3], np.arange(4), np.arange(4, dtype=np.uint8), generated(0, 1, 2, 3)):
        assert torch.equal(KeyedDraws(np.int64(3), index).uniform("x", (2,)), usual)
    for wrong in ([0.5], torch.rand(3), torch.tensor([-1]), torch.tensor([True]), torch.zeros(1, 1).long()):
        assert "index must be" in refusal(lambda wrong=wrong: KeyedDraws(0, wrong))
    for seed in (-1, 2**32, True, None, "x"):
        assert "seed must be" in refusal(lambda seed=seed: KeyedDraws(seed, range(4)))
    assert LegacyDraws(4).seeds == (4,)
    assert LegacyDraws(np.arange(2)).seeds == (0, 1)
    assert "seeds must be from 0" in refusal(lambda: LegacyDraws([-1]))


def test_a_threat_keeps_its_contract() -> None:
    assert Threat("linf", np.float64(0.1)).eps == 0.1
    for norm, eps in (("Linf", 0.1), ("l2", "0.1"), ("l2", float("nan")), ("l2", -1)):
        with pytest.raises(ValueError, match="must be"):
            Threat(norm, eps)


def test_results_are_read_from_lists_and_globs(run: Path) -> None:
    usual = read_results(run)
    for paths in ([run], [str(run)], f"{run.parent}/*"):
        pd.testing.assert_frame_equal(read_results(paths), usual)
        assert len(outcomes(paths)) == len(outcomes(run)) == 12
    for read in (read_results, outcomes):
        assert "paths must be one or more, got none" in refusal(lambda read=read: read())
        assert "paths must be a path, got None" in refusal(lambda read=read: read(None))
    assert "no-such-run" in refusal(lambda: outcomes(run / "no-such-run*"))


def test_frames_are_made_of_frames(run: Path) -> None:
    for function in (frames.steps_curve, frames.corruption_table, frames.corruption_errors):
        assert "expected a frame of read_results" in refusal(lambda f=function: f(str(run)))
    expected = "expected a frame of outcomes, got a DataFrame of shape"
    assert expected in refusal(lambda: frames.paired_difference(read_results(run), "mine", "other"))


def test_one_glob_selects_for_the_gate(run: Path) -> None:
    for chosen in ("mine", ["mine"], "m*"):
        assert assert_no_regression(str(run), run, models=chosen).exit_code == 0
    with pytest.raises(AssertionError, match="NOTHING SELECTED"):
        assert_no_regression(run, run, attacks="f*")
    assert "baseline must be a path" in refusal(lambda: assert_no_regression(None, run))
    assert "models must be text, got 3" in refusal(lambda: assert_no_regression(run, run, models=3))


def test_a_folder_is_corrupted_as_asked() -> None:
    assert "takes an Export, got 'fog'" in refusal(lambda: corrupt_folder(Path("a"), Path("b"), "fog"))


def test_the_package_lists_its_public_names_without_loading_them() -> None:
    script = (
        "import sys, rlcompleter, robustglimpse\n"
        "names = dir(robustglimpse)\n"
        "assert {*robustglimpse.__all__, 'frames', '__version__'} <= set(names), names\n"
        "assert not {'Any', 'TYPE_CHECKING', 'annotations', '_WHERE'} & set(names), names\n"
        "complete = rlcompleter.Completer({'robustglimpse': robustglimpse}).attr_matches\n"
        "robustglimpse.frames.steps_curve\n"
        "import robustglimpse.request, robustglimpse.arguments\n"
        "assert 'torch' not in sys.modules\n"
        "assert any('bench' in each for each in complete('robustglimpse.ben'))\n"
        "robustglimpse.bnech\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (
        "AttributeError: module 'robustglimpse' has no attribute 'bnech'. Did you mean: 'bench'?"
        in done.stderr
    )
    assert set(dir(robustglimpse)) >= set(robustglimpse.__all__)
