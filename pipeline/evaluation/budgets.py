"""Accuracy at shares of a budget of steps, compared with the baseline in pairs of runs.

A pair is two runs of one architecture and one seed: they have the same training images in the same order and the same
classification layer at the start, so that their difference varies less than their accuracies do.
"""

from __future__ import annotations

import pandas as pd
from pandera.typing import DataFrame

from pipeline.evaluation.initialisations import BASELINE
from pipeline.evaluation.significance import NO_DIFFERENCE, holm, paired_difference
from pipeline.evaluation.tables import FinetuningBudgets, FinetuningCurves

BUDGETS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the steps at which initialisations are compared."""

EARLY_BUDGET = 0.1
"""The budget that tables show beside the whole one."""


def steps_at_budgets(steps: int) -> list[int]:
    """Return the step of each budget: the nearest one, at least the first."""
    return [max(1, round(budget * steps)) for budget in BUDGETS]


def compare_budgets(curves: DataFrame[FinetuningCurves]) -> DataFrame[FinetuningBudgets]:
    """Return a row for each (dataset, images_per_class, initialisation) and budget.

    The p-value is that of a paired t-test (two-sided), corrected by Holm over all comparisons of the table. It is not
    Wilcoxon's signed-rank test, whose smallest p-value is 0.0005 with 12 pairs: after Holm's correction over a hundred
    comparisons it could hardly find a difference. Seeds of one architecture count as independent of each other.
    """
    rows = []
    for (dataset, number), own in curves.groupby(["dataset", "images_per_class"], sort=False):
        for initialisation in own["initialisation"].unique():
            for budget, step in zip(BUDGETS, steps_at_budgets(own["step"].max()), strict=True):
                key = {"dataset": dataset, "images_per_class": number, "initialisation": initialisation}
                at_step = own[own["step"] == step]
                rows.append({**key, "budget": budget, "step": step, **_comparison(at_step, initialisation)})
    table = pd.DataFrame(rows)
    table["corrected_p_value"] = holm(table["p_value"].to_numpy(dtype=float))
    return FinetuningBudgets.validate(table)


def _comparison(runs: pd.DataFrame, initialisation: str) -> dict[str, float]:
    """Return mean accuracy and paired difference, given all runs at one step; the baseline has no difference."""
    top1 = runs.pivot(index=["architecture", "seed"], columns="initialisation", values="test_top1")
    own = top1[initialisation]
    columns = {"runs": len(own), "test_top1": own.mean(), "test_top1_error": own.sem()}
    is_baseline = initialisation == BASELINE
    return columns | (NO_DIFFERENCE if is_baseline else paired_difference(own, top1[BASELINE]))
