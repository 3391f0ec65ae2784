"""Costs: the paper's counts of all its networks, a network that recomputes, and memory counted by hand."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import isnan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from robustglimpse import cli, cost
from robustglimpse.cost import (
    Subject,
    gmacs_as_published,
    gmacs_of,
    gmacs_per_exit,
    peak_bytes,
    profile,
    subject,
    timings,
)
from robustglimpse.models import WEIGHTS, zoo
from robustglimpse.models.mgnet import Architecture, MGNet, bare_architecture, look
from robustglimpse.models.packed import can_pack
from robustglimpse.models.wrapped import wrap
from robustglimpse.records import Classifier, UserError
from robustglimpse.report import table1
from robustglimpse.report.table1 import SETTINGS, Published, published

ours_of, theirs_of = cache(gmacs_per_exit), cache(gmacs_as_published)  # several rows are of one network
CPU = torch.device("cpu")


def architecture_of(row: Published) -> tuple[Architecture, int]:
    """Return the network that a row of the paper is about, and the side of its images."""
    size, classes, glimpses, side = SETTINGS[row.table]
    if row.network == "ffnet":
        glimpses, side = 1, size
    architecture = Architecture(row.backbone, glimpses, f"{size}/{side}", classes, 0.01)
    assert architecture.glimpse_px(size) == side
    return architecture, size


def test_the_papers_tables_are_all_here() -> None:
    tables = [row.table for row in published()]
    assert {table: tables.count(table) for table in SETTINGS} == {"table1": 8, "table2": 13, "table3": 6}


@pytest.mark.parametrize("row", published(), ids=lambda r: f"{r.table} {r.network} {r.backbone} {r.exit}")
def test_gmacs_as_published_are_the_published_ones(row: Published) -> None:
    architecture, size = architecture_of(row)
    counted = theirs_of(architecture, size)[row.exit - 1]
    assert counted == pytest.approx(row.gflops, rel=0.005)
    if row.table != "table3":  # to the last digit that they print
        digits = 3 if row.table == "table1" or row.gflops > 10 else 4  # some rounded, some cut off
        assert abs(counted - row.gflops) < 10**-digits
    else:  # whose counter had norms and sampling too
        extra = norm_and_sampling_gflops(architecture, size)[row.exit - 1]
        assert counted + extra == pytest.approx(row.gflops, rel=0.0005)
    assert ours_of(architecture, size)[row.exit - 1] <= counted


def norm_and_sampling_gflops(architecture: Architecture, size_px: int) -> list[float]:
    """Return, per exit, 2 for every value out of a batch norm and 4 for every value of a glimpse."""
    with torch.device("meta"):
        network = MGNet(architecture).eval()
        side = architecture.glimpse_px(size_px)
        values: list[int] = []
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda *arguments: values.append(arguments[2].numel()))
        network.backbone(torch.empty(1, 3, side, side))
    each = 2 * sum(values) + 4 * 3 * side * side
    return [t * each / 1e9 for t in range(1, architecture.glimpses + 1)]


def test_our_gmacs_are_below_the_published_ones_at_every_exit_and_by_the_fusion_alone() -> None:
    architecture = Architecture("resnet18", 4, "7/3", 100, 0.02)
    ours, theirs = ours_of(architecture, 224), theirs_of(architecture, 224)
    assert all(a < b for a, b in zip(ours, theirs, strict=True))
    # By hand, 515 features wide: theirs 4 x (1 + 2 + 3 + 4) squares, ours 3 + 4 + 4 + 4, since the first
    # glimpse needs no query.  Ours count two products of 515 with each of t keys from glimpse 2 on, theirs
    # one more call of the localisation network.
    squares, keys = 40 - 15, 2 + 3 + 4
    assert (theirs[3] - ours[3]) * 1e9 == pytest.approx(squares * 515**2 - 2 * keys * 515 + 3 * 515)


class Recomputing(nn.Module):
    """MGNet as it was evaluated: the whole attention over all glimpses so far, anew at every glimpse."""

    def __init__(self, network: MGNet) -> None:
        super().__init__()
        self.network = network
        self.mha = nn.MultiheadAttention(network.loc_network.fc.in_features, 1)
        self.mha.load_state_dict(network.feat_fusion.mha.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every glimpse, [T,B,K]."""
        network = self.network
        side = network.architecture.glimpse_px(x.shape[-1])
        region = x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        coded, logits = x.new_empty(0), []
        for _ in range(network.architecture.glimpses):
            feature = network.backbone(look(x, region, side))
            coded = torch.cat([coded, torch.cat([feature, region], 1)[None]])
            fused = torch.relu(
                network.feat_fusion.norm(self.mha(coded, coded, coded, need_weights=False)[0])[-1]
            )
            logits.append(network.global_fc(fused))
            region = network._next_region(fused, 1.0)
        return torch.stack(logits)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [(Architecture("resnet18", 4, "7/3", 100, 0.02), 224), (Architecture("resnet18", 1, "1", 10, 0.02), 64)],
)
def test_keeping_keys_and_values_changes_no_logit(architecture: Architecture, size: int) -> None:
    torch.manual_seed(0)
    network = MGNet(architecture).eval().requires_grad_(False)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours, theirs = network(x).logits, Recomputing(network).eval()(x)
    # MGNet carries rounding on through its regions: 1.03e-5 on one processor, 2e-6 on another.
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0)
    assert float(theirs.std()) > 0.01


