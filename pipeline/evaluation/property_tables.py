"""Contracts of the tables that stage properties writes: columns, types and ranges of values."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

from pipeline.contracts import Contract, correlation, finite, natural

EXPLAINED = "a figure or a reason why there is none, and not both"


class PropertyScores(Contract):
    """`results/properties/scores.csv`: how well features of networks rank them by a target, a row for each of both.

    `tau` is Kendall's τ-b between predictions and true values over the `scored` networks of split test, by a regression
    that `fitted` networks of split val were given; `tau_low` to `tau_high` is its bootstrap interval. `difference` is
    τ of the embeddings minus τ of these features, with its paired interval; the embeddings themselves have none. Where
    there is no figure, `reason` says why, else that is missing.
    """

    target: str
    features: str
    tau: float = correlation(nullable=True)
    tau_low: float = correlation(nullable=True)
    tau_high: float = correlation(nullable=True)
    fitted: int = natural()
    scored: int = natural()
    difference: float = pa.Field(nullable=True)
    difference_low: float = pa.Field(nullable=True)
    difference_high: float = pa.Field(nullable=True)
    reason: str = pa.Field(nullable=True)

    class Config:
        unique = ["target", "features"]

    @pa.check("difference", "difference_low", "difference_high", error="a difference of two correlations, -2 to 2")
    def is_difference(cls, values: pd.Series) -> pd.Series:
        return values.between(-2, 2)

    @pa.dataframe_check(error=EXPLAINED)
    def is_explained(cls, table: pd.DataFrame) -> pd.Series:
        return table["tau"].isna() == table["reason"].notna()


class PropertyPredictions(pa.DataFrameModel):
    """`results/properties/predictions.parquet`: the true and the predicted value of each network.

    Networks of split val are those that the regression was fitted on, so that their predictions say nothing about
    others. Targets and features without a figure in the scores have no rows.
    """

    target: str
    features: str
    split: str
    index: int = natural()
    true: float = finite()
    predicted: float = finite()

    class Config:
        coerce = True
        unique = ["target", "features", "split", "index"]


class PropertyCorrelations(Contract):
    """`results/properties/correlations.csv`: Kendall's τ-b between two properties, a row for each pair.

    It is that of the `networks` of split test that have both, with its bootstrap interval. Where there is no figure,
    `reason` says why, else that is missing.
    """

    first: str
    second: str
    networks: int = natural()
    tau: float = correlation(nullable=True)
    tau_low: float = correlation(nullable=True)
    tau_high: float = correlation(nullable=True)
    reason: str = pa.Field(nullable=True)

    class Config:
        unique = ["first", "second"]

    @pa.dataframe_check(error=EXPLAINED)
    def is_explained(cls, table: pd.DataFrame) -> pd.Series:
        return table["tau"].isna() == table["reason"].notna()
