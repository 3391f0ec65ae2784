"""Call strings parse, or fail in one line; nothing in them runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from robustglimpse.data import load_data
from robustglimpse.records import UserError
from robustglimpse.registry import Call, find, parse_call, parse_fraction, resolve, unknown


@dataclass(frozen=True)
class Line:
    """A table row."""

    target: str


TABLE = {"pgd": Line("pathlib:Path"), "fgsm": Line("robustglimpse.no_such_module:thing")}


@pytest.mark.parametrize(
    "text, call",
    [
        ("pgd", Call("pgd")),
        (" pgd ", Call("pgd")),
        ("pgd()", Call("pgd")),
        ("pgd(steps=40)", Call("pgd", (("steps", 40),))),
        ("pgd(eps=4/255)", Call("pgd", (("eps", 4 / 255),))),
        ("pgd(b=-1/2, a=[1, 2])", Call("pgd", (("a", [1, 2]), ("b", -0.5)))),
        ("pgd(a=[1/4, [1, 1/2]], b=(3,))", Call("pgd", (("a", [0.25, [1, 0.5]]), ("b", [3])))),
        ("pgd(step_size=0.5/255, eps=1e-2)", Call("pgd", (("eps", 0.01), ("step_size", 0.5 / 255)))),
        ("pgd(random_start=False)", Call("pgd", (("random_start", False),))),
        ("torchattacks:PGD(steps=10)", Call("torchattacks:PGD", (("steps", 10),))),
        ("imagefolder:/some/where.d", Call("imagefolder:/some/where.d")),
    ],
)
def test_call_strings_parse(text: str, call: Call) -> None:
    assert parse_call(text) == call


def test_a_call_has_one_spelling_that_parses_back() -> None:
    call = parse_call("pgd( steps=[2,1],  eps=1/2 )")
    assert str(call) == "pgd(eps=0.5, steps=[2, 1])"
    assert parse_call(str(call)) == call
    assert (call.get("eps"), call.get("norm", "linf")) == (0.5, "linf")


@pytest.mark.parametrize(
    "text",
    [
        "pgd(", "pgd(steps=40", "pgd(40)", "pgd(*[1])", "pgd(**{'steps': 1})", "pgd(steps=n)",
        "pgd(eps=4/0)", "pgd(eps=[1]/2)", "pgd(eps=1j/2)", "pgd(eps={[]: 1})", "pgd(steps=1, steps=2)",
        "pgd(steps=40)(eps=1)", "pgd(steps=40).run(eps=1)", "pgd(eps=1e999)", "pgd(eps=-1e999)",
        "pgd(eps=[1e999])", "pgd(eps=1e308/1e-308)", "pgd(eps=True/255)", "pgd(eps='4'/255)",
    ],
)  # fmt: skip
def test_what_is_no_literal_call_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="expected a call like") as caught:
        parse_call(text)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_inside_a_call_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(UserError):
        parse_call(f"pgd(steps=open({str(marker)!r}, 'w'))")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text, value",
    [
        ("4/255", 4 / 255), (" 0.5 ", 0.5), ("1e-3", 1e-3), ("0", 0.0), ("-1/2", -0.5), ("4 / 255", 4 / 255),
        ("0.5/255", 0.5 / 255), ("1.5/255", 1.5 / 255), ("0.1/255", 0.1 / 255), ("8/255.", 8 / 255),
    ],
)  # fmt: skip
def test_fractions_parse(text: str, value: float) -> None:
    assert parse_fraction(text, what="eps") == value


@pytest.mark.parametrize(
    "text", ["4/0", "four", "", "nan", "inf", "4/255/2", "1e400", "4/inf", "/", "1e308/1e-308"]
)
def test_what_is_no_finite_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match="eps must be a number"):
        parse_fraction(text, what="eps")


def test_a_near_miss_names_the_nearest_and_where_to_look() -> None:
    with pytest.raises(UserError) as caught:
        find(TABLE, "pdg", kind="attack", listing="attacks")
    expected = "unknown attack 'pdg'; did you mean 'pgd'? (list them: robustglimpse list attacks)"
    assert str(caught.value) == expected


def test_a_wild_miss_suggests_nothing_and_shows_the_names() -> None:
    text = str(unknown("zzzzzz", TABLE, kind="attack"))
    assert "did you mean" not in text
    assert "pgd, fgsm" in text


def test_an_unknown_data_set_points_at_a_command_that_exists() -> None:
    with pytest.raises(UserError, match=r"did you mean 'cifar10'\? \(list them: robustglimpse list data\)"):
        load_data("cifar-10")


def test_a_row_is_loaded_only_when_resolved() -> None:
    assert resolve(find(TABLE, "pgd", kind="attack")) is Path
    row = find(TABLE, "fgsm", kind="attack")  # naming a broken target costs nothing
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        resolve(row)