def test_the_published_count_is_that_of_the_network_that_recomputes() -> None:
    architecture = Architecture("resnet18", 4, "7/3", 100, 0.02)
    with torch.device("meta"):
        network = Recomputing(MGNet(architecture)).train()  # in eval mode the attention is one opaque call
        x = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.cat([x, x]))  # two images: a batch norm in training refuses one value
    by_operation = counter.get_flop_counts()["Global"]
    macs = sum(
        n for op, n in by_operation.items() if op in (torch.ops.aten.convolution, torch.ops.aten.addmm)
    )
    assert macs / 4e9 == pytest.approx(theirs_of(architecture, 224)[-1], rel=1e-9)


# Time and memory


def test_timings_are_of_warm_runs() -> None:
    calls: list[float] = []

    def slow_at_first() -> None:
        calls.append(time.perf_counter())
        if len(calls) == 1:
            while time.perf_counter() - calls[0] < 0.05:
                pass

    seconds = timings(slow_at_first, 7, CPU)
    assert len(seconds) == 7
    assert len(calls) == 7 + cost.WARM_UPS
    assert max(seconds) < 0.05


def test_long_runs_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BUDGET_S", 0.0)
    assert len(timings(lambda: None, 100, CPU)) == cost.FEWEST_RUNS


KIB = torch.zeros(256)  # 1024 bytes


def alone(x: Tensor) -> Tensor:
    return x + 1


def chain(x: Tensor) -> Tensor:
    for _ in range(5):
        x = x + 1  # the one before is freed
    return x


def kept(x: Tensor) -> list[Tensor]:
    return [x + k for k in range(5)]


def in_place(x: Tensor) -> Tensor:
    return (x + 1).mul_(2).relu_().view(2, 128)


@pytest.mark.parametrize(("run", "kib"), [(alone, 1), (chain, 2), (kept, 5), (in_place, 1)])
@pytest.mark.parametrize("inference", [True, False])
def test_peak_memory_is_what_is_alive_at_once(
    run: Callable[[Tensor], object], kib: int, inference: bool
) -> None:
    weights = nn.Linear(256, 1, bias=False).requires_grad_(False)
    x = KIB.clone()

    def measured() -> object:
        with torch.inference_mode(inference):
            return run(x)

    assert peak_bytes(measured, weights, x) == 1024 * (kib + 2)  # the image and the weights are there too
    assert peak_bytes(measured, weights, x) == 1024 * (kib + 2)


