from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pipeline.evaluation.study_summary import SHIFTED, Cell, summarise_study

SIZES = {"test": 12, "wide": 5, "deep": 10}


def scores(shift: float, noise: float, seed: int) -> pd.DataFrame:
    """Return made-up accuracies: those of one architecture are alike in all variants and seeds."""
    level, change = np.random.default_rng(7), np.random.default_rng(seed)
    rows = [
        {"split": split, "index": i, "top1": level.uniform(0.3, 0.6) + shift + change.normal(0, noise)}
        for split, count in SIZES.items()
        for i in range(count)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def study() -> dict[Cell, pd.DataFrame]:
    shifts = {"ghn2": 0.1, "mlp": 0.0, "same": 0.1}
    return {
        Cell(variant, seed): scores(shift, 0.01, 10 * number + seed)
        for number, (variant, shift) in enumerate(shifts.items())
        for seed in range(3)
    }


def test_variants_are_compared_with_the_first_in_pairs_of_architectures(study: dict[Cell, pd.DataFrame]) -> None:
    table = summarise_study(study, dict.fromkeys(study, 100)).set_index(["variant", "split"])
    mean = {
        v: sum(study[Cell(v, s)].query("split == 'test'")["top1"].to_numpy() for s in range(3)) / 3
        for v in ("ghn2", "mlp")
    }
    row = table.loc[("mlp", "test")]
    assert row["difference"] == pytest.approx((mean["mlp"] - mean["ghn2"]).mean())
    assert row["p_value"] == pytest.approx(ttest_rel(mean["mlp"], mean["ghn2"]).pvalue)
    assert row["corrected_p_value"] < 0.01 < table.loc[("same", "test"), "corrected_p_value"]
    assert (row["seeds"], row["architectures"], row["steps"]) == (3, 12, 100)
    assert math.isnan(table.loc[("ghn2", "test"), "difference"])


def test_errors_are_over_seeds(study: dict[Cell, pd.DataFrame]) -> None:
    table = summarise_study(study, dict.fromkeys(study, 100)).set_index(["variant", "split"])
    means = [study[Cell("mlp", seed)].query("split == 'deep'")["top1"].mean() for seed in range(3)]
    assert table.loc[("mlp", "deep"), "top1"] == pytest.approx(np.mean(means))
    assert table.loc[("mlp", "deep"), "top1_error"] == pytest.approx(np.std(means, ddof=1) / 3**0.5)


def test_splits_out_of_distribution_have_the_same_weight(study: dict[Cell, pd.DataFrame]) -> None:
    table = summarise_study(study, dict.fromkeys(study, 100)).set_index(["variant", "split"])
    for column in ("top1", "difference"):
        of_splits = [table.loc[("mlp", split), column] for split in ("wide", "deep")]
        assert table.loc[("mlp", SHIFTED), column] == pytest.approx(np.mean(of_splits))
    assert table.loc[("mlp", SHIFTED), "architectures"] == 15


def test_one_seed_has_no_error_and_one_variant_no_test(study: dict[Cell, pd.DataFrame]) -> None:
    only = {Cell("mlp", 0): study[Cell("mlp", 0)]}
    table = summarise_study(only, {Cell("mlp", 0): 10})
    assert table["top1_error"].isna().all() and table["corrected_p_value"].isna().all()
