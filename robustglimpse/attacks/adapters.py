"""Attacks of torchattacks, foolbox and pyautoattack behind our signature; a library loads when it is named.

An adapted attack runs once over its samples and yields what the library returned, as it is: the loop
measures it, brings it into the ball and judges it.
"""

from __future__ import annotations

import io
import logging
import random
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustglimpse.attacks.gradient import Iterates, Logits
from robustglimpse.extras import need
from robustglimpse.records import Threat, UserError
from robustglimpse.registry import Call, unknown
from robustglimpse.rng import KeyedDraws

Attack = Callable[[Tensor, Tensor], Tensor]
# Library -> the extra that installs it.
EXTRAS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "pyautoattack": "robustbench"}
# One name for what each library calls its own way. The first that an attack has is meant.
NAMES = {
    "steps": ("steps", "n_iter", "n_queries", "num_iter_set", "nb_iter", "max_iterations"),
    "step_size": ("alpha", "abs_stepsize"),
    "random_start": ("random_start",),
}
# Arguments that are not a caller's to give, and where their values come from instead.
OURS = {
    "model": "--model",
    "eps": "--eps",
    "max_epsilon": "--eps",
    "norm": "--norm",
    "distance": "--norm",
    "constraint": "--norm",
    "verbose": "",  # what is left is for people, or for Python code that builds objects
    "tensorboard": "",
    "init_attack": "",
}
NORMS = {"linf": "Linf", "l2": "L2"}  # as torchattacks and pyautoattack write them


@dataclass(frozen=True)
class Adapted:
    """An attack of a library.

    norms: those it can be run for; `measures` says which it has where that is none of ours.
    needs: what it reads of the model.
    options: what it can be called with, by our names, and the library's defaults (empty: needed).
    own: our name -> the library's, for all options.
    make: (the model, threat, options by the library's names, how many classes) -> the attack.
    """

    library: str
    name: str
    norms: tuple[str, ...]
    measures: str
    needs: str
    options: Mapping[str, Any]
    own: Mapping[str, str]
    make: Callable[[nn.Module, Threat, dict[str, Any], Callable[[], int]], Attack]

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    @property
    def iterative(self) -> bool:
        """Whether it takes a number of steps and the size of one."""
        return "steps" in self.own and "step_size" in self.own


def find(name: str) -> Adapted:
    """Return the attack that a name such as "foolbox:LinfPGD" means, its library imported now.

    Raises UserError where the library is missing, or has no such attack, or one that cannot be run here.
    """
    library, _, attack = name.partition(":")
    return {"torchattacks": _torchattacks, "foolbox": _foolbox, "pyautoattack": _pyautoattack}[library](
        attack
    )


def check(found: Adapted, call: Call, norm: str) -> None:
    """Raise UserError unless the call's arguments and the norm fit the attack."""
    if norm not in found.norms:
        held = " and ".join(found.norms)
        where = f"is defined for {held}, not {norm!r}; use --norm {held}"
        raise UserError(
            f"{found} {where if held else f'measures {found.measures}; balls here are linf and l2'}"
        )
    given = in_our_names(found, call)
    missing = [key for key, value in found.options.items() if value is Parameter.empty and key not in given]
    if missing:
        raise UserError(f"{found} needs {missing[0]}; for example {found}({missing[0]}=10)")
    steps, size = given.get("steps", 1), given.get("step_size")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"{found} takes one whole number of steps from 1 up, got {steps!r}")
    if size is not None and not (isinstance(size, int | float) and size > 0):
        raise UserError(f"the step size of {found} must be a number above 0, got {size!r}")
    shown = LogitsModule(lambda x: x.flatten(1), torch.device("cpu"))
    eps = Threat("l2" if norm == "l2" else "linf", 0.1)
    try:
        with _alone(0):
            found.make(shown, eps, _in_own_names(found, {**found.options, **given}), lambda: 192)
    except ModuleNotFoundError as error:
        raise UserError(f"{found} needs the package {error.name}; pip install {error.name}") from None
    except Exception as error:  # whatever a constructor raises is about what it was given
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{call} cannot be made ({type(error).__name__}: {reason}); see what {found.library} tells of it"
        ) from None