@pytest.fixture(scope="module")
def small() -> Subject:
    return subject("mgnet-r18", size_px=64, classes=10, glimpses=3, downsample="2")


def test_every_exit_is_measured(small: Subject) -> None:
    costs = profile([small], batch_sizes=(1, 2), repeats=2)
    assert [c.exit for c in costs] == [1, 2, 3]
    for before, after in pairwise(costs):
        assert before.gmacs < after.gmacs
        assert before.params == after.params
    for c in costs:
        assert c.runs == {1: 2, 2: 2}
        assert set(c.latency_ms) == {1, 2}
        # At the least the weights (f32), at the most their packed copies and a few maps of a 32 px glimpse.
        assert 4e-6 * 0.99 * c.params < c.peak_mb[1] < c.peak_mb[2] < 2 * 4e-6 * c.params + 4
        assert (c.peak_mb[1] > 1.9 * 4e-6 * c.params) is can_pack()


def test_fast_times_the_rewritten_network_and_counts_the_usual_one(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Fast:
        def __init__(self, network: MGNet) -> None:
            assert network is small.network

        def __call__(self, x: Tensor, *, glimpses: int) -> None:
            asked.append((len(x), glimpses))

    usual = profile([small], batch_sizes=(2,), repeats=1)
    monkeypatch.setattr(cost, "FastMGNet", Fast)
    fast = profile([small], batch_sizes=(2,), repeats=1, is_fast=True)
    assert asked == [(2, t) for t in (1, 2, 3) for _ in range(1 + cost.WARM_UPS)]
    for a, b in zip(usual, fast, strict=True):
        assert (a.gmacs, a.peak_mb, a.params, b.is_fast) == (b.gmacs, b.peak_mb, b.params, True)
    assert "rewritten" in table1.conditions(fast)


def test_parameters_are_those_of_the_network_as_trained(small: Subject) -> None:
    resnet18_without_its_classifier = 11_176_512  # 11 689 512 less 513 000
    fusion = 4 * 515**2 + 4 * 515 + 2 * 515
    assert small.params == resnet18_without_its_classifier + fusion + 516 * 3 + 516 * 10


def test_the_measured_network_answers_as_the_trained_one(small: Subject) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = MGNet(Architecture("resnet18", 3, "2", 10, 0.02)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small.network(x).logits, trained(x).logits, atol=1e-4, rtol=0)


# Models from outside


class Plain(nn.Module):
    """Two layers whose products are counted by hand, and something that only looks like a product."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.lstm = nn.LSTM(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolution(x).mul(2).mean((2, 3))
        if self.how == "opaque":
            return self.lstm(features[None])[0][0]
        if self.how == "detached":
            with torch.no_grad():
                return self.head(features)
        if self.how == "breaks" and len(x) == 1:
            raise ValueError("two at least")
        return self.head(features)


def outside(module: Any, size_px: int = 8) -> Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scripting
        return wrap(module, name="plain", size_px=size_px)


PLAIN_MACS = 4 * 27 * 8 * 8 + 4 * 5


@pytest.mark.parametrize("how", ["", "detached"])
def test_a_model_from_outside_is_counted_by_hand(how: str) -> None:
    model = outside(Plain(how))
    state = torch.random.get_rng_state()
    assert gmacs_of(model) == (PLAIN_MACS / 1e9,)
    assert gmacs_of(model, 16) == ((4 * 27 * 16 * 16 + 20) / 1e9,)
    assert gmacs_of(model, (8, 12)) == ((4 * 27 * 8 * 12 + 20) / 1e9,)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = outside(Plain(how))
    with torch.no_grad(), torch.inference_mode():
        assert gmacs_of(again) == (PLAIN_MACS / 1e9,)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_model_is_counted_as_it_was() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    assert gmacs_of(outside(torch.jit.script(layers.eval()))) == (PLAIN_MACS / 1e9,)


def test_a_model_that_takes_three_images_at_once_is_counted_for_one() -> None:
    exported = torch.export.export(Plain().eval(), (torch.rand(3, 3, 8, 8),))
    assert gmacs_of(outside(exported)) == (PLAIN_MACS / 1e9,)


def test_what_cannot_be_counted_is_no_number() -> None:
    assert isnan(gmacs_of(outside(Plain("opaque")))[0])
    model = outside(Plain())
    assert isnan(gmacs_of(replace(model, logits=Plain("breaks").eval()))[0])
    several = replace(model, meta={**model.meta, "exits": 3})
    assert [isnan(count) for count in gmacs_of(several)] == [True] * 3
    assert isnan(gmacs_of(replace(model, meta={**model.meta, "threshold": 0.5}))[0])


def test_attention_is_counted_with_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, of a layer with one head 8 wide over 4 x 4 patches of 2 px and the class token, 17 in all."""
    from torchvision.models import VisionTransformer

    tokens, width, hidden = 17, 8, 16
    model = outside(VisionTransformer(8, 2, 1, 1, width, hidden, num_classes=5))
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    layers = 2 * tokens * width * hidden
    expected = 16 * 12 * width + projections + products + layers + width * 5
    assert gmacs_of(model) == (expected / 1e9,)


def test_our_own_networks_are_counted_exit_by_exit_and_once(
    mgnet: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = mgnet.meta["architecture"]
    assert gmacs_of(mgnet, 64) == gmacs_per_exit(architecture, 64)
    asked = outside(Plain())
    first = gmacs_of(asked)
    monkeypatch.setattr(cost, "_count", lambda *_: pytest.fail("it was counted already"))
    monkeypatch.setattr(cost, "MGNet", lambda *_: pytest.fail("it was counted already"))
    assert gmacs_of(replace(asked, name="another")) == first
    assert gmacs_per_exit(replace(architecture), 64) == gmacs_of(mgnet)


def test_a_model_from_outside_is_measured_as_one_exit() -> None:
    (found,) = profile([subject("torchvision:resnet18(weights=None, classes=10, size_px=32)")],
                       batch_sizes=(1, 2), repeats=1)  # fmt: skip
    assert (found.exit, found.architecture, found.size_px) == (1, None, 32)
    assert found.params == 11_176_512 + 10 * 513
    assert found.gmacs == pytest.approx(0.0370, abs=1e-4)
    assert 4e-6 * 0.99 * (found.params or 0) < found.peak_mb[1] < found.peak_mb[2] < 60
    assert found.latency_ms.keys() == {1, 2}


def test_what_is_not_known_of_a_model_is_a_dash_and_null() -> None:
    model = outside(Plain("opaque"))
    bare = replace(model, meta={"device": "cpu"})
    costs = profile([cost.Outside(bare, (8, 8))], batch_sizes=(1,), repeats=1)
    cells = [cell.strip() for cell in table1.to_markdown(costs).splitlines()[2].strip("|").split("|")]
    assert cells[:6] == ["plain", "1", "-", "-", "-", "-"]
    assert cells[-1] == "-"
    (found,) = json.loads(table1.to_json(costs))
    assert (found["params"], found["gmacs"], found["peak_mb"], found["backbone"]) == (None,) * 4
    assert found["latency_ms"] > 0


def test_a_model_that_takes_no_such_batch_is_refused() -> None:
    model = cost.Outside(outside(Plain()), (8, 8))
    broken = replace(model, classifier=replace(model.classifier, logits=Plain("breaks").eval()))
    with pytest.raises(UserError, match=r"cannot answer 1 images at once \(two at least\); give another"):
        profile([broken], batch_sizes=(2, 1), repeats=1)
    with pytest.raises(UserError, match="--fast is for our own networks"):
        profile([model], is_fast=True)


def test_the_command_measures_ours_and_others_side_by_side() -> None:
    arguments = ["profile", "--model", "ffnet-r18"]
    arguments += ["--model", "torchvision:resnet18(weights=None, classes=100)"]
    arguments += ["--size", "32", "--batch-size", "1", "--repeats", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == ["ffnet-r18", "torchvision:resnet18(weights=None)"]
    # Ours fuses 512 features with a region: keys, values and output of 515; its head of 100 is 3 wider.
    difference = (3 * 515**2 + 300) / 1e9
    assert float(lines[0][3]) - float(lines[1][3]) == pytest.approx(difference, abs=1e-4)
    assert lines[1][4:6] == ["-", "-"]


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mgnet-r34-nopool", Architecture("resnet34-nopool", 3, "2", 200, 0.01)),
        ("mgnet-rx50", Architecture("resnext50", 3, "2", 200, 0.01)),
        ("ffnet-wrn50", Architecture("wrn50", 1, "1", 200, 0.01)),
        ("ffnet-r18", Architecture("resnet18", 1, "1", 200, 0.02)),
    ],
)
def test_a_bare_architecture_is_spelt_by_family_and_backbone(name: str, expected: Architecture) -> None:
    assert bare_architecture(name, classes=200, glimpses=3, downsample="2") == expected


def test_what_a_bare_architecture_leaves_out_is_the_papers() -> None:
    made = subject("mgnet-r18", size_px=224)
    assert made.network.architecture == Architecture("resnet18", 4, "7/3", 100, 0.02)
    assert subject("mgnet-r18", glimpses=2).network.architecture.glimpses == 2
    assert subject("mgnet-r18", glimpses=2).size_px == 224


def test_without_options_a_name_is_a_checkpoint() -> None:
    made = subject("ffnet-r18")
    assert (made.size_px, made.network.architecture.classes) == (64, 10)
    state, _, _ = zoo.read_checkpoint(WEIGHTS / "ffnet-r18-glimpse-digits.safetensors")
    torch.testing.assert_close(made.network.global_fc.fc.weight, state["global_fc.fc.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mgnet-r19", {"size_px": 64}, "unknown architecture 'mgnet-r19'; it is mgnet- or ffnet-"),
        ("resnet-r18", {"size_px": 64}, "unknown architecture"),
        ("mgnet-r18", {"glimpses": 0}, "must be at least 1, got 100, 0 and 7/3"),
        ("mgnet-r18", {"downsample": "x"}, "downsample must be a number"),
        ("mgnet-r18", {"size_px": 2}, "size must be at least 7/3 px, got 2"),
        ("mgnet-wrn50", {}, "no such checkpoint .* give --size 224"),
        ("mgnet-r81", {}, "did you mean 'mgnet-r18'"),
        ("resnet18", {}, "did you mean torchvision:resnet18?"),
        ("mine.pth", {}, "a call that names its network"),
        (
            "torchvision:resnet18(weights=None)",
            {"classes": 7},
            "--classes say what our own architectures are",
        ),
        ("torchvision:resnet18(weights=None)", {"size_px": 0}, "size must be at least 1 px, got 0"),
    ],
)
def test_another_name_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        subject(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("repeats", "sizes"), [(0, (1,)), (1, ()), (1, (0,))])
def test_nothing_to_measure_is_refused(small: Subject, repeats: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        profile([small], batch_sizes=sizes, repeats=repeats)


# The table


def costs_of(architecture: Architecture, size_px: int) -> list[cost.ExitCost]:
    """Return made-up times of every exit."""
    counts = zip(ours_of(architecture, size_px), theirs_of(architecture, size_px), strict=True)
    return [
        cost.ExitCost(
            "mine", t + 1, architecture, size_px, 12_345_678, ours, theirs, {1: 1.26, 32: 20.04},
            {1: 50.04, 32: 99.96}, {1: 30, 32: 5}, "cpu", 2, False,
        )
        for t, (ours, theirs) in enumerate(counts)
    ]  # fmt: skip


def test_the_papers_column_stands_beside_ours() -> None:
    costs = costs_of(Architecture("resnet18", 4, "7/3", 100, 0.02), 224)
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table1.to_markdown(costs).splitlines()
    ]
    assert header == [
        "Model", "T", "Params M", "GMACs", "as published", "paper", "ms, batch 1", "ms, batch 32", "paper ms",
        "MB, batch 1", "MB, batch 32",
    ]  # fmt: skip
    assert lines[0] == [
        "mine",
        "1",
        "12.35",
        "0.3340",
        "0.3342",
        "0.3342",
        "1.3",
        "20.0",
        "-",
        "50.0",
        "100.0",
    ]
    assert lines[3] == [
        "mine",
        "4",
        "12.35",
        "1.3366",
        "1.3432",
        "1.343",
        "1.3",
        "20.0",
        "59.4",
        "50.0",
        "100.0",
    ]
    assert "median of 5 to 30 warm runs on cpu, 2 threads" in table1.conditions(costs)


