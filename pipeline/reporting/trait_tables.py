"""The table and the sentences about traits of networks: why some predictions fail."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.significance import SIGNIFICANT
from pipeline.evaluation.traits import TRAIT_LABELS
from pipeline.reporting.cells import points, star
from pipeline.reporting.numbers import listing
from pipeline.reporting.page import Table


def traits_table(effects: pd.DataFrame) -> Table:
    """Return a row for each trait: accuracies in percent with and without it, and their difference in points.

    A star marks a difference that a test finds after correction for all traits.
    """
    columns = ("", "networks", "of the worst", "with it, %", "without, %", "difference", "others equal")
    lines = [
        (
            TRAIT_LABELS.get(row["trait"], row["trait"]),
            f"{row['networks_with']:,}",
            f"{row['worst_with']:,} of {row['worst']:,}",
            *([""] * 4 if pd.isna(row["difference"]) else _figures(row)),
        )
        for row in effects.to_dict("records")
    ]
    return Table(columns, lines)


def _figures(row: Mapping[str, float]) -> tuple[str, ...]:
    low, high = (points(row[name]) for name in ("adjusted_low", "adjusted_high"))
    return (
        percent(row["top1_with"], row["top1_with_error"]),
        percent(row["top1_without"], row["top1_without_error"]),
        f"{points(row['difference'])}{star(row)}",
        f"{points(row['adjusted'])} [{low}, {high}]",
    )


def traits_findings(effects: pd.DataFrame) -> list[str]:
    """Return sentences on the traits that go along with lower accuracy, the strongest first, and on the worst networks.

    A trait counts if a test finds its difference, and the interval of its adjusted one does not reach 0.
    """
    is_found = (effects["corrected_p_value"] < SIGNIFICANT) & (effects["adjusted_high"] < 0)
    found = effects[is_found].sort_values("adjusted")
    worst = effects["worst"].iloc[0]
    if found.empty:
        return ["No trait goes along with a significantly lower accuracy."]
    words = [
        f"{TRAIT_LABELS.get(row['trait'], row['trait'])} ({points(row['adjusted'])} points; "
        f"{row['worst_with']} of the {worst} worst networks and {row['networks_with']} of all "
        f"{row['networks_with'] + row['networks_without']})"
        for row in found.to_dict("records")
    ]
    return [f"All other traits equal, accuracy is lower with {listing(words)}."]
