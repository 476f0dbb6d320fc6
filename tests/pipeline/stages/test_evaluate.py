from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from small_settings import ROOT

from ghn import GHN, Architecture, Genotype, GHNConfig
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.errors import UserError
from pipeline.evaluation.networks import Candidate, at_width, candidates_of, fresh_module, require_fit
from pipeline.evaluation.scores import score
from pipeline.images.dataset import Images
from pipeline.images.load import load_cached_images
from pipeline.images.subsets import digest, in_memory
from pipeline.params import EvaluateSettings, Params, load_params
from pipeline.results import CHECKPOINT, MANIFEST
from pipeline.stages.evaluate import evaluate, group_by_cost, measure, measure_all, metrics_of, summarise

SETTINGS = EvaluateSettings(batch=64, width=8, head_width=16)
CPU = torch.device("cpu")


def architecture(*operations: str, n_cells: int = 2, **fields: object) -> Architecture:
    edges = tuple((operation, source) for source, operation in enumerate(operations))
    return Architecture(Genotype(edges, (2,), edges, (2,)), n_cells=n_cells, **fields)


ARCHITECTURES = [
    architecture("conv_3x3", "skip_connect"),
    architecture("sep_conv_3x3", "max_pool_3x3", fc_layers=2),
    architecture("conv_1x1", "cse", stem_type=1),
    architecture("msa", "skip_connect"),
    architecture("conv_5x5", "avg_pool_3x3", norm=None, n_cells=3),
    architecture("dil_conv_3x3", "conv_3x3", C_mult=2, n_cells=3),
]


def make_ghn(seed: int) -> GHN:
    torch.manual_seed(seed)
    return GHN(GHNConfig(num_classes=10, image_size=8, hidden=8, kernel=5)).eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a worker has it; and where cores are busy, threads that wait for each other take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    loaded = load_cached_images("digits", 8, tmp_path_factory.mktemp("images"))
    return replace(loaded, train=in_memory(loaded.train, []), test=in_memory(loaded.test))


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    return candidates_of("test", ARCHITECTURES, SETTINGS, 8)


@pytest.fixture
def ghn() -> GHN:
    return make_ghn(0)


def without_time(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# --- one architecture ---


def test_random_initialisation_is_near_chance(candidates: list[Candidate], ghn: GHN, images: Images) -> None:
    rows = [measure(candidate, ghn, images, 64, seed=0) for candidate in candidates]
    assert 0.03 < np.mean([row["random_top1"] for row in rows]) < 0.2
    assert 0.35 < np.mean([row["random_top5"] for row in rows]) < 0.65
    assert all(row["predicted_top1"] <= row["predicted_top5"] <= 1 for row in rows)
    assert [row["parameters"] for row in rows] == [c.network.num_parameters(8, 10) for c in candidates]
    assert [row["nodes"] for row in rows] == [len(c.network.graph(8, 10).nodes) for c in candidates]


def test_a_network_is_measured_alike_whatever_was_drawn_before(
    candidates: list[Candidate], ghn: GHN, images: Images
) -> None:
    first = measure(candidates[0], ghn, images, 64, seed=3)
    torch.rand(7)
    state = torch.get_rng_state()
    again = measure(candidates[0], ghn, images, 64, seed=3)
    assert without_time([first]) == without_time([again])
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_only_changes_random_initialisation(candidates: list[Candidate], ghn: GHN, images: Images) -> None:
    one, other = (measure(candidates[0], ghn, images, 64, seed=seed) for seed in (0, 1))
    assert one["predicted_loss"] == other["predicted_loss"]
    assert one["random_loss"] != other["random_loss"]


def test_a_network_that_knows_the_labels_scores_one() -> None:
    labels = torch.arange(10) % 3
    scores = score(lambda _: 50 * torch.eye(3)[labels], [(torch.zeros(10, 3, 8, 8), labels)], CPU)
    assert (scores.top1, scores.top5) == (1, 1)  # three classes have no first five
    assert scores.loss == pytest.approx(0, abs=1e-6)


def test_the_second_best_guess_counts_for_top5_alone() -> None:
    logits = torch.arange(10.0).flip(0).repeat(4, 1)
    scores = score(lambda _: logits, [(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 4, 5]))], CPU)
    assert (scores.top1, scores.top5) == (0.25, 0.75)


