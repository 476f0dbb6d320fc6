"""Tests of paired differences."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from pipeline.contracts import Contract, finite, share

FEWEST_PAIRS = 3
"""Fewer pairs are not tested."""

SIGNIFICANT = 0.05
"""Differences whose corrected p-value is below this one are called significant."""


class PairedComparisons(Contract):
    """The columns of a table of paired comparisons; what is compared with itself, or lacks pairs, has no figures.

    `difference` is a mean over pairs, `difference_error` its standard error, `p_value` that of a paired t-test, and
    `corrected_p_value` the same, corrected for the number of comparisons in the table.
    """

    difference: float = finite(nullable=True)
    difference_error: float = finite(nullable=True)
    p_value: float = share(nullable=True)
    corrected_p_value: float = share(nullable=True)


NO_DIFFERENCE = dict.fromkeys(("difference", "difference_error", "p_value"), math.nan)
"""The figures of what is compared with itself."""


def paired_difference(own: pd.Series, reference: pd.Series) -> dict[str, float]:
    """Return the mean difference over pairs, its standard error, and its p-value; the indices name the pairs."""
    differences = own - reference
    return {
        "difference": differences.mean(),
        "difference_error": differences.sem(),
        "p_value": paired_p_value(differences.to_numpy()),
    }


def paired_p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of a paired t-test; not a number for fewer than three pairs.

    Where all differences are equal up to rounding, it is 1 if they are 0, else 0.
    """
    if len(differences) < FEWEST_PAIRS:
        return math.nan
    if np.allclose(differences, differences[0]):
        return float(np.allclose(differences, 0))
    return float(ttest_1samp(differences, 0).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for the number of comparisons (Holm 1979); those that are not numbers do not count.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none becomes less than a smaller one.
    """
    corrected = np.full(len(p_values), math.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # numpy sorts NaN to the end
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected
