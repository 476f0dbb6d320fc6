"""Tables and JSON files, written whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd


def write_json(place: str | Path, value: Any) -> None:
    """Writes a JSON file; raises ValueError if a number in it is not finite."""
    write_bytes(place, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_csv(place: str | Path, frame: pd.DataFrame) -> None:
    """Writes a table with a header and without its index; what is missing stays empty."""
    write_bytes(place, frame.to_csv(index=False).encode())


def write_parquet(place: str | Path, frame: pd.DataFrame) -> None:
    """Writes a table with its column types and without its index."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(place, buffer.getvalue())
