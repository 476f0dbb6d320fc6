"""What a prediction is worth: the epochs of SGD after which networks from random parameters are as accurate.

Both are measured on the same architectures. Each number of epochs is a run of its own, with its own learning rate and
its own schedule, so that a short run is as good as a short run can be. Between the numbers that were run, the mean
accuracy is interpolated linearly; before the first one, from the accuracy of random parameters at 0 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing import DataFrame

from pipeline.contracts import Contract, count, share
from pipeline.evaluation.rank_correlation import INTERVAL

RESAMPLES = 2000
"""Bootstrap samples of the architectures of a split, from which an interval comes."""

SEED = 4711
"""Seed of the bootstrap samples, so that the same accuracies give the same interval."""


class PredictionWorth(Contract):
    """`results/compare/worth.csv`: a row for each split.

    `epochs` is what a prediction is worth, from `epochs_low` to `epochs_high` with 95 % confidence over architectures.
    Infinity: more than `most_epochs`, the largest number that was run. `predicted_top1` and `sgd_top1` (after
    `most_epochs`) are means over the same architectures. `predict_seconds` and `epoch_seconds` are the mean times of a
    prediction and of an epoch of SGD of one network.
    """

    split: str = pa.Field(unique=True)
    architectures: int = count()
    epochs: float
    epochs_low: float
    epochs_high: float
    most_epochs: int = count()
    predicted_top1: float = share()
    sgd_top1: float = share()
    predict_seconds: float
    epoch_seconds: float

    @pa.check("epochs", "epochs_low", "epochs_high", "predict_seconds", "epoch_seconds", error="a number, 0 or more")
    def is_not_negative(cls, values: pd.Series) -> pd.Series:
        return values >= 0


def epochs_worth(predicted: float, epochs: Sequence[float], means: Sequence[float]) -> float:
    """Return the first number of epochs at which the mean accuracy reaches that of predictions; else infinity.

    Args:
        predicted: the mean accuracy of predictions.
        epochs: in increasing order, the first one 0.
        means: the mean accuracy after each number of epochs, 0 for random parameters.
    """
    if means[0] >= predicted:
        return 0.0
    for before, after, low, high in zip(epochs, epochs[1:], means, means[1:], strict=False):
        if high >= predicted:
            return float(before + (after - before) * (predicted - low) / (high - low))
    return math.inf


def epochs_in_words(epochs: float, most: int, beyond: str) -> str:
    """Return a number of epochs, or after the word `beyond` the largest one that was run, where it is infinite."""
    return f"{epochs:.1f}" if math.isfinite(epochs) else f"{beyond}{most}"


def worth_of_predictions(accuracies: pd.DataFrame, seconds: pd.DataFrame) -> DataFrame[PredictionWorth]:
    """Return a row for each split.

    Args:
        accuracies: a row for each architecture with columns split, index, predicted, and a column for each number of
            epochs, 0 among them.
        seconds: a row for each split (the index) with columns predict_seconds and epoch_seconds.
    """
    epochs = sorted(column for column in accuracies if isinstance(column, int))
    rows = []
    for split, own in accuracies.groupby("split", sort=False):
        means = own[["predicted", *epochs]].mean()
        worth = epochs_worth(means["predicted"], epochs, means[epochs].tolist())
        low, high = _interval(own["predicted"].to_numpy(), own[epochs].to_numpy(), epochs)
        rows.append(
            {
                "split": split,
                "architectures": len(own),
                "epochs": worth,
                "epochs_low": low,
                "epochs_high": high,
                "most_epochs": epochs[-1],
                "predicted_top1": means["predicted"],
                "sgd_top1": means[epochs[-1]],
                **seconds.loc[split, ["predict_seconds", "epoch_seconds"]].to_dict(),
            }
        )
    return PredictionWorth.validate(pd.DataFrame(rows))


def _interval(predicted_A: np.ndarray, trained_AE: np.ndarray, epochs: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of what a prediction is worth, given accuracies of A architectures after E numbers of epochs.

    Each bootstrap sample takes whole architectures, so that the pairs stay together.
    """
    rng = np.random.default_rng(SEED)
    chosen_RA = rng.integers(len(predicted_A), size=(RESAMPLES, len(predicted_A)))
    samples = [
        epochs_worth(predicted, epochs, means.tolist())
        for predicted, means in zip(predicted_A[chosen_RA].mean(1), trained_AE[chosen_RA].mean(1), strict=True)
    ]
    low, high = np.quantile(samples, INTERVAL, method="nearest")  # interpolation has no sense beside infinity
    return float(low), float(high)
