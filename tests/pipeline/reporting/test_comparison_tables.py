from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from pipeline.evaluation.initialisations import HEADLINE
from pipeline.evaluation.worth import epochs_in_words
from pipeline.reporting.comparison_tables import (
    copies_sentence,
    correlations_table,
    distance_findings,
    initialisations_table,
    properties_findings,
    properties_table,
    worth_findings,
    worth_table,
)
from pipeline.reporting.numbers import MINUS_SIGN

WORTH = {
    "split": "test",
    "architectures": 5,
    "epochs": 1.44,
    "epochs_low": 0.9,
    "epochs_high": math.inf,
    "most_epochs": 4,
    "predicted_top1": 0.5,
    "sgd_top1": 0.61,
    "predict_seconds": 0.05,
    "epoch_seconds": 2.0,
}


def test_a_prediction_that_no_training_reached_is_worth_more_than_all_epochs() -> None:
    assert [epochs_in_words(epochs, 4, "> ") for epochs in (0, 1.44, math.inf)] == ["0.0", "1.4", "> 4"]
    table = worth_table(pd.DataFrame([WORTH]))
    assert table.rows == [("test", "5", "50.0", "61.0", "1.4", "0.9 to > 4", "50 ms", "2.00 s")]
    assert table.columns[3] == "SGD, 4 epochs, %"
    (beyond,) = worth_table(pd.DataFrame([WORTH | {"epochs": math.inf, "epochs_low": math.inf}])).rows
    assert beyond[4:6] == ("> 4", "")


@pytest.mark.parametrize(
    ("epochs", "words", "time"),
    [
        (1.44, "worth 1.4 epochs", "that training takes 2.9 s, 58 times as long."),
        (
            math.inf,
            "worth more than 4 epochs",
            "4 epochs take 8.0 s, 160 times as long, and reach 61.0% in place of 50.0%.",
        ),
        (0.0, "worth 0.0 epochs", "4 epochs take 8.0 s, 160 times as long, and reach 61.0% in place of 50.0%."),
    ],
)
def test_the_worth_is_said_with_its_interval_and_the_seconds_of_both(epochs: float, words: str, time: str) -> None:
    worth, seconds = worth_findings(pd.DataFrame([WORTH | {"epochs": epochs}]))
    assert words in worth and worth.endswith("from random parameters (95% interval 0.9 to more than 4).")
    assert seconds == f"A prediction takes 50 ms; {time}"
    assert worth_findings(pd.DataFrame([WORTH | {"split": "deep"}])) == []


def test_every_way_to_get_parameters_has_a_row_with_its_difference_from_predictions(results_of_a_run: Path) -> None:
    scores = pd.read_csv(results_of_a_run / "compare" / "initialisations.csv")
    table = initialisations_table(scores, {"predicted": "predicted parameters", "random": "random initialisation"})
    assert [row[0] for row in table.rows] == [
        "predicted parameters",
        "random initialisation",
        "SGD, 1 epoch",
        "SGD, 4 epochs",
        "copy of the nearest, by graph kernel",
        "copy of the nearest, by embedding",
    ]
    assert table.columns[1] == "test, n = 6"
    predicted, random, *_ = table.rows
    assert "(" not in predicted[1] and f"({MINUS_SIGN}" in random[1]


def test_the_share_of_copied_parameters_and_the_cost_of_their_sources_are_said(results_of_a_run: Path) -> None:
    scores = pd.read_csv(results_of_a_run / "compare" / "initialisations.csv")
    sentence = copies_sentence(scores)
    assert "most similar of 4 networks of split train that SGD has trained, in 38.0 s in all" in sentence
    assert "90% where the graph kernel decides and 75% where the embedding decides" in sentence
    assert copies_sentence(scores[~scores["initialisation"].str.startswith("copy_")]) == ""


CORRELATION = {"initialisation": HEADLINE, "architectures": 30}


def test_correlations_have_their_interval(results_of_a_run: Path) -> None:
    correlations = pd.read_csv(results_of_a_run / "evaluate" / "similarity.csv")
    table = correlations_table(correlations, HEADLINE)
    assert table.columns[2:] == ("ρ by graph kernel", "ρ by embedding")
    assert {row[0] for row in table.rows} >= {"test", "all"}
    assert all(cell == "" or "[" in cell for row in table.rows for cell in row[2:])


def test_sentences_say_whether_similar_networks_are_more_accurate() -> None:
    found = pd.DataFrame(
        [
            {**CORRELATION, "split": "all", "by": "wl", "rho": 0.4, "low": 0.2, "high": 0.6},
            {**CORRELATION, "split": "all", "by": "embedding", "rho": -0.1, "low": -0.3, "high": 0.1},
            {**CORRELATION, "split": "test", "by": "wl", "rho": -0.9, "low": -1, "high": -0.8},
        ]
    )
    kernel, embedding = distance_findings(found, HEADLINE)
    assert (
        "ρ = 0.40 [0.20, 0.60], networks that are more similar to a training architecture are more accurate;" in kernel
    )
    assert kernel.endswith("only within test does the interval exclude 0.")
    assert f"ρ = {MINUS_SIGN}0.10 [{MINUS_SIGN}0.30, 0.10], no more than chance gives; " in embedding
    assert embedding.endswith("within none does the interval exclude 0.")
    assert distance_findings(found[found["split"] == "test"], HEADLINE) == []


def test_a_property_without_a_figure_has_its_reason(results_of_a_run: Path) -> None:
    table = properties_table(pd.read_csv(results_of_a_run / "properties" / "scores.csv"))
    assert table.columns[2:] == ("embedding", "size", "graph statistics")
    assert table.rows[0] == ("sgd 1 top1", "40, 30", *["0.50 [0.30, 0.70]"] * 3)
    assert table.rows[1][2:] == ("too few networks",) * 3


def test_embeddings_are_ahead_only_where_the_interval_of_their_lead_says_so() -> None:
    leads = {"a": (0.1, 0.5), "b": (-0.2, 0.3), "c": (-0.4, -0.1)}
    rows = [
        {
            "target": target,
            "features": features,
            "difference": (low + high) / 2,
            "difference_low": low,
            "difference_high": high,
        }
        for features in ("size", "graph")
        for target, (low, high) in leads.items()
    ]
    scores = pd.DataFrame(rows)
    size, graph = properties_findings(scores)
    assert size == "Embeddings against size: better for a; worse for c; not distinguishable for 1 of 3 properties."
    assert graph.startswith("Embeddings against graph statistics: better for a")
    (alone,) = properties_findings(scores.query("features == 'size' and target == 'b'"))
    assert alone == "Embeddings against size: not distinguishable for any property."
    (few,) = properties_findings(scores.assign(difference=math.nan))
    assert few == "No property has enough networks to compare embeddings with the baselines."
