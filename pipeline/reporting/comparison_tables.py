"""Tables about what a prediction is worth, about distances to training architectures, and about properties."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.tables import ALL_SPLITS
from pipeline.evaluation.worth import epochs_in_words
from pipeline.reporting.cells import points, star
from pipeline.reporting.numbers import MINUS_SIGN, count, duration, listing, short_seconds
from pipeline.reporting.page import Table

SIMILARITY_LABELS = {"wl": "graph kernel", "embedding": "embedding"}
"""Names in words of the ways to compare networks."""

FEATURE_LABELS = {"embedding": "embedding", "size": "size", "graph": "graph statistics"}
"""Names in words of the features that properties are predicted from."""


def worth_table(worth: pd.DataFrame) -> Table:
    """Return a row for each split: accuracies in percent, what a prediction is worth, and seconds per network."""
    most = worth["most_epochs"].max()
    lines = [
        (
            row["split"],
            str(row["architectures"]),
            percent(row["predicted_top1"]),
            percent(row["sgd_top1"]),
            epochs_in_words(row["epochs"], row["most_epochs"], "> "),
            _worth_interval(row),
            short_seconds(row["predict_seconds"]),
            short_seconds(row["epoch_seconds"]),
        )
        for row in worth.to_dict("records")
    ]
    trained = f"SGD, {count(most, 'epoch')}, %"
    columns = (
        "split",
        "architectures",
        "predicted, %",
        trained,
        "worth, epochs",
        "95% interval",
        "prediction",
        "an epoch",
    )
    return Table(columns, lines)


def _worth_interval(row: Mapping[Hashable, Any]) -> str:
    """Return the interval of what a prediction is worth; empty if it is a point."""
    low, high = (epochs_in_words(row[name], row["most_epochs"], "> ") for name in ("epochs_low", "epochs_high"))
    return f"{low} to {high}" if low != high else ""


def worth_findings(worth: pd.DataFrame) -> list[str]:
    """Return what a prediction is worth on split test, and how long it takes; nothing if that split is not there.

    The time of training is that of the epochs which a prediction is worth, or of all that were run where these are not
    enough, or none is needed.
    """
    found = worth[worth["split"] == "test"].to_dict("records")
    if not found:
        return []
    row = found[0]
    most = row["most_epochs"]
    low, epochs, high = (
        epochs_in_words(row[name], most, "more than ") for name in ("epochs_low", "epochs", "epochs_high")
    )
    interval = f" (95% interval {low} to {high})" if low != high else ""
    is_reached = 0 < row["epochs"] < math.inf
    seconds = row["epoch_seconds"] * (row["epochs"] if is_reached else most)
    training = (
        f"that training takes {duration(seconds)}" if is_reached else f"{count(most, 'epoch')} take {duration(seconds)}"
    )
    reached = (
        "" if is_reached else f", and reach {percent(row['sgd_top1'])}% in place of {percent(row['predicted_top1'])}%"
    )
    return [
        f"On the {count(row['architectures'], 'architecture')} of split test that were trained too, a prediction is "
        f"worth {epochs} epochs of training from random parameters{interval}.",
        f"A prediction takes {short_seconds(row['predict_seconds'])}; {training}, "
        f"{seconds / row['predict_seconds']:,.0f} times as long{reached}.",
    ]


def initialisations_table(table: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    """Return a row for each way to get parameters: mean top-1 in percent by split, and the difference from predictions.

    A star marks a difference that a paired test finds after correction for all comparisons of the table.
    """
    splits = list(dict.fromkeys(table["split"]))
    cells = {(row["initialisation"], row["split"]): _compared(row) for row in table.to_dict("records")}
    numbers = table.drop_duplicates("split").set_index("split")["architectures"]
    lines = [
        (_label(name, labels), *(cells.get((name, split), "") for split in splits))
        for name in dict.fromkeys(table["initialisation"])
    ]
    return Table(("", *(f"{split}, n = {numbers[split]}" for split in splits)), lines)


def copies_sentence(table: pd.DataFrame) -> str:
    """Return how much of networks is copied from how many sources, and what these cost, in a sentence.

    Args:
        table: the one of `initialisations_table`; the sentence is empty if it has no copies.
    """
    copies = table.dropna(subset="share_copied")
    if copies.empty:
        return ""
    shares = []
    for name, own in copies.groupby("initialisation", sort=False):
        mean = (own["share_copied"] * own["architectures"]).sum() / own["architectures"].sum()
        shares.append(f"{mean:.0%} where the {_similarity_of(str(name))} decides")
    number, seconds = int(copies["sources"].iloc[0]), copies["sources_seconds"].iloc[0]
    return (
        f"A copy has parameters of the most similar of {count(number, 'network')} of split train that SGD has trained, "
        f"in {duration(seconds)} in all: {listing(shares)}, in the mean. The other parameters stay random."
    )


def _similarity_of(name: str) -> str:
    """Return in words how the source of a copy is found."""
    by = name.removeprefix("copy_")
    return SIMILARITY_LABELS.get(by, by)


def _label(name: str, labels: Mapping[str, str]) -> str:
    if name.startswith("copy_"):
        return f"copy of the nearest, by {_similarity_of(name)}"
    if name.startswith("sgd_"):
        return f"SGD, {count(int(name.removeprefix('sgd_')), 'epoch')}"
    return labels.get(name, name)


def _compared(row: Mapping[str, float]) -> str:
    mean = percent(row["top1"], row["top1_error"])
    if pd.isna(row["difference"]):
        return mean
    return f"{mean} ({points(row['difference'])}{star(row)})"


def correlations_table(correlations: pd.DataFrame, initialisation: str) -> Table:
    """Return a row for each split: ρ of accuracy with similarity and its interval, by each way to compare networks."""
    own = correlations[correlations["initialisation"] == initialisation]
    ways = list(dict.fromkeys(own["by"]))
    cells = {(row["split"], row["by"]): _interval(row, "rho") for row in own.to_dict("records")}
    numbers = own.drop_duplicates("split").set_index("split")["architectures"]
    lines = [
        (split, f"{number:,}", *(cells.get((split, way), "") for way in ways)) for split, number in numbers.items()
    ]
    labels = (f"ρ by {SIMILARITY_LABELS.get(way, way)}" for way in ways)
    return Table(("split", "architectures", *labels), lines)


def properties_table(scores: pd.DataFrame) -> Table:
    """Return a row for each property: Kendall's τ by each kind of features with its interval, or why there is none."""
    features = list(dict.fromkeys(scores["features"]))
    rows = {(row["target"], row["features"]): row for row in scores.to_dict("records")}
    lines = []
    for target in dict.fromkeys(scores["target"]):
        own = [rows[target, name] for name in features]
        cells = [_interval(row, "tau") or str(row["reason"]) for row in own]
        lines.append((property_label(target), f"{own[0]['fitted']}, {own[0]['scored']}", *cells))
    return Table(("property", "fitted, scored", *(FEATURE_LABELS.get(name, name) for name in features)), lines)


