"""Cells of tables that several sections of the report have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import pandas as pd

from pipeline.evaluation.significance import SIGNIFICANT
from pipeline.reporting.numbers import difference

Row: TypeAlias = "Mapping[Any, Any] | pd.Series"


def points(share: float, error: float = math.nan) -> str:
    """Return a signed difference of two shares in points, with its standard error unless that is missing."""
    return difference(100 * share, 100 * error)


def star(row: Row) -> str:
    """Return a star where a difference is significant after correction for all comparisons."""
    return "*" if row["corrected_p_value"] < SIGNIFICANT else ""


def difference_cell(row: Row) -> str:
    """Return a difference in points, with a star where it is significant; empty where there is nothing to compare."""
    if pd.isna(row["difference"]):
        return ""
    return f"{points(row['difference'], row['difference_error'])}{star(row)}"


def learning_rate_cell(row: Row) -> str:
    """Return a learning rate, and say so where a better one may lie beyond those that were tried."""
    return f"{row['learning_rate']:g}{'' if row['rate_is_inside'] else ' (end)'}"
