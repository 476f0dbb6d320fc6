"""Contracts of the tables that stages evaluate and finetune write: columns, types and ranges of values.

The stages validate a table before they write it, and the report validates it after reading it, both with the models of
this file.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandera.pandas as pa

from pipeline.contracts import COUNT, FINITE, NATURAL, POSITIVE, SHARE, Contract

# The columns of a summary that exist for each initialisation.
TOP1, TOP1_ERROR, TOP1_MAX, TOP5 = r"^.+_top1$", r"^.+_top1_error$", r"^.+_top1_max$", r"^.+_top5$"
NONFINITE = r"^(.+_)?nonfinite$"


class ArchitectureScores(Contract):
    """`results/evaluate/architectures.parquet`: a row for each (split, index, initialisation).

    `name` is that of a predefined network, else empty; `identity` the network's hash. `loss` is the mean cross
    entropy, missing if it is not finite. `seconds` is the time of the measurement.
    """

    split: str
    index: int
    name: str
    identity: str
    parameters: int
    nodes: int
    initialisation: str
    top1: float
    top5: float
    loss: float = pa.Field(nullable=True)
    seconds: float

    class Config:
        unique = ["split", "index", "initialisation"]  # noqa: RUF012 (pandera reads it)

    @pa.check("top1", "top5", error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)

    @pa.check("loss", "seconds", error=FINITE)
    def is_finite(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values)

    @pa.check("index", error=NATURAL)
    def is_natural(cls, values: pd.Series) -> pd.Series:
        return values >= 0

    @pa.check("parameters", "nodes", error=COUNT)
    def is_count(cls, values: pd.Series) -> pd.Series:
        return values >= 1

    @pa.dataframe_check(error="a table with every initialisation of each architecture")
    def is_complete(cls, table: pd.DataFrame) -> bool:
        return bool((table.groupby(["split", "index"]).size() == table["initialisation"].nunique()).all())


class SplitSummary(Contract):
    """`results/evaluate/summary.csv`: a row for each split, over its architectures.

    For each initialisation: `<initialisation>_top1`, the mean, `_top1_error`, its standard error (missing for a single
    architecture), `_top1_max`, `_top5`, and `_nonfinite`, the number of architectures without a finite loss.
    `nonfinite` is that of the headline's initialisation.
    """

    split: str = pa.Field(unique=True)
    architectures: int
    top1: float = pa.Field(alias=TOP1, regex=True)
    top1_error: float = pa.Field(alias=TOP1_ERROR, regex=True, nullable=True)
    top1_max: float = pa.Field(alias=TOP1_MAX, regex=True)
    top5: float = pa.Field(alias=TOP5, regex=True)
    nonfinite: int = pa.Field(alias=NONFINITE, regex=True)

    @pa.check(TOP1, TOP1_MAX, TOP5, error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)

    @pa.check(TOP1_ERROR, error=FINITE)
    def is_finite(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values)

    @pa.check("architectures", error=COUNT)
    def is_count(cls, values: pd.Series) -> pd.Series:
        return values >= 1

    @pa.check(NONFINITE, error=NATURAL)
    def is_natural(cls, values: pd.Series) -> pd.Series:
        return values >= 0


class FinetuningCurves(Contract):
    """`results/finetune/curves.parquet`: the test accuracy of each run at each measured step.

    A run is (dataset, images_per_class, architecture, initialisation, seed); `architecture` is an index in split test.
    `rate_is_inside`: a smaller and a larger learning rate were tried, neither of which was better.
    """

    dataset: str
    images_per_class: int
    architecture: int
    initialisation: str
    seed: int
    learning_rate: float
    rate_is_inside: bool
    step: int
    test_top1: float

    class Config:
        unique = ["dataset", "images_per_class", "architecture", "initialisation", "seed", "step"]  # noqa: RUF012

    @pa.check("test_top1", error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)

    @pa.check("learning_rate", error=POSITIVE)
    def is_positive(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values) & (values > 0)

    @pa.check("images_per_class", error=COUNT)
    def is_count(cls, values: pd.Series) -> pd.Series:
        return values >= 1

    @pa.check("architecture", "seed", "step", error=NATURAL)
    def is_natural(cls, values: pd.Series) -> pd.Series:
        return values >= 0


class LearningRates(Contract):
    """`results/finetune/learning_rates.csv`: a row for each learning rate that was tried.

    `held_out_top1` is the mean accuracy on held-out images after all steps, over the architectures that choose.
    """

    dataset: str
    images_per_class: int
    initialisation: str
    learning_rate: float
    held_out_top1: float
    is_chosen: bool

    class Config:
        unique = ["dataset", "images_per_class", "initialisation", "learning_rate"]  # noqa: RUF012 (pandera reads it)

    @pa.check("held_out_top1", error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)


class FinetuningSummary(Contract):
    """`results/finetune/summary.csv`: a row for each (dataset, images_per_class, initialisation), over its runs.

    `steps` is the number of steps, `classes` that of the data set's classes. `test_top1` is the mean final accuracy,
    `test_top1_error` its standard error (missing for a single run). `target_top1` is the mean final accuracy of the
    baseline, `steps_to_target` the first measured step at which the mean accuracy is at least that, and
    `share_to_target` its share of the steps (both missing if there is none).
    """

    dataset: str
    images_per_class: int
    initialisation: str
    classes: int
    steps: int
    learning_rate: float
    rate_is_inside: bool
    runs: int
    test_top1: float
    test_top1_error: float = pa.Field(nullable=True)
    steps_to_target: pd.Int64Dtype = pa.Field(nullable=True)
    share_to_target: float = pa.Field(nullable=True)
    target_top1: float

    class Config:
        unique = ["dataset", "images_per_class", "initialisation"]  # noqa: RUF012 (pandera reads it)

    @pa.check("test_top1", "target_top1", "share_to_target", error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)

    @pa.check("test_top1_error", error=FINITE)
    def is_finite(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values)

    @pa.check("learning_rate", error=POSITIVE)
    def is_positive(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values) & (values > 0)

    @pa.check("images_per_class", "classes", "steps", "runs", error=COUNT)
    def is_count(cls, values: pd.Series) -> pd.Series:
        return values >= 1

    @pa.check("steps_to_target", error=NATURAL)
    def is_natural(cls, values: pd.Series) -> pd.Series:
        return values >= 0


class FinetuningBudgets(Contract):
    """`results/finetune/budgets.csv`: a row for each (dataset, images_per_class, initialisation) and budget.

    `budget` is a share of the steps, and `step` the step there. `test_top1` is the mean accuracy over the runs,
    `difference` its mean difference from the baseline, paired over architectures and seeds. `p_value` is that of the
    difference, and `corrected_p_value` the same, corrected for the number of comparisons in the table. The baseline has
    no difference, and a single run no error and no p-value.
    """

    dataset: str
    images_per_class: int
    initialisation: str
    budget: float
    step: int
    runs: int
    test_top1: float
    test_top1_error: float = pa.Field(nullable=True)
    difference: float = pa.Field(nullable=True)
    difference_error: float = pa.Field(nullable=True)
    p_value: float = pa.Field(nullable=True)
    corrected_p_value: float = pa.Field(nullable=True)

    class Config:
        unique = ["dataset", "images_per_class", "initialisation", "budget"]  # noqa: RUF012 (pandera reads it)

    @pa.check("budget", "test_top1", "p_value", "corrected_p_value", error=SHARE)
    def is_share(cls, values: pd.Series) -> pd.Series:
        return values.between(0, 1)

    @pa.check("test_top1_error", "difference", "difference_error", error=FINITE)
    def is_finite(cls, values: pd.Series) -> pd.Series:
        return np.isfinite(values)

    @pa.check("images_per_class", "step", "runs", error=COUNT)
    def is_count(cls, values: pd.Series) -> pd.Series:
        return values >= 1