def in_our_names(found: Adapted, call: Call) -> dict[str, Any]:
    """Return the call's arguments by our names. Raises UserError for an unknown one, or one given twice."""
    ours = {own: name for name, own in found.own.items()}
    given: dict[str, Any] = {}
    for key, value in call.arguments:
        name = key if key in found.own else ours.get(key)
        if name is None and OURS.get(key):
            raise UserError(f"{found} takes its {key} from {OURS[key]}; leave it out of the call")
        if name is None:
            raise UserError(f"{found} has no argument {key!r}; it takes {', '.join(found.own) or 'none'}")
        if name in given:
            raise UserError(f"{name} and {found.own[name]} are one argument of {found}; give one of them")
        given[name] = value
    if "step_size" in given and "rel_stepsize" in given:
        raise UserError(f"step_size and rel_stepsize both set the step of {found}; give one of them")
    return given


def with_defaults(
    found: Adapted, call: Call, *, steps: int | None, step_size: float | None, random_start: bool | None
) -> Call:
    """Return the call by our names, telling its steps and their size even where it left them open.

    An attack that takes both gets those given here, as our own iterative ones do; any other keeps what its
    name means, the library's defaults.  Where None is given too: of random_start nothing is told then.
    """
    given = in_our_names(found, call)
    ours = {"steps": steps, "step_size": step_size, "random_start": random_start}
    if "rel_stepsize" in given:
        del ours["step_size"]
    for key, value in ours.items():
        default = found.options.get(key)
        is_open = found.iterative or default is Parameter.empty
        told = value if is_open and value is not None else None if key == "random_start" else default
        if key in found.own and told not in (None, Parameter.empty):
            given.setdefault(key, told)
    return Call(call.name, tuple(sorted(given.items())))


def defaults(found: Adapted, call: Call) -> dict[str, Any]:
    """Return the arguments that a call runs with where nothing is filled in, by our names.

    A step size relative to eps is told as text, "0.025 eps".
    """
    held = {key: value for key, value in found.options.items() if value is not Parameter.empty}
    held |= in_our_names(found, call)
    share = held.get("rel_stepsize")
    if "step_size" in held and held["step_size"] is None and share is not None:
        held["step_size"] = f"{share:.4g} eps"
    return held


def run(
    call: Call, logits: Logits, x: Tensor, y: Tensor, threat: Threat, draws: KeyedDraws, **options: Any
) -> Iterates:
    """Yield the images that a library's attack returns, f32 [B,3,H,W], wherever they are.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  options: by our names or the library's.
    Random numbers follow from the draws' seed, stream and first sample: alike for the same batch.
    Raises ValueError where the attack is not defined for so few classes, and whatever the library raises.
    """
    found = find(call.name)
    given = in_our_names(found, Call(call.name, tuple(options.items())))
    first = int(draws.index[0]) if len(draws) else 0
    seed = zlib.crc32(f"{draws.seed}/{draws.stream}/{first}".encode())
    own = _in_own_names(found, given)
    if "seed" in found.own and own.get("seed") is None:
        own["seed"] = seed
    model = LogitsModule(logits, x.device).eval()

    def classes() -> int:
        with torch.no_grad():
            return int(model(x[:1]).shape[1])

    with _alone(seed), torch.enable_grad():
        attack = found.make(model, threat, own, classes)
        x_adv = attack(x.detach().clone(memory_format=torch.contiguous_format), y.clone()).detach()
    yield x_adv


class LogitsModule(nn.Module):
    """A function of images as the nn.Module that all libraries ask for."""

    def __init__(self, logits: Logits, device: torch.device) -> None:
        super().__init__()
        self.logits = logits
        # torchattacks asks the first parameter for the device.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            shown: Tensor = _OfInputAlone.apply(x, self.logits)
            return shown
        with torch.no_grad():
            return _copy(self.logits(_copy(x.detach())))