def property_label(target: str) -> str:
    """Return the name of a property in words."""
    return target.replace("_", " ")


def properties_findings(scores: pd.DataFrame) -> list[str]:
    """Return where embeddings predict better or worse than a baseline, beyond the interval of the difference of τ."""
    compared = scores[scores["difference"].notna()]
    if compared.empty:
        return ["No property has enough networks to compare embeddings with the baselines."]
    sentences = []
    for name, own in compared.groupby("features", sort=False):
        better, worse = own[own["difference_low"] > 0], own[own["difference_high"] < 0]
        parts = [
            f"{word} for {listing(map(property_label, found['target']))}"
            for word, found in (("better", better), ("worse", worse))
            if len(found)
        ]
        rest = len(own) - len(better) - len(worse)
        if rest == len(own):
            parts = ["not distinguishable for any property"]
        elif rest:
            parts.append(f"not distinguishable for {rest} of {len(own)} properties")
        sentences.append(f"Embeddings against {FEATURE_LABELS.get(str(name), str(name))}: {'; '.join(parts)}.")
    return sentences


def distance_findings(correlations: pd.DataFrame, initialisation: str) -> list[str]:
    """Return how accuracy goes along with the similarity to training architectures, over all splits and within each.

    Splits differ in both, so that a correlation over all of them need not hold within one.
    """
    own = correlations[correlations["initialisation"] == initialisation].dropna(subset="rho")
    is_found = (own["low"] > 0) | (own["high"] < 0)
    sentences = []
    for row in own[own["split"] == ALL_SPLITS].to_dict("records"):
        direction = "more" if row["rho"] > 0 else "less"
        verdict = (
            "no more than chance gives"
            if row["low"] <= 0 <= row["high"]
            else f"networks that are more similar to a training architecture are {direction} accurate"
        )
        single = own[is_found & (own["by"] == row["by"]) & (own["split"] != ALL_SPLITS)]
        within = f"only within {listing(single['split'])}" if len(single) else "within none"
        by = SIMILARITY_LABELS.get(row["by"], row["by"])
        sentences.append(
            f"By {by}, over all {count(row['architectures'], 'architecture')}: ρ = {_interval(row, 'rho')}, {verdict}; "
            f"of the single splits, {within} does the interval exclude 0."
        )
    return sentences


def _interval(row: Mapping[str, float], name: str) -> str:
    """Return a figure with its interval, empty if there is none."""
    if pd.isna(row[name]):
        return ""
    low, high = ("tau_low", "tau_high") if name == "tau" else ("low", "high")
    return f"{row[name]:.2f} [{row[low]:.2f}, {row[high]:.2f}]".replace("-", MINUS_SIGN)
