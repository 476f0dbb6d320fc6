"""How well language models predict: cross entropy in bits per byte, whatever their tokens are."""

from __future__ import annotations

import math

import pandas as pd


def bits_a_byte(scores: pd.DataFrame, by: str, bytes_per_token: float = 1.0) -> pd.DataFrame:
    """Return the mean cross entropy in bits per byte of language models, for each split and value of a column.

    Columns: split, the one that is named, `networks`, `bits` and `bits_error`, its standard error, missing for a single
    network. A network without a finite loss does not count; where none has one, there is no row. Bytes at random have 8
    bits.

    Args:
        scores: measured networks: `ArchitectureScores`, `SgdScores`.
        by: `initialisation` or `epochs`.
        bytes_per_token: see `pipeline.images.dataset.Images`.
    """
    bits = scores["loss"] / math.log(2) / bytes_per_token
    groups = bits.groupby([scores["split"], scores[by]], sort=False)
    columns = {"networks": groups.count(), "bits": groups.mean(), "bits_error": groups.sem()}
    table = pd.DataFrame(columns).reset_index()
    return table[table["networks"] > 0]


def add_bits(metrics: dict[str, dict[str, float]], bits: pd.DataFrame, by: str, prefix: str = "") -> dict[str, float]:
    """Add mean bits per byte to the metrics of their splits; return them by names such as `test_predicted_bits` too.

    Args:
        bits: what `bits_a_byte` returns.
        by: the column that names follow.
        prefix: of the names.
    """
    added = {}
    for row in bits.to_dict("records"):
        name = f"{prefix}{row[by]}_bits"
        metrics[row["split"]][name] = added[f"{row['split']}_{name}"] = row["bits"]
    return added