class _OfInputAlone(torch.autograd.Function):
    """The logits, whose gradient goes to the images and nowhere else, and comes contiguous.

    foolbox calls backward(), which would leave gradients in weights; torchattacks' PGDL2 and
    pyautoattack take views of inputs or gradients, which raises where those are channels-last.
    Both ways are copies: Square writes into the logits it is given, and the loop remembers them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Logits) -> Tensor:
        with torch.enable_grad():
            inner = _copy(x.detach()).requires_grad_()
            outer = logits(inner)
        ctx.save_for_backward(inner, outer)  # let go as the library's own backward lets go of its graph
        return _copy(outer.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        inner, outer = ctx.saved_tensors
        (gradient,) = torch.autograd.grad(outer, inner, gradients[0], retain_graph=True)
        return gradient.contiguous(), None


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Leave the caller's random numbers, stdout, warnings, log handlers and trace as they were.

    Libraries seed and draw from the global generators, print, warn about themselves, have `logging` set
    up handlers, and switch tracing off.
    """
    is_on = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if is_on else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    handlers, trace = list(logging.root.handlers), sys.gettrace()
    try:
        with torch.random.fork_rng(devices), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        logging.root.handlers[:] = handlers
        if sys.gettrace() is not trace:
            sys.settrace(trace)


def _load(library: str) -> ModuleType:
    with warnings.catch_warnings():  # foolbox imports from a namespace that scipy has deprecated
        warnings.simplefilter("ignore")
        return need(library, EXTRAS[library])


def _pick(library: str, name: str, attacks: Mapping[str, Any]) -> Any:
    """Return the attack called name. Raises UserError with the nearest of the library's names otherwise."""
    try:
        return attacks[name]
    except KeyError:
        raise unknown(name, attacks, kind=f"{library} attack") from None


def _arguments(kind: type) -> dict[str, Any]:
    """Return the names and defaults of what a constructor takes (empty: needed)."""
    return {name: parameter.default for name, parameter in signature(kind).parameters.items()}


