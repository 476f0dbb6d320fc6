from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pipeline.evaluation.significance import holm, paired_p_value


def test_equal_differences_need_no_test() -> None:
    assert paired_p_value(np.zeros(3)) == 1
    assert paired_p_value(np.full(3, 0.25)) == 0
    assert np.isnan(paired_p_value(np.array([0.1]))) and np.isnan(paired_p_value(np.array([0.1, 0.1])))


def test_p_values_are_corrected_as_holm_wrote() -> None:
    corrected = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(corrected, [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
    assert np.isnan(holm(np.array([np.nan, np.nan]))).all()


def test_pairs_are_tested_as_a_paired_test_does() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 20))
    assert paired_p_value(one - other) == pytest.approx(ttest_rel(one, other).pvalue)
