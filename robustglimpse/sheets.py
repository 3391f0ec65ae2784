"""Tables as CSV: texts come back as they were, and no spreadsheet takes one for a formula."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import pandas as pd

from robustglimpse.texts import from_csv, safe

NOT_THERE = ("", "nan", "NaN")
# Before 3.1, pandas reads some numbers a little off unless it is told not to.
IS_EXACT = tuple(int(part) for part in pd.__version__.split(".")[:2]) >= (3, 1)
EXACT: dict[str, Any] = {"low_memory": False} | ({} if IS_EXACT else {"float_precision": "round_trip"})


def read_csv(content: bytes, texts: Collection[str]) -> pd.DataFrame:
    """Return a table with its texts as they were written, whatever they spell, and exact numbers.

    Raises ValueError for what is none.
    """
    told: Any = {"na_values": NOT_THERE}
    if texts:
        header = pd.read_csv(io.BytesIO(content), nrows=0)
        numbers = [name for name in header if name not in texts]
        told = {"dtype": dict.fromkeys(texts, str), "na_values": dict.fromkeys(numbers, NOT_THERE)}
    frame: pd.DataFrame = pd.read_csv(io.BytesIO(content), keep_default_na=False, **told, **EXACT)
    for name in texts:
        if name in frame:
            frame[name] = frame[name].map(from_csv)
    return frame


def csv_text(frame: pd.DataFrame, **options: Any) -> str:
    """Return a frame as CSV, its texts on one line each, none a formula to a spreadsheet.

    options: of DataFrame.to_csv.
    """
    table = frame.copy()
    for name in table.select_dtypes(["object", "string"]).columns:
        table[name] = table[name].map(lambda value: safe(value, "csv") if isinstance(value, str) else value)
    return str(table.to_csv(index=False, **options))
