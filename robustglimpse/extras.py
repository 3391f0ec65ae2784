"""Packages that are not always there: one door, and one line on how to get what is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from robustglimpse.records import UserError


def need(module: str, extra: str) -> ModuleType:
    """Return an optional module ("foolbox", "torchattacks.attacks.pgd"), imported now.

    extra: the extra of this package that installs it.
    Raises UserError where the package is missing, or is there but cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except Exception as error:  # a package that others have written over may fail in any way
        mend = f"pip install 'robustglimpse[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise UserError(f"expected the package {package}, which is not installed; {mend}") from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{module} cannot be imported here ({reason}); see robustglimpse doctor, or {mend}"
        ) from error
