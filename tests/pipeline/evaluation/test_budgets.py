from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pipeline.evaluation.budgets import BUDGETS, compare_budgets, steps_at_budgets
from pipeline.evaluation.finetuning import Curve, FinetuneRun, curves_table
from pipeline.evaluation.learning_rates import ChosenRate

STEPS = [0, 1, 2, 4, 10, 20]


def curves(values: dict[FinetuneRun, Curve]):
    return curves_table(values, {run.competition: ChosenRate(0.1, is_inside=True) for run in values})


def test_budgets_are_at_the_nearest_steps_and_never_before_the_first() -> None:
    assert steps_at_budgets(20) == [1, 2, 4, 10, 20]
    assert steps_at_budgets(60) == [3, 6, 12, 30, 60]
    assert steps_at_budgets(2) == [1, 1, 1, 1, 2]


def test_runs_of_one_architecture_and_seed_are_compared_in_pairs() -> None:
    """The accuracies vary more between pairs than within them, which an unpaired error would show."""
    rng = np.random.default_rng(0)
    levels = rng.uniform(0.2, 0.7, (4, 3))
    gains = {"better": rng.normal(0.1, 0.01, (4, 3)), "same": rng.normal(0, 0.01, (4, 3)), "random": np.zeros((4, 3))}
    values = {
        FinetuneRun("digits", 10, a, name, 0.1, s): [(step, levels[a, s] + gains[name][a, s]) for step in STEPS]
        for name in gains
        for s in range(3)
        for a in reversed(range(4))
    }
    table = compare_budgets(curves(values)).set_index(["initialisation", "budget"])
    assert list(table.loc["better"].index) == list(BUDGETS)
    better, same, random = (table.loc[(name, 1.0)] for name in ("better", "same", "random"))
    assert better["difference"] == pytest.approx(gains["better"].mean())
    assert better["difference_error"] == pytest.approx(gains["better"].std(ddof=1) / 12**0.5)
    assert better["test_top1"] == pytest.approx((levels + gains["better"]).mean())
    assert better["p_value"] == pytest.approx(ttest_rel((levels + gains["better"]).ravel(), levels.ravel()).pvalue)
    assert better["corrected_p_value"] == pytest.approx(10 * better["p_value"])  # as small at each of the five budgets
    assert same["corrected_p_value"] > 0.05
    assert np.isnan(random["difference"]) and np.isnan(random["corrected_p_value"])
    assert random["runs"] == 12


def test_data_sets_and_numbers_of_images_are_kept_apart() -> None:
    values = {
        FinetuneRun(dataset, number, 0, name, 0.1, s): [(step, top1 + 0.01 * s) for step in STEPS]
        for dataset, number, name, top1 in (
            ("digits", 1, "predicted", 0.2),
            ("digits", 1, "random", 0.1),
            ("digits", 10, "predicted", 0.4),
            ("digits", 10, "random", 0.5),
            ("faces", 1, "predicted", 0.7),
            ("faces", 1, "random", 0.7),
        )
        for s in range(2)
    }
    table = compare_budgets(curves(values))
    final = table[(table["budget"] == 1) & (table["initialisation"] == "predicted")]
    assert final["difference"].tolist() == pytest.approx([0.1, -0.1, 0])
