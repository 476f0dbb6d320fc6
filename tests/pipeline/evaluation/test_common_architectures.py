from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pipeline.evaluation.common_architectures import accuracies_of, compare_initialisations, worth_by_split
from pipeline.evaluation.stored_sources import StoredSource

SIZES = {"test": 10, "deep": 2}


@pytest.fixture(scope="module")
def evaluated() -> pd.DataFrame:
    """Return made-up scores; predictions of split test are as good as two epochs, those of deep better than all."""
    rng = np.random.default_rng(0)
    rows = []
    for split, predicted in (("test", 0.5), ("wide", 0.3), ("deep", 0.95)):
        for index in range(12):
            for name, top1 in (("predicted", predicted), ("random", 0.1)):
                score = float(np.clip(top1 + rng.normal(0, 0.01), 0, 1))
                times = {"initialise_seconds": 0.25, "seconds": 2.0}
                rows.append({"split": split, "index": index, "initialisation": name, "top1": score, **times})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def trained() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {
            "split": split,
            "index": index,
            "epochs": epochs,
            "top1": top1 + rng.normal(0, 0.01),
            "train_seconds": 3 * epochs,
        }
        for split in ("train", *SIZES)
        for index in range(SIZES.get(split, 4))
        for epochs, top1 in ((1, 0.3), (3, 0.7))
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def copies() -> pd.DataFrame:
    """Return made-up scores of copies, of the first eight architectures of split test and all of deep."""
    rng = np.random.default_rng(2)
    rows = [
        {
            "split": split,
            "index": index,
            "initialisation": name,
            "top1": top1 + rng.normal(0, 0.01),
            "share_copied": share,
        }
        for split, count in (("test", 8), ("deep", 12))
        for index in range(count)
        for name, top1, share in (("copy_wl", 0.45, 0.5 + index / 100), ("copy_embedding", 0.2, 0.25))
    ]
    return pd.DataFrame(rows)


SOURCES = [StoredSource(index, "", "", "", 1, 0.9, seconds, "") for index, seconds in ((0, 2.0), (3, 3.5))]


def test_only_architectures_that_are_in_both_tables_are_compared(evaluated, trained) -> None:
    table = accuracies_of(evaluated, trained)
    assert table["split"].value_counts().to_dict() == SIZES
    assert list(table) == ["split", "index", "predicted", "random", 1, 3]
    row = table.set_index(["split", "index"]).loc[("test", 7)]
    assert row["random"] == evaluated.set_index(["split", "index", "initialisation"]).loc[("test", 7, "random"), "top1"]
    assert row[3] == trained.set_index(["split", "index", "epochs"]).loc[("test", 7, 3), "top1"]


def test_each_way_to_get_parameters_is_compared_with_predictions_in_pairs(evaluated, trained, copies) -> None:
    accuracies = accuracies_of(evaluated, trained)
    table = compare_initialisations(accuracies, copies, SOURCES).set_index(["split", "initialisation"])
    ways = ["predicted", "random", "sgd_1", "sgd_3", "copy_wl", "copy_embedding"]
    assert list(table.index) == [(split, way) for split in ("test", "deep") for way in ways]
    own = accuracies[(accuracies["split"] == "test") & (accuracies["index"] < 8)]  # those that have copies too
    row = table.loc[("test", "sgd_3")]
    assert row["difference"] == pytest.approx((own[3] - own["predicted"]).mean())
    assert row["p_value"] == pytest.approx(ttest_rel(own[3], own["predicted"]).pvalue)
    assert row["corrected_p_value"] < 0.01
    assert math.isnan(table.loc[("test", "predicted"), "difference"])
    assert math.isnan(table.loc[("deep", "sgd_3"), "p_value"])  # of two pairs
    assert table["architectures"].tolist() == [8] * 6 + [2] * 6


def test_copies_have_the_share_that_was_copied_and_the_cost_of_all_sources(evaluated, trained, copies) -> None:
    table = compare_initialisations(accuracies_of(evaluated, trained), copies, SOURCES)
    of_copies = table["initialisation"].str.startswith("copy_")
    columns = ["share_copied", "sources", "sources_seconds"]
    assert table.loc[~of_copies, columns].isna().all(axis=None)
    rows = table[of_copies].set_index(["split", "initialisation"])
    assert rows.loc[("test", "copy_wl"), columns].tolist() == [pytest.approx(0.535), 2, 5.5]
    assert rows.loc[("deep", "copy_wl"), "share_copied"] == pytest.approx(0.505)  # of the two that were trained too
    by_index = copies[(copies["split"] == "test") & (copies["initialisation"] == "copy_embedding")].set_index("index")
    predicted = evaluated[(evaluated["split"] == "test") & (evaluated["initialisation"] == "predicted")]
    differences = by_index["top1"] - predicted.set_index("index")["top1"]
    assert rows.loc[("test", "copy_embedding"), "difference"] == pytest.approx(differences.dropna().mean())


def test_predictions_are_worth_the_epochs_at_which_training_is_as_good(evaluated, trained) -> None:
    table = worth_by_split(accuracies_of(evaluated, trained), evaluated, trained).set_index("split")
    assert table.loc["test", "epochs"] == pytest.approx(2, abs=0.1)
    assert table.loc["deep", "epochs"] == math.inf
    assert table.loc["test", ["predict_seconds", "epoch_seconds"]].tolist() == pytest.approx([0.25, 3])
    assert list(table.index) == ["test", "deep"]
