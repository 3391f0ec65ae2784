"""Where files are kept that can be made or fetched again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from robustglimpse.records import UserError


def cache_dir() -> Path:
    """Return $ROBUSTGLIMPSE_CACHE (~ is the home folder), or this package's part of the user's cache.

    Raises UserError where $ROBUSTGLIMPSE_CACHE names what is no folder and can become none. Whether files can
    be written there is found out by who writes them.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get("ROBUSTGLIMPSE_CACHE")
    if not chosen:
        return user_cache_path("robustglimpse")
    try:
        folder = Path(chosen).expanduser()
        found = "" if stat.S_ISDIR(folder.stat().st_mode) else "found a file"
    except FileNotFoundError:  # it is made when the first file goes into it
        return folder
    except OSError as error:
        found = error.strerror or str(error)
    except RuntimeError as error:  # ~name, and nobody has that name
        found = str(error)
    if found:
        raise UserError(
            f"ROBUSTGLIMPSE_CACHE={chosen!r}: expected a folder, or where one can be made ({found}); "
            "set it to a folder, or unset it"
        )
    return folder