def test_logits_that_are_not_numbers_are_wrong_and_leave_no_loss() -> None:
    logits = torch.zeros(4, 10)
    logits[:, 0] = 1
    logits[:2, 3] = torch.nan
    scores = score(lambda _: logits, [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))], CPU)
    assert (scores.top1, scores.top5, scores.loss) == (0.5, 0.5, None)


def test_the_same_seed_gives_the_same_random_network() -> None:
    one, same, other = (fresh_module(ARCHITECTURES[0], 8, 10, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("image_size", "factor"), [(8, 4), (64, 4), (224, 2)])
def test_wide_networks_have_several_times_the_width(image_size: int, factor: int) -> None:
    wide = at_width(ARCHITECTURES[1], SETTINGS, image_size, wide=True)
    assert (wide.C, wide.fc_dim) == (factor * SETTINGS.width, SETTINGS.head_width)
    narrow = at_width(ARCHITECTURES[1], SETTINGS, image_size)
    assert (narrow.C, narrow.fc_dim) == (SETTINGS.width, SETTINGS.head_width)


def test_a_checkpoint_for_other_images_is_refused(ghn: GHN, images: Images) -> None:
    require_fit(ghn, images, 8)
    with pytest.raises(UserError, match="10 classes and image size 8"):
        require_fit(ghn, images, 16)
    with pytest.raises(UserError, match="dataset = digits has 2 classes"):
        require_fit(ghn, replace(images, classes=("a", "b")), 8)


def test_other_images_have_another_digest(images: Images) -> None:
    changed = in_memory(images.test)
    changed.pixels[-1, 0, 0, 0] ^= 1
    assert digest(images) == digest(replace(images, test=in_memory(images.test)))
    assert digest(images) != digest(replace(images, test=changed))
    assert digest(images) != digest(replace(images, mean=(0.5, 0.5, 0.5)))


# --- many architectures ---


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_tasks_have_similar_cost_and_the_most_expensive_come_first(candidates: list[Candidate], count: int) -> None:
    costs = (10 ** np.random.default_rng(count).uniform(0, 3, count)).tolist()
    cost = {index: costs[index] for index in range(count)}
    groups = group_by_cost([replace(candidates[0], index=index) for index in range(count)], costs)
    order = [candidate.index for group in groups for candidate in group]
    assert sorted(order) == list(range(count))
    assert [cost[index] for index in order] == sorted(costs, reverse=True)
    assert all(1 <= len(group) <= 8 for group in groups)
    assert all(sum(cost[c.index] for c in group) <= max(costs) for group in groups)


def test_the_cluster_measures_what_one_process_does(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    rows = measure_all(candidates, ghn, images, 64, 0, str(tmp_path))
    alone = [measure(candidate, ghn, images, 64, 0) for candidate in candidates]
    exact = ("split", "index", "name", "identity", "parameters", "nodes")
    assert [[row[key] for key in exact] for row in rows] == [[row[key] for key in exact] for row in alone]
    for kind in ("predicted", "random"):  # threads may sum in another order
        for name, tolerance in (("loss", 1e-4), ("top1", 2 / 360), ("top5", 2 / 360)):
            key = f"{kind}_{name}"
            assert [row[key] for row in rows] == pytest.approx([row[key] for row in alone], abs=tolerance)


def test_finished_architectures_are_not_measured_again(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    half = measure_all(candidates[1:4], ghn, images, 64, 0, str(tmp_path))
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    rows = measure_all(candidates, ghn, images, 64, 0, str(tmp_path))
    assert rows[1:4] == half  # with the seconds that they took then
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert measure_all(candidates, ghn, images, 64, 0, str(tmp_path)) == rows


def test_another_architecture_at_the_same_place_is_measured(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    (before,) = measure_all(candidates[:1], ghn, images, 64, 0, str(tmp_path))
    changed = replace(candidates[1], index=0)
    (after,) = measure_all([changed], ghn, images, 64, 0, str(tmp_path))
    assert after["identity"] == changed.network_hash != before["identity"]
    assert after["parameters"] != before["parameters"]


def test_the_summary_has_mean_standard_error_and_maximum_of_each_split() -> None:
    values = {"predicted_top5": 0.9, "random_top5": 0.5, "random_top1": 0.1, "random_loss": 2.3}
    rows = [
        {"split": "test", "predicted_top1": 0.2, "predicted_loss": 2.0, **values},
        {"split": "test", "predicted_top1": 0.4, "predicted_loss": np.nan, **values},
        {"split": "bn_free", "predicted_top1": 0.3, "predicted_loss": 1.0, **values},
    ]
    summary = summarise(pd.DataFrame(rows)).set_index("split")
    assert list(summary.index) == ["test", "bn_free"]
    assert summary.loc["test", "predicted_top1"] == pytest.approx(0.3)
    assert summary.loc["test", "predicted_top1_error"] == pytest.approx(0.1)
    assert summary.loc["test", "predicted_top1_max"] == 0.4
    assert summary["nonfinite"].to_dict() == {"test": 1, "bn_free": 0}
    assert summary["architectures"].to_dict() == {"test": 2, "bn_free": 1}
    metrics = metrics_of(summary.reset_index())
    assert metrics["bn_free"]["predicted_top1"] == 0.3
    json.dumps(metrics, allow_nan=False)


# --- the stage ---


@pytest.fixture
def project(ray_on_this_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project folder with architectures of all splits and an untrained hypernetwork."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["dataset"] = "digits"
    values["images"]["size"] = 8
    values["evaluate"] |= {"width": 8, "head_width": 16}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    splits = {"test": ARCHITECTURES[:4], "wide": ARCHITECTURES[:1], "deep": ARCHITECTURES[4:]}
    splits |= {"dense": ARCHITECTURES[2:3], "bn_free": ARCHITECTURES[4:5]}
    shards = {
        split: write_shard(f"storage/{split}/0.parquet", table_of([row(*item) for item in enumerate(architectures)]))
        for split, architectures in splits.items()
    }
    write_manifest(MANIFEST, {split: (split, [shard]) for split, shard in shards.items()})
    make_ghn(0).save(CHECKPOINT)
    return load_params()


@pytest.mark.slow
def test_the_stage_writes_its_tables_and_never_mixes_two_checkpoints(project: Params) -> None:
    results = Path("results/evaluate")
    evaluate(project)
    first = pd.read_parquet(results / "architectures.parquet")
    assert first["split"].value_counts().to_dict() == {
        "test": 4,
        "predefined": 3,
        "deep": 2,
        "wide": 1,
        "dense": 1,
        "bn_free": 1,
    }
    assert list(first[first["split"] == "predefined"]["name"]) == ["resnet50", "vit", "darts"]
    assert len(pd.read_csv(results / "summary.csv")) == 6
    assert set(json.loads((results / "metrics.json").read_text())) == set(first["split"])

    make_ghn(1).save(CHECKPOINT)
    evaluate(project)
    other = pd.read_parquet(results / "architectures.parquet")
    assert (other["random_loss"] - first["random_loss"]).abs().max() < 1e-4
    assert (other["predicted_loss"] != first["predicted_loss"]).all()

    make_ghn(0).save(CHECKPOINT)
    evaluate(project)
    again = pd.read_parquet(results / "architectures.parquet")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), first.drop(columns="seconds"))


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_where_it_was(project: Params) -> None:
    code = "from pipeline.params import load_params; from pipeline.stages.evaluate import evaluate; evaluate(load_params())"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    kept = Path("storage/evaluations")
    deadline = time.monotonic() + 240
    while not list(kept.glob("*/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"goes on from there" in output
    before = [row for file in kept.glob("*/*.json") for row in json.loads(file.read_text())]
    evaluate(project)
    rows = pd.read_parquet("results/evaluate/architectures.parquet")
    assert len(rows) == 12
    assert {row["seconds"] for row in before} <= set(rows["seconds"])  # measured before the interruption
    assert not list(kept.iterdir())  # a stage that ended well measures all anew when it is asked again
