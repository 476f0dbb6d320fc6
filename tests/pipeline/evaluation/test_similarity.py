from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_examples import ARCHITECTURES, example_candidates, make_ghn
from scipy.stats import spearmanr

from ghn.deepnets1m.sampling import sample_architecture
from ghn.similarity.weisfeiler_lehman import features, similarities
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import ArchitectureStore, read_manifest, write_manifest
from pipeline.evaluation import embeddings, similarity
from pipeline.evaluation.embeddings import StoredArchitectures, embed, stored_embeddings
from pipeline.evaluation.networks import candidates_of
from pipeline.evaluation.similarity import (
    candidate_embeddings,
    correlate_accuracy,
    nearest_by_kernel,
    similarity_to_training,
    spearman,
)
from pipeline.params import EvaluateSettings

SETTINGS = EvaluateSettings(batch=64, images=None, running_statistics=0, width=8, head_width=16, similarity=24)
TRAINING = [sample_architecture(0, "train", index) for index in range(20)] + ARCHITECTURES


@pytest.fixture
def training(tmp_path: Path) -> StoredArchitectures:
    """Return stored architectures in three shards, of which the last two are those of the examples but two."""
    parts = [TRAINING[:10], TRAINING[10:20], TRAINING[20:]]
    shards = []
    for number, part in enumerate(parts):
        rows = [row(10 * number + place, network) for place, network in enumerate(part)]
        shards.append(write_shard(f"{tmp_path}/train/{number}.parquet", table_of(rows)))
    write_manifest(tmp_path / "manifest.json", {"train": ("train", shards)})
    manifest = read_manifest(tmp_path / "manifest.json")
    return StoredArchitectures(str(tmp_path), manifest, "train", 24, 8, 16, image_size=8, classes=10)


def test_a_range_of_rows_is_read_across_shards(training: StoredArchitectures) -> None:
    split = ArchitectureStore(training.storage, training.manifest)["train"]
    everything = split.read_all()
    for first, last in ((0, 26), (3, 9), (8, 23), (10, 20), (25, 26), (4, 4)):
        assert split.read_range(first, last) == everything[first:last]
    with pytest.raises(IndexError, match="split train has 26 architectures"):
        split.read_range(20, 27)


def test_the_nearest_training_architecture_is_found_in_any_part(
    ray_on_this_machine: None, training: StoredArchitectures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "ROWS_IN_TASK", 7)
    candidates = [*example_candidates(), *candidates_of("val", TRAINING[2:5], SETTINGS, 8)]
    found = nearest_by_kernel(candidates, training)
    assert found["index"][:4] + found["index"][6:] == [20, 21, 22, 23, 2, 3, 4]
    tables = [network.node_table(8, 10) for network in training.read(0, 24)]
    queries = [candidate.network.node_table(8, 10) for candidate in candidates]
    expected = similarities(features(queries), features(tables)).max(axis=1)
    assert found["similarity"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_table_has_each_network_and_each_similarity(
    ray_on_this_machine: None, training: StoredArchitectures
) -> None:
    candidates, ghn = example_candidates(), make_ghn(0)
    queries = candidate_embeddings(candidates, ghn, 8, 10)
    table = similarity_to_training(candidates, queries, training, ghn, "checkpoint")
    assert table["by"].tolist() == ["wl", "embedding"] * len(candidates)
    same = table[table["index"] < 4]
    assert same["nearest"].tolist() == [20, 20, 21, 21, 22, 22, 23, 23]
    assert same["similarity"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (table[(table["index"] >= 4) & (table["by"] == "wl")]["similarity"] < 1 - 1e-4).all()


def test_embeddings_are_those_of_the_hypernetwork_and_are_computed_once(
    ray_on_this_machine: None, training: StoredArchitectures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "ROWS_IN_FILE", 9)
    ghn = make_ghn(0)
    found = stored_embeddings(training, ghn, "one")
    with torch.no_grad():
        expected = ghn.mean_embeddings(training.read(0, 24), 8, 10).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    files = {file: file.stat().st_mtime_ns for file in Path(training.storage).glob("embeddings/*/*.parquet")}
    assert [file.name for file in sorted(files)] == [
        "00000000-00000009.parquet",
        "00000009-00000018.parquet",
        "00000018-00000024.parquet",
    ]
    np.testing.assert_array_equal(stored_embeddings(training, make_ghn(1), "one"), found)  # it is not asked
    damaged, *intact = sorted(files)
    damaged.write_bytes(damaged.read_bytes()[::-1])
    np.testing.assert_array_equal(stored_embeddings(training, ghn, "one"), found)
    assert damaged.stat().st_mtime_ns > files[damaged]
    assert all(file.stat().st_mtime_ns == files[file] for file in intact)
    assert not np.allclose(stored_embeddings(training, make_ghn(1), "two"), found)


def test_no_networks_have_no_embeddings() -> None:
    assert embed([], make_ghn(0), 8, 10).shape == (0, 8)


# --- correlations ---


def test_the_correlation_is_spearmans_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(60)
    y = np.round(x + rng.standard_normal(60), 1)  # with ties
    rho, low, high = spearman(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert -1 <= low < rho < high <= 1
    assert spearman(x, x)[0] == pytest.approx(1)
    assert spearman(x, -np.exp(x))[0] == pytest.approx(-1)
    assert spearman(x, y) == (rho, low, high)


def test_the_interval_covers_zero_where_there_is_nothing_and_not_where_there_is() -> None:
    rng = np.random.default_rng(1)
    intervals = [spearman(*rng.standard_normal((2, 50)))[1:] for _ in range(60)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) > 0.85
    x = rng.standard_normal(50)
    assert spearman(x, x + 0.3 * rng.standard_normal(50))[1] > 0.7


@pytest.mark.parametrize(("x", "y"), [(np.ones(9), np.arange(9.0)), (np.arange(3.0), np.arange(3.0))])
def test_there_is_no_correlation_of_few_or_of_equal_values(x: np.ndarray, y: np.ndarray) -> None:
    assert np.isnan(spearman(x, y)).all()


def test_accuracy_is_correlated_in_each_split_and_in_all_together() -> None:
    keys = [("test", index) for index in range(8)] + [("deep", index) for index in range(3)]
    scores = pd.DataFrame(
        {"split": split, "index": index, "initialisation": name, "top1": sign * index / 10 + 0.5}
        for split, index in keys
        for name, sign in (("predicted", 1), ("random", -1))
    )
    table = pd.DataFrame(
        {"split": split, "index": index, "by": "wl", "similarity": index / 10, "nearest": 0} for split, index in keys
    )
    found = correlate_accuracy(scores, table)
    rho = found.set_index(["split", "initialisation"])["rho"]
    assert rho["test", "predicted"] == pytest.approx(1) and rho["test", "random"] == pytest.approx(-1)
    assert rho["all", "predicted"] == pytest.approx(1)
    assert np.isnan(rho["deep", "predicted"])
    assert found["architectures"].tolist() == [8, 8, 3, 3, 11, 11]
