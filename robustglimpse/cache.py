"""Where files are kept that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return $ROBUSTGLIMPSE_CACHE, or this package's part of the user's cache."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("ROBUSTGLIMPSE_CACHE")
    return Path(chosen) if chosen else user_cache_path("robustglimpse")
