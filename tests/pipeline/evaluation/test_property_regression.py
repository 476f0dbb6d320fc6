from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from pipeline.evaluation.property_features import EMBEDDING, keys_of
from pipeline.evaluation.property_regression import (
    PropertyResults,
    correlate_properties,
    joined_results,
    regress_properties,
)

NETWORKS = {"val": 100, "test": 600}


def keys(networks: dict[str, int] = NETWORKS) -> pd.MultiIndex:
    return keys_of([(split, index) for split, count in networks.items() for index in range(count)])


def normal(index: pd.MultiIndex, columns: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).standard_normal((len(index), columns)), index)


@pytest.fixture(scope="module")
def features() -> dict[str, pd.DataFrame]:
    """Return two kinds of features that know nothing of each other."""
    return {EMBEDDING: normal(keys(), 4, 0), "size": normal(keys(), 3, 1)}


@pytest.fixture(scope="module")
def planted(features: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and predictions of properties whose answers are known."""
    first = np.tanh(features[EMBEDDING][0]) + features[EMBEDDING][1]
    test = first.index.get_level_values("split") == "test"
    targets = pd.DataFrame({"function": 1e6 * first + 5, "reversed": first.where(~test, -first)})
    targets["random"] = normal(keys(), 1, 2)[0]
    scores, predictions = regress_properties(features, targets, 200, 0)
    return scores.set_index(["target", "features"]), predictions


def test_a_function_of_the_features_is_found_and_not_from_other_features(planted: tuple) -> None:
    scores, _ = planted
    assert scores.loc["function", EMBEDDING]["tau"] > 0.9
    assert abs(scores.loc["function", "size"]["tau"]) < 0.1
    assert scores.loc["function", "size"]["difference_low"] > 0.7


def test_a_random_property_is_not_found(planted: tuple) -> None:
    scores, _ = planted
    assert abs(scores.loc["random", EMBEDDING]["tau"]) < 0.1
    assert scores.loc["random", EMBEDDING]["tau_low"] < 0 < scores.loc["random", EMBEDDING]["tau_high"]
    assert scores.loc["random", "size"]["difference_low"] < 0 < scores.loc["random", "size"]["difference_high"]


def test_a_property_in_reversed_order_on_the_scored_networks_is_negative(planted: tuple) -> None:
    scores, _ = planted
    assert scores.loc["reversed", EMBEDDING]["tau"] == pytest.approx(
        -scores.loc["function", EMBEDDING]["tau"], abs=0.02
    )


def test_the_scores_are_those_of_the_predictions_on_split_test(planted: tuple) -> None:
    scores, predictions = planted
    assert len(predictions) == 3 * 2 * sum(NETWORKS.values())
    for (target, name), own in predictions[predictions["split"] == "test"].groupby(["target", "features"]):
        row = scores.loc[target, name]
        assert row["tau"] == pytest.approx(kendalltau(own["true"], own["predicted"]).statistic)
        assert row["tau_low"] < row["tau"] < row["tau_high"]
        assert (row["fitted"], row["scored"]) == (100, 600)
    differences = scores.xs("size", level="features")["difference"]
    taus = scores["tau"].unstack()
    assert differences.to_dict() == pytest.approx((taus[EMBEDDING] - taus["size"]).to_dict())


def test_the_difference_of_equal_features_is_exactly_0() -> None:
    index = keys({"val": 10, "test": 12})
    table = normal(index, 2, 0)
    scores, _ = regress_properties({EMBEDDING: table, "size": table}, normal(index, 1, 1), 200, 0)
    row = scores.set_index("features").loc["size"]
    assert row["tau_low"] < row["tau_high"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)


def test_the_same_seed_gives_the_same_tables_and_the_unit_of_a_target_does_not_count() -> None:
    index = keys({"val": 8, "test": 6})
    tables, target = {EMBEDDING: normal(index, 3, 0), "size": normal(index, 2, 1)}, normal(index, 1, 2)[0]
    scores, _ = regress_properties(tables, pd.DataFrame({"a": target}), 100, 7)
    again, _ = regress_properties(tables, pd.DataFrame({"a": 1000 * target}), 100, 7)
    pd.testing.assert_frame_equal(scores, again)
    assert scores["tau"].notna().all()


@pytest.mark.parametrize(
    ("networks", "reason"),
    [
        ({"val": 4, "test": 9}, "4 networks to fit on: must be at least 5"),
        ({"val": 9, "test": 4}, "4 networks to score: must be at least 5"),
        ({"val": 9}, "0 networks to score: must be at least 5"),
        ({"test": 9}, "0 networks to fit on: must be at least 5"),
    ],
)
def test_too_few_networks_have_no_figure_and_a_reason(networks: dict[str, int], reason: str) -> None:
    index = keys(networks)
    scores, predictions = regress_properties({EMBEDDING: normal(index, 2, 0)}, normal(index, 1, 1), 100, 0)
    assert scores["reason"].tolist() == [reason]
    assert scores[["tau", "tau_low", "tau_high"]].isna().all(axis=None)
    assert len(predictions) == 0


@pytest.mark.parametrize(("split", "purpose"), [("val", "fit on"), ("test", "score")])
def test_a_target_that_is_the_same_for_all_has_no_figure_and_a_reason(split: str, purpose: str) -> None:
    index = keys({"val": 6, "test": 7})
    targets = normal(index, 1, 1)
    targets.loc[split] = 0.1
    scores, _ = regress_properties({EMBEDDING: normal(index, 2, 0)}, targets, 100, 0)
    assert scores["reason"].tolist() == [f"all {len(targets.loc[split])} networks to {purpose} have the same value"]
    assert scores["tau"].isna().all()


def test_features_that_are_the_same_for_all_have_no_figure_and_a_reason() -> None:
    index = keys({"val": 6, "test": 7})
    tables = {EMBEDDING: normal(index, 2, 0), "size": pd.DataFrame(1.0, index, [0, 1])}
    scores, _ = regress_properties(tables, normal(index, 1, 1), 100, 0)
    row = scores.set_index("features").loc["size"]
    assert row["reason"] == "the same is predicted for all 7 networks"
    assert row[["tau", "difference"]].isna().all()


def test_a_network_without_the_target_is_left_out() -> None:
    index = keys({"val": 8, "test": 9})
    targets = normal(index, 2, 1)
    targets.loc[("val", 3), 0] = targets.loc[("test", 5), 0] = np.nan
    scores, predictions = regress_properties({EMBEDDING: normal(index, 2, 0)}, targets.rename(columns=str), 100, 0)
    assert scores[["fitted", "scored"]].to_numpy().tolist() == [[7, 8], [8, 9]]
    assert len(predictions) == 15 + 17


def test_correlations_are_those_of_the_networks_of_split_test_that_have_both() -> None:
    index = keys({"val": 8, "test": 30})
    values = normal(index, 2, 0).rename(columns={0: "a", 1: "b"})
    values["c"] = -values["a"]
    values.loc[("test", 5), "b"] = np.nan
    values["d"] = 1.0
    table = correlate_properties(values, 100, 0).set_index(["first", "second"])
    test = values.loc["test"].dropna()
    assert table.loc["a", "b"]["tau"] == pytest.approx(kendalltau(test["a"], test["b"]).statistic)
    assert table["networks"].to_dict()["a", "b"] == 29
    assert table.loc["a", "c"][["tau", "tau_low", "tau_high"]].tolist() == [-1, -1, -1]
    assert table.loc["a", "d"]["reason"] == "all 30 networks to compare have the same value"
    assert len(table) == 6


def test_results_of_different_targets_are_joined() -> None:
    index = keys({"val": 6, "test": 7})
    parts = []
    for name in ("a", "b"):
        targets = normal(index, 2, 1).set_axis([name, f"{name}_too"], axis=1)
        regressed = regress_properties({EMBEDDING: normal(index, 2, 0)}, targets, 100, 0)
        parts.append(PropertyResults(*regressed, correlate_properties(targets, 100, 0)))
    joined = joined_results(parts)
    assert joined.scores["target"].tolist() == ["a", "a_too", "b", "b_too"]
    assert len(joined.predictions) == 4 * 13
    assert joined.correlations["first"].tolist() == ["a", "b"]
