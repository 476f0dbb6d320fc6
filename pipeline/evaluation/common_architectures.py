"""Initialisations, copies and training by SGD, compared on the same architectures: those that stage sgd has trained.

A pair is one architecture in two ways to get its parameters. Where a split has fewer than three such architectures, its
differences are not tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.contracts import count, finite, share
from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.evaluation.significance import NO_DIFFERENCE, PairedComparisons, holm, paired_difference
from pipeline.evaluation.stored_sources import StoredSource
from pipeline.evaluation.tables import ArchitectureScores, CopyScores, SgdScores
from pipeline.evaluation.worth import PredictionWorth, worth_of_predictions

KEYS = ["split", "index"]


class InitialisationScores(PairedComparisons):
    """`results/compare/initialisations.csv`: a row for each split and way to get the parameters of its architectures.

    `initialisation` is one of stage evaluate, `sgd_<epochs>` for networks that are trained from random parameters, or
    one of stage copies. `top1` is the mean over the architectures that stages sgd and copies have too, `top1_error` its
    standard error. `difference` is the mean difference from predicted parameters in pairs of architectures, with its
    standard error, and `corrected_p_value` that of a paired t-test, corrected by Holm over the table. Predictions have
    no difference. Of copies, `share_copied` is the mean share of the parameters that were copied, `sources` the number
    of trained networks that the nearest one was chosen from, and `sources_seconds` the time of training all of them.
    """

    split: str
    initialisation: str
    architectures: int = count()
    top1: float = share()
    top1_error: float = finite(nullable=True)
    share_copied: float = share(nullable=True)
    sources: pd.Int64Dtype = count(nullable=True)
    sources_seconds: float = finite(nullable=True)

    class Config:
        unique = ["split", "initialisation"]


def accuracies_of(evaluated: DataFrame[ArchitectureScores], trained: DataFrame[SgdScores]) -> pd.DataFrame:
    """Return a row for each architecture that was both evaluated and trained: split, index, and top-1 in columns.

    The column of an initialisation has its name. That of networks trained by SGD is the number of epochs.
    """
    by_initialisation = evaluated.pivot(index=KEYS, columns="initialisation", values="top1")
    by_epochs = trained.pivot(index=KEYS, columns="epochs", values="top1")
    common = by_initialisation[list(evaluated["initialisation"].unique())].join(by_epochs, how="inner")
    order = {split: number for number, split in enumerate(evaluated["split"].unique())}
    return common.reset_index().sort_values(KEYS, key=lambda column: column.map(order).fillna(column))


def compare_initialisations(
    accuracies: pd.DataFrame, copies: DataFrame[CopyScores], sources: Sequence[StoredSource]
) -> DataFrame[InitialisationScores]:
    """Return a row for each split, and each column of `accuracies_of` and kind of copies.

    Args:
        accuracies: those of `accuracies_of`; an architecture without copies is left out.
        copies: the table of stage copies.
        sources: all networks that the copies could be made of.
    """
    kinds = list(copies["initialisation"].unique())
    copied = copies.pivot(index=KEYS, columns="initialisation", values=["top1", "share_copied"])
    accuracies = accuracies.merge(copied["top1"][kinds].reset_index(), on=KEYS)
    cost = {"sources": len(sources), "sources_seconds": sum(source.train_seconds for source in sources)}
    rows: list[dict[str, Any]] = []
    for split, own in accuracies.groupby("split", sort=False):
        shares = copied["share_copied"].loc[pd.MultiIndex.from_frame(own[KEYS])].mean()
        for column in own.columns.drop(KEYS):
            name = f"sgd_{column}" if isinstance(column, int) else str(column)
            row = {"split": split, "initialisation": name, **_row(own[column], own[HEADLINE])}
            rows.append(row | ({"share_copied": shares[name], **cost} if name in kinds else {}))
    table = pd.DataFrame(rows)
    table["corrected_p_value"] = holm(table["p_value"].to_numpy(dtype=float))
    return InitialisationScores.validate(table)


def _row(top1: pd.Series, predicted: pd.Series) -> dict[str, float]:
    """Return the figures of one initialisation, given those of predictions for the same architectures."""
    row = {"architectures": len(top1), "top1": top1.mean(), "top1_error": top1.sem()}
    return row | (NO_DIFFERENCE if top1.name == predicted.name else paired_difference(top1, predicted))


def worth_by_split(
    accuracies: pd.DataFrame, evaluated: DataFrame[ArchitectureScores], trained: DataFrame[SgdScores]
) -> DataFrame[PredictionWorth]:
    """Return what predictions are worth on each split, with the times of a prediction and of an epoch of SGD.

    After 0 epochs a network has random parameters, from which its training began.

    Args:
        accuracies: those of `accuracies_of` the two tables, which have the times.
    """
    own = accuracies[KEYS]
    predictions = evaluated[evaluated["initialisation"] == HEADLINE].merge(own, on=KEYS)
    epochs = trained.merge(own, on=KEYS)
    seconds = pd.DataFrame(
        {
            "predict_seconds": predictions.groupby("split")["initialise_seconds"].mean(),
            "epoch_seconds": (epochs["train_seconds"] / epochs["epochs"]).groupby(epochs["split"]).mean(),
        }
    )
    return worth_of_predictions(accuracies.rename(columns={BASELINE: 0, HEADLINE: "predicted"}), seconds)
