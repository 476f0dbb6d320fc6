"""Contracts of the tables and metrics that stage train writes: columns, types and ranges of values.

The stage validates a table before it writes it, and the report validates it after reading it, both with the models of
this file. A failed check is named by what the value must be: "a share, 0 to 1".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pandera.pandas as pa

from pipeline.contracts import FINITE, Contract, count, finite, natural, share

TIME_PARTS = (
    "wait_seconds",
    "hypernetwork_forward_seconds",
    "target_forward_seconds",
    "target_backward_seconds",
    "hypernetwork_backward_seconds",
    "communication_seconds",
)
"""The columns of the measured parts of a step, in the order in which they happen."""

VALIDATION_COLUMNS = ("val_top1", "val_loss")


def _present_unless_dropped(column: str) -> Any:
    """Return a check that a column has values, except in rows whose steps dropped architectures.

    If a step drops all of its architectures, nothing is left to measure. The check has the name of the column.
    """

    @pa.dataframe_check(name=column, error=FINITE, ignore_na=False)
    def is_present(cls: type, table: pd.DataFrame) -> pd.Series:
        return table[column].notna() | (table["dropped"] > 0)

    return is_present


class History(Contract):
    """`results/train/history.csv` of a run without validation: a row for each step, or the means of several steps.

    `step` is the number of the last step of a row, from 1. `dropped` counts the architectures that the row's steps left
    out because a loss or gradient was not finite. Norms are those before clipping. Times are seconds per step;
    `graph_seconds` is spent in the background. `imbalance` is the time of the slowest worker over the workers' mean.
    """

    step: int = count()
    learning_rate: float = finite()
    loss: float = finite(nullable=True)
    top1: float = share(nullable=True)
    gradient_norm: float = finite(nullable=True)
    architecture_norm_median: float = finite(nullable=True)
    architecture_norm_p90: float = finite(nullable=True)
    architecture_norm_max: float = finite(nullable=True)
    dropped: int = natural()
    step_seconds: float = finite()
    graph_seconds: float = finite()
    wait_seconds: float = finite()
    hypernetwork_forward_seconds: float = finite()
    target_forward_seconds: float = finite()
    target_backward_seconds: float = finite()
    hypernetwork_backward_seconds: float = finite()
    communication_seconds: float = finite()
    imbalance: float = finite()
    images_per_second: float = finite()

    @pa.check("step", error="above the one before")
    def increases(cls, values: pd.Series) -> pd.Series:
        return ~(values.diff() <= 0)

    has_loss = _present_unless_dropped("loss")
    has_top1 = _present_unless_dropped("top1")
    has_gradient_norm = _present_unless_dropped("gradient_norm")
    has_architecture_norm_median = _present_unless_dropped("architecture_norm_median")
    has_architecture_norm_p90 = _present_unless_dropped("architecture_norm_p90")
    has_architecture_norm_max = _present_unless_dropped("architecture_norm_max")


class ValidatedHistory(History):
    """`results/train/history.csv` of a run with validation: `val_top1` and `val_loss` are empty where there was none.

    `val_loss` alone is missing where a validation's loss is not finite.
    """

    val_top1: float = share(nullable=True)
    val_loss: float = finite(nullable=True)

    @pa.dataframe_check(name="val_top1", error="there where val_loss is", ignore_na=False)
    def top1_is_beside_its_loss(cls, table: pd.DataFrame) -> pd.Series:
        return table["val_top1"].notna() | table["val_loss"].isna()


class DroppedArchitectures(pa.DataFrameModel):
    """`results/train/dropped.csv`: a row for each architecture that a step left out; the table may be empty.

    `index` is the position in the training split, `identity` the network hash.
    """

    step: int = count()
    index: int = natural()
    identity: str

    class Config:
        coerce = True


@dataclass(frozen=True)
class TrainingMetrics:
    """The content of `results/train/metrics.json`; values that a run does not have are left out there.

    Attributes:
        loss, top1: medians over the last rows of the history.
        steps: the number of steps.
        epochs: how often each training image was seen, on average.
        seconds: the time of the whole stage.
        architectures_per_second: from the median time of a step.
        dropped: the number of architectures that steps left out.
        parameters: the number of weights of the hypernetwork.
        precision: that of target networks: fp32, bf16 or fp64.
        workers: the number of processes.
        device: cuda or cpu.
        val_top1, best_step: the best validation and its step, of a run with validation.
    """

    loss: float
    top1: float
    steps: int
    epochs: float
    seconds: float
    architectures_per_second: float
    dropped: int
    parameters: int
    precision: str
    workers: int
    device: str
    val_top1: float | None = None
    best_step: int | None = None


def history_model(columns: pd.Index) -> type[History]:
    """Return the contract of a history with these columns: with validation if one of its columns is there."""
    return ValidatedHistory if any(name in columns for name in VALIDATION_COLUMNS) else History
