"""How well language models predict: cross entropy in bits a byte, whatever their tokens are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd


def bits_a_byte(scores: pd.DataFrame, by: str, bytes_per_token: float = 1.0) -> pd.DataFrame:
    """Return the mean cross entropy in bits a byte of language models, a row for each split and value of a column.

    Columns: split, the one that is named, `networks`, `bits` and `bits_error`, its standard error, missing for a single
    network. A network without a finite loss does not count. Bytes at random have 8 bits.

    Args:
        scores: measured networks: `ArchitectureScores`, `SgdScores`.
        by: `initialisation` or `epochs`.
        bytes_per_token: see `pipeline.images.dataset.Images`.
    """
    bits = scores["loss"] / math.log(2) / bytes_per_token
    groups = bits.groupby([scores["split"], scores[by]], sort=False)
    columns = {"networks": groups.count(), "bits": groups.mean(), "bits_error": groups.sem()}
    return pd.DataFrame(columns).reset_index()


def bits_metrics(bits: pd.DataFrame, by: str, name: Callable[[Any], str]) -> dict[str, dict[str, float]]:
    """Return the mean bits a byte of each split, by name; `name` gives that of a value of the column `by`."""
    metrics: dict[str, dict[str, float]] = {}
    for row in bits.to_dict("records"):
        metrics.setdefault(row["split"], {})[f"{name(row[by])}_bits"] = row["bits"]
    return metrics