def test_another_network_has_no_published_figure() -> None:
    papers = Architecture("resnet18", 4, "7/3", 100, 0.02)
    assert table1.published_for(papers, 224, 4) is not None
    for other in (
        replace(papers, classes=10), replace(papers, downsample="2"), replace(papers, backbone="resnet34"),
        replace(papers, glimpses=3),
    ):  # fmt: skip
        assert table1.published_for(other, 224, 3) is None
    assert table1.published_for(papers, 64, 4) is None
    # The authors' own 2.33 is the same network: glimpses of 96 px.
    assert table1.published_for(replace(papers, downsample="2.33"), 224, 3) is not None


def test_json_is_one_object_per_model_and_exit() -> None:
    found = json.loads(table1.to_json(costs_of(Architecture("resnet18-nopool", 3, "2", 200, 0.02), 64)))
    assert [(o["model"], o["exit"]) for o in found] == [("mine", 1), ("mine", 2), ("mine", 3)]
    last = found[-1]
    assert (last["params"], last["latency_ms"], last["peak_mb"]) == (12_345_678, 1.26, 50.04)
    assert (last["gmacs_paper"], last["latency_ms_paper"]) == (0.4301, None)
    assert last["latency_ms_by_batch"] == {"1": 1.26, "32": 20.04}
    assert last["gmacs"] < last["gmacs_published"] == pytest.approx(0.4301, rel=0.005)