def _named(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a call string can give, with defaults, by our names; and our name -> the library's."""
    literal = (bool, int, float, str, tuple, type(None))
    own = {
        name: default
        for name, default in arguments.items()
        if name not in OURS and (default is Parameter.empty or isinstance(default, literal))
    }
    firsts = {name: next((key for key in theirs if key in own), "") for name, theirs in NAMES.items()}
    ours = {key: name for name, key in firsts.items() if key}
    options = {ours.get(key, key): default for key, default in own.items()}
    if "seed" in options:
        options["seed"] = None  # of the run's seed, not the same for every run and batch
    return options, {ours.get(key, key): key for key in own}


def _in_own_names(found: Adapted, given: Mapping[str, Any]) -> dict[str, Any]:
    return {found.own[name]: value for name, value in given.items()}


# torchattacks: what reads no gradients.
SCORES = {"Square", "SPSA", "OnePixel", "Pixle"}
NOTHING = {"VANILA", "GN"}


def _torchattacks(name: str) -> Adapted:
    """Return torchattacks' attack of that name; its docstring's line "Distance Measure" has the norm."""
    library = _load("torchattacks")
    every = {key: getattr(library, key) for key in library.__all__}
    # Those that want more than a model want objects: other attacks, a training set.
    attacks = {
        key: kind
        for key, kind in every.items()
        if [arg for arg, default in _arguments(kind).items() if default is Parameter.empty] == ["model"]
    }
    kind = _pick("torchattacks", name, attacks)
    arguments = _arguments(kind)
    told = re.search(r"Distance Measure\s*:\s*(.*)", kind.__doc__ or "")
    measures = told[1].strip() if told else "Linf, L2"
    options, own = _named(arguments)

    def make(model: nn.Module, threat: Threat, given: dict[str, Any], classes: Callable[[], int]) -> Attack:
        fixed = {"eps": threat.eps, "max_epsilon": threat.eps, "norm": NORMS[threat.norm]}
        if "n_classes" in arguments:  # more targets than there are classes raises
            asked = given.get("n_classes", arguments["n_classes"])
            given = {**given, "n_classes": min(asked, classes())}
        attack: Attack = kind(model, **given, **{key: fixed[key] for key in fixed if key in arguments})
        return attack

    needs = "scores" if name in SCORES else "nothing" if name in NOTHING else "gradients"
    return Adapted(
        "torchattacks", name, tuple(ours for ours, theirs in NORMS.items() if theirs in measures), measures,
        "gradients and scores" if name == "AutoAttack" else needs, options, own, make,
    )  # fmt: skip


# foolbox: what reads the predicted class alone.
LABELS = {
    "BoundaryAttack", "HopSkipJumpAttack", "SaltAndPepperNoiseAttack", "GaussianBlurAttack",
    "LinearSearchBlendedUniformNoiseAttack", "LinearSearchContrastReductionAttack",
    "BinarySearchContrastReductionAttack", "InversionAttack",
}  # fmt: skip
# What a call string cannot give them.
UNFIT = {
    "BinarizationRefinementAttack": "starts from another attack's images",
    "DatasetAttack": "takes its images from a data set",
    "GenAttack": "is targeted",
    "PointwiseAttack": "measures L0",
    "SpatialAttack": "turns and shifts images",
}
# Those that start from a misclassified image, and the steps of the line search that finds it.
STARTS = {
    "BoundaryAttack": 50, "HopSkipJumpAttack": 50,
    "L2BrendelBethgeAttack": 1000, "LinfinityBrendelBethgeAttack": 1000,
}  # fmt: skip


def _foolbox(name: str) -> Adapted:
    """Return foolbox's attack of that name; one of a fixed eps runs at it, others to their own end."""
    library = _load("foolbox")
    base, distances = library.attacks.base, library.distances
    attacks = {
        key: kind
        for key, kind in vars(library.attacks).items()
        if isinstance(kind, type) and issubclass(kind, base.AttackWithDistance)
    }
    if name in UNFIT:
        raise UserError(f"foolbox:{name} {UNFIT[name]}, which cannot be asked for here; choose another")
    kind = _pick("foolbox", name, {key: attacks[key] for key in attacks if key not in UNFIT})
    arguments = _arguments(kind)
    is_free = {"distance", "constraint"} & set(arguments)
    measured = None if is_free else kind.distance
    if isinstance(measured, property):  # of an instance alone
        measured = kind().distance
    norms = {distances.linf: ("linf",), distances.l2: ("l2",), None: ("linf", "l2")}.get(measured, ())
    options, own = _named(arguments)

    def make(model: nn.Module, threat: Threat, given: dict[str, Any], classes: Callable[[], int]) -> Attack:
        fixed = {"distance": getattr(distances, threat.norm), "constraint": threat.norm}
        attack = kind(**given, **{key: fixed[key] for key in is_free})

        def attacked(x: Tensor, y: Tensor) -> Tensor:
            shown = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
            if kind.__name__ in STARTS:
                return _from_starts(library, attack, shown, x, y)
            is_fixed = isinstance(attack, base.FixedEpsilonAttack)
            extra = {"epsilon": threat.eps} if is_fixed else {}
            x_adv: Tensor = attack.run(shown, x, library.criteria.Misclassification(y), **extra)
            return x_adv

        return attacked

    return Adapted("foolbox", name, norms, str(measured), _foolbox_needs(kind.__name__), options, own, make)


def _foolbox_needs(kind: str) -> str:
    if kind == "L2ContrastReductionAttack" or ("Additive" in kind and "Repeated" not in kind):
        return "nothing"
    return "labels" if kind in LABELS or "Additive" in kind else "gradients"


def _from_starts(library: ModuleType, attack: Any, shown: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return what the attack finds; x where no misclassified image to start from was found.

    foolbox raises for a whole batch where a single image has none.
    """
    wrong = library.criteria.Misclassification
    search = library.attacks.LinearSearchBlendedUniformNoiseAttack(steps=STARTS[type(attack).__name__])
    starts = search.run(shown, x, wrong(y))
    with torch.no_grad():
        is_start = shown(starts).argmax(1) != y
    x_adv = x.clone()
    if is_start.any():
        x_adv[is_start] = attack.run(shown, x[is_start], wrong(y[is_start]), starting_points=starts[is_start])
    return x_adv


# pyautoattack: the object that runs each of its single attacks; its other names are ensembles of these.
PARTS = {
    "apgd-ce": "apgd", "apgd-dlr": "apgd", "apgd-t": "apgd_targeted", "fab": "fab", "fab-t": "fab",
    "square": "square",
}  # fmt: skip
# What can be set on the objects; in an ensemble only what means one thing for all of them.
SETTINGS = {
    "standard": ("n_iter", "n_queries", "n_target_classes"),
    "plus": ("n_iter", "n_queries", "n_target_classes"),
    "rand": ("n_iter", "eot_iter"),
    "apgd-ce": ("n_iter", "n_restarts", "eot_iter"),
    "apgd-dlr": ("n_iter", "n_restarts", "eot_iter"),
    "apgd-t": ("n_iter", "n_restarts", "eot_iter", "n_target_classes"),
    "fab": ("n_iter", "n_restarts", "alpha_max", "eta", "beta"),
    "fab-t": ("n_iter", "n_target_classes", "alpha_max", "eta", "beta"),
    "square": ("n_queries", "n_restarts", "p_init"),
}
FEWEST = {"apgd-t": 4, "apgd-dlr": 3}  # classes that the DLR losses are defined for


def _pyautoattack(name: str) -> Adapted:
    """Return pyautoattack's ensemble or single attack of that name, each with its own defaults."""
    library = _load("pyautoattack")
    settings = _pick("pyautoattack", name, SETTINGS)
    chosen: dict[str, Any] = {"version": name}
    if name in PARTS:
        chosen = {"version": "custom", "attacks": [name]}

    def make(model: nn.Module, threat: Threat, given: dict[str, Any], classes: Callable[[], int]) -> Attack:
        suite = library.AutoAttack(
            model, norm=NORMS[threat.norm], eps=threat.eps, seed=given.get("seed"),
            device=next(model.parameters()).device, **chosen,
        )  # fmt: skip
        count = classes()
        for part, fewest in FEWEST.items():
            if part in suite.attacks_to_run and count < fewest:
                raise ValueError(f"{part} needs {fewest} classes, the model has {count}")
        for attribute in dict.fromkeys(PARTS.values()):
            setattr(suite, attribute, _set(getattr(suite, attribute), model, given, count))

        def attacked(x: Tensor, y: Tensor) -> Tensor:
            x_adv: Tensor = suite.run_standard_evaluation(x, y, batch_size=len(x))[0]
            return x_adv

        return attacked

    plain = library.AutoAttack(nn.Identity(), **chosen)
    parts = [PARTS[run] for run in plain.attacks_to_run]
    arguments = {
        key: next(getattr(getattr(plain, part), key) for part in parts if hasattr(getattr(plain, part), key))
        for key in settings
    }
    options, own = _named({**arguments, "seed": None})
    needs = {"square": "scores", "standard": "gradients and scores", "plus": "gradients and scores"}
    return Adapted("pyautoattack", name, ("linf", "l2"), "", needs.get(name, "gradients"), options, own, make)


def _set(part: Any, model: nn.Module, given: Mapping[str, Any], classes: int) -> Any:
    """Return one of the suite's attacks with what was given. More targets than there are classes raises."""
    if "n_iter" in given and hasattr(part, "n_iter_2"):  # APGD plans its checkpoints as it is made
        held = {key: getattr(part, key) for key in _arguments(type(part)) if hasattr(part, key)}
        part = type(part)(model, **{**held, "n_iter": given["n_iter"]})
    for key, value in given.items():
        if hasattr(part, key) and key != "seed":
            setattr(part, key, value)
    if hasattr(part, "n_target_classes"):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    return part
