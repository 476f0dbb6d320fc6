"""Tables and JSON files in the storage or the results, written whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd


def write_json(place: str | Path, value: Any) -> None:
    """Write a JSON file.

    Raises:
        ValueError: a number is not finite.
    """
    write_bytes(place, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_csv(place: str | Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV with a header and without its index; missing values stay empty."""
    write_bytes(place, frame.to_csv(index=False).encode())


def write_parquet(place: str | Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet with its column types and without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(place, buffer.getvalue())
