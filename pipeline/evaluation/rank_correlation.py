"""Rank correlations, Kendall's τ-b and Spearman's ρ, and their bootstrap intervals.

Dimensions: N networks, R resamples.
"""

from __future__ import annotations

import numpy as np

INTERVAL = (0.025, 0.975)
"""The quantiles between which a bootstrap interval lies."""


def resample_counts(networks: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each network is in each bootstrap resample, (R, N): N of them, drawn with replacement."""
    draws = np.random.default_rng(seed).multinomial(networks, np.full(networks, 1 / networks), size=resamples)
    return draws.astype(float)


def kendall_tau(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Return Kendall's τ-b of two values of each network; not a number if one of them is the same for all."""
    return float(resampled_taus(x_N, y_N, np.ones((1, len(x_N))))[0])


def resampled_taus(x_N: np.ndarray, y_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Return Kendall's τ-b (R,) of each resample, in which network i is `counts_RN[r, i]` times.

    With the sign s of the difference of a pair's values, τ-b is Σ sₓ s_y / √(Σ sₓ² Σ s_y²) over all pairs (Kendall
    1945). Two copies of one network are tied in both values. Where all pairs of a resample are tied, τ is not a number.
    """
    x_NN, y_NN = np.sign(x_N[:, None] - x_N), np.sign(y_N[:, None] - y_N)
    agreement_R = _over_pairs(x_NN * y_NN, counts_RN)
    untied_R = _over_pairs(np.abs(x_NN), counts_RN) * _over_pairs(np.abs(y_NN), counts_RN)
    return np.divide(agreement_R, np.sqrt(untied_R), out=np.full(len(counts_RN), np.nan), where=untied_R > 0)


def spearman_rho(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Return Spearman's ρ of two values of each network; not a number if one of them is the same for all."""
    return float(resampled_rhos(x_N, y_N, np.ones((1, len(x_N))))[0])


def resampled_rhos(x_N: np.ndarray, y_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Return Spearman's ρ (R,) of each resample, in which network i is `counts_RN[r, i]` times.

    It is Pearson's correlation of the ranks, where equal values have the mean of their ranks (Spearman 1904). Where all
    values of a resample are equal, ρ is not a number.
    """
    x_RN, y_RN = _centred_ranks(x_N, counts_RN), _centred_ranks(y_N, counts_RN)
    product_R = (counts_RN * x_RN * y_RN).sum(1)
    squares_R = (counts_RN * x_RN**2).sum(1) * (counts_RN * y_RN**2).sum(1)
    return np.divide(product_R, np.sqrt(squares_R), out=np.full(len(counts_RN), np.nan), where=squares_R > 0)


def _centred_ranks(values_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Return the ranks (R, N) of values in each resample, minus their mean.

    Half the number of smaller values minus half the number of larger ones is the rank minus its mean, (n + 1) / 2.
    """
    return counts_RN @ np.sign(values_N - values_N[:, None]) / 2


def _over_pairs(signs_NN: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Return the sum (R,) of a matrix's entries over all pairs of each resample."""
    return ((counts_RN @ signs_NN) * counts_RN).sum(1)


def interval_of(values_R: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of a figure over resamples; resamples without the figure are left out."""
    low, high = np.nanquantile(values_R, INTERVAL)
    return float(low), float(high)
