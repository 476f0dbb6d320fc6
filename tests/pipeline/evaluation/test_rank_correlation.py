from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from pipeline.evaluation.rank_correlation import (
    interval_of,
    kendall_tau,
    resample_counts,
    resampled_rhos,
    resampled_taus,
    spearman_rho,
)

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


def scipys_tau(x_N: np.ndarray, y_N: np.ndarray) -> float:
    return float(kendalltau(x_N, y_N).statistic)


def scipys_rho(x_N: np.ndarray, y_N: np.ndarray) -> float:
    if len(set(x_N)) == 1 or len(set(y_N)) == 1:
        return np.nan  # SciPy warns
    return float(spearmanr(x_N, y_N).statistic)


@given(PAIRS)
def test_tau_is_that_of_scipy_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    x_N, y_N = np.array(pairs, dtype=float).T
    assert kendall_tau(x_N, y_N) == pytest.approx(scipys_tau(x_N, y_N), nan_ok=True)


@given(PAIRS)
def test_rho_is_that_of_scipy_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    x_N, y_N = np.array(pairs, dtype=float).T
    assert spearman_rho(x_N, y_N) == pytest.approx(scipys_rho(x_N, y_N), nan_ok=True)


@given(PAIRS, st.integers(0, 1000))
def test_a_resample_has_the_correlations_of_its_networks_written_out(pairs: list[tuple[int, int]], seed: int) -> None:
    x_N, y_N = np.array(pairs, dtype=float).T
    counts_RN = resample_counts(len(pairs), 5, seed)
    assert counts_RN.sum(1).tolist() == [len(pairs)] * 5
    written_out = [np.repeat(np.arange(len(pairs)), counts_N.astype(int)) for counts_N in counts_RN]
    for resampled, scipys in ((resampled_taus, scipys_tau), (resampled_rhos, scipys_rho)):
        expected = [scipys(x_N[networks], y_N[networks]) for networks in written_out]
        assert resampled(x_N, y_N, counts_RN) == pytest.approx(expected, nan_ok=True)


def test_the_interval_covers_the_true_correlation_as_often_as_it_says() -> None:
    """The τ of two normal variables with correlation r is 2 / π · arcsin r."""
    rng = np.random.default_rng(0)
    true, covered = 2 / np.pi * np.arcsin(0.6), 0
    for _ in range(200):
        x_N, y_N = rng.multivariate_normal((0, 0), ((1, 0.6), (0.6, 1)), 60).T
        low, high = interval_of(resampled_taus(x_N, y_N, resample_counts(60, 300, int(rng.integers(2**32)))))
        covered += low <= true <= high
    assert 0.9 <= covered / 200 <= 0.98


def test_resamples_without_a_figure_are_left_out_of_the_interval() -> None:
    assert interval_of(np.array([0.5, np.nan, 0.5])) == (0.5, 0.5)