def test_the_command_prints_the_table_and_json() -> None:
    arguments = ["profile", "--model", "mgnet-r18", "--size", "48", "--classes", "7", "--glimpses", "2"]
    arguments += ["--downsample", "3/2", "--batch-size", "1", "--repeats", "1"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("| Model")
    assert len(result.stdout.splitlines()) == 4
    assert "warm runs on" in result.stderr
    result = CliRunner().invoke(cli.app, [*arguments, "--format", "json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    keys = {"model", "exit", "params", "gmacs", "gmacs_published", "latency_ms", "peak_mb"}
    assert [o["exit"] for o in found] == [1, 2]
    assert all(keys <= o.keys() for o in found)
    assert {o["model"] for o in found} == {"mgnet-r18"}


def test_without_a_model_the_papers_eight_are_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def noted(name: str, **options: object) -> str:
        asked.append((name, options["size_px"]))
        return name

    monkeypatch.setattr(cost, "subject", noted)
    monkeypatch.setattr(
        cost, "profile", lambda *_, **__: costs_of(Architecture("wrn50", 1, "1", 100, 0.01), 224)
    )
    CliRunner().invoke(cli.app, ["profile"], catch_exceptions=False)
    assert [name for name, _ in asked] == [
        "ffnet-r18", "mgnet-r18", "ffnet-r50", "mgnet-r50",
        "ffnet-rx50", "mgnet-rx50", "ffnet-wrn50", "mgnet-wrn50",
    ]  # fmt: skip
    assert {size for _, size in asked} == {224}
