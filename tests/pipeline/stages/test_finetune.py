from __future__ import annotations

import json
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
from pipeline.evaluation.networks import fresh_module
from pipeline.images.dataset import Images
from pipeline.images.load import load_cached_images
from pipeline.params import FinetuneSettings, load_params
from pipeline.results import CHECKPOINT, MANIFEST
from pipeline.stages.finetune import (
    INITIALISATIONS,
    FinetuneRun,
    Target,
    chosen_rates,
    curves_table,
    fine_tune,
    finetune,
    load_predicted,
    metrics_of,
    summarise,
    target_of,
    train_all,
)

SETTINGS = FinetuneSettings(
    datasets=["digits"],
    architectures=1,
    images_per_class=10,
    seeds=2,
    steps=4,
    batch=16,
    learning_rates=[0.01, 0.1],
    evaluate_every=3,
)
EDGES = (("conv_3x3", 0), ("skip_connect", 1))
NETWORK = Architecture(Genotype(EDGES, (2,), EDGES, (2,)), n_cells=2, C=16, fc_layers=2, fc_dim=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a worker has it; and where cores are busy, threads that wait for each other take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return load_cached_images("digits", 8, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def target(images: Images) -> Target:
    return target_of(images, images_per_class=10, seeds=2, seed=0)


@pytest.fixture(scope="module")
def ghn() -> GHN:
    """It was trained, so to speak, for another number of classes than the target has."""
    torch.manual_seed(0)
    return GHN(GHNConfig(num_classes=7, image_size=8, hidden=8, kernel=3)).eval()


# --- images ---


@pytest.mark.parametrize("images_per_class", [1, 10, 25])
def test_the_few_shots_are_exactly_n_images_of_each_class(images: Images, images_per_class: int) -> None:
    target = target_of(images, images_per_class, seeds=3, seed=0)
    assert len(target.shots) == 3
    for shots in target.shots:
        assert np.bincount(shots.labels).tolist() == [images_per_class] * 10
    assert not np.array_equal(target.shots[0].pixels, target.shots[1].pixels)


def test_no_image_both_trains_and_chooses_the_learning_rate(images: Images, target: Target) -> None:
    def as_set(pixels: np.ndarray) -> set[bytes]:
        return {image.tobytes() for image in pixels}

    train, held_out = as_set(images.train.pixels), as_set(target.held_out.pixels)
    assert len(held_out) == 500
    assert held_out < train
    assert not held_out & as_set(target.shots[0].pixels)
    assert all(as_set(shots.pixels) < train for shots in target.shots)
    assert np.array_equal(target.images.test.pixels, images.test.pixels)


def test_other_seeds_draw_other_images(images: Images, target: Target) -> None:
    same, other = (target_of(images, 10, seeds=2, seed=seed) for seed in (0, 1))
    assert np.array_equal(same.shots[1].pixels, target.shots[1].pixels)
    assert np.array_equal(same.held_out.pixels, target.held_out.pixels)
    assert not np.array_equal(other.shots[0].pixels, target.shots[0].pixels)


def test_more_images_a_class_than_can_be_spared_are_refused(images: Images) -> None:
    fewest = int(np.bincount(images.train.labels).min())
    target_of(images, fewest - 1, seeds=1, seed=0)
    with pytest.raises(UserError, match=f"finetune.images_per_class = {fewest}: must be less than {fewest}") as error:
        target_of(images, fewest, seeds=1, seed=0)
    assert "digits" in str(error.value)


# --- one run ---


def test_sgd_learns_digits_from_few_images(target: Target, ghn: GHN) -> None:
    settings = SETTINGS.model_copy(update={"steps": 40, "evaluate_every": 20, "batch": 32})
    result = fine_tune(FinetuneRun("digits", 0, "random", 0.1, 0), NETWORK, ghn, target, settings, seed=0)
    assert [step for step, _ in result["curve"]] == [0, 20, 40]
    assert result["curve"][0][1] < 0.3
    assert result["curve"][-1][1] > 0.5
    assert abs(result["held_out"] - result["curve"][-1][1]) < 0.15


def test_a_run_is_a_function_of_its_seeds(target: Target, ghn: GHN) -> None:
    run = FinetuneRun("digits", 0, "predicted", 0.1, 1)
    first = fine_tune(run, NETWORK, ghn, target, SETTINGS, seed=0)
    torch.rand(3)
    assert fine_tune(run, NETWORK, ghn, target, SETTINGS, seed=0) == first
    assert fine_tune(replace(run, seed=0), NETWORK, ghn, target, SETTINGS, seed=0) != first
    assert [step for step, _ in first["curve"]] == [0, 3, 4]  # the last step is always measured


def test_a_learning_rate_that_diverges_is_measured_as_wrong(target: Target, ghn: GHN) -> None:
    network = replace(NETWORK, norm=None)
    settings = SETTINGS.model_copy(update={"steps": 20})
    result = fine_tune(FinetuneRun("digits", 0, "random", 1e6, 0), network, ghn, target, settings, seed=0)
    assert result["held_out"] <= 0.2
    json.dumps(result, allow_nan=False)


def test_everything_but_the_classification_layer_is_predicted(ghn: GHN) -> None:
    module, random = (fresh_module(NETWORK, 8, 10, seed=4) for _ in range(2))
    load_predicted(module, ghn, NETWORK, 8)
    (predicted,) = ghn.predict_parameters([NETWORK], 8)
    classifier = {parameter.name for parameter in NETWORK.program(8, 10).operations[-1].parameters}
    assert len(classifier) == 2
    for name, parameter in module.named_parameters():
        source = random.get_parameter(name) if name in classifier else predicted[name]
        assert torch.equal(parameter, source), name


# --- many runs ---


def test_the_learning_rate_is_the_best_on_average_for_each_initialisation() -> None:
    accuracies = {
        ("predicted", 0.01): (0.5, 0.9),
        ("predicted", 0.1): (0.6, 0.7),
        ("random", 0.01): (0.1, 0.1),
    }
    accuracies[("random", 0.1)] = (0.2, 0.1)
    held_out = {
        FinetuneRun("digits", architecture, initialisation, rate, 0): value
        for (initialisation, rate), values in accuracies.items()
        for architecture, value in enumerate(values)
    }
    assert chosen_rates(held_out) == {("digits", "predicted"): 0.01, ("digits", "random"): 0.1}
    tie = {FinetuneRun("digits", 0, "random", rate, 0): 0.5 for rate in (0.1, 0.01)}
    assert chosen_rates(tie) == {("digits", "random"): 0.01}


def test_the_summary_counts_the_steps_to_the_final_accuracy_of_random_initialisation() -> None:
    curves = {
        FinetuneRun("digits", 0, "predicted", 0.01, 0): [(0, 0.1), (10, 0.6), (20, 0.9)],
        FinetuneRun("digits", 0, "predicted", 0.01, 1): [(0, 0.1), (10, 0.5), (20, 0.7)],
        FinetuneRun("digits", 0, "random", 0.1, 0): [(0, 0.1), (10, 0.2), (20, 0.4)],
        FinetuneRun("digits", 0, "random", 0.1, 1): [(0, 0.1), (10, 0.4), (20, 0.6)],
        FinetuneRun("faces", 0, "predicted", 0.01, 0): [(0, 0.5), (10, 0.5), (20, 0.6)],
        FinetuneRun("faces", 0, "random", 0.01, 0): [(0, 0.5), (10, 0.6), (20, 0.7)],
    }
    summary = summarise(curves_table(curves), {"digits": 10, "faces": 2})
    assert list(zip(summary["dataset"], summary["initialisation"], strict=True)) == [
        ("digits", "predicted"),
        ("digits", "random"),
        ("faces", "predicted"),
        ("faces", "random"),
    ]
    assert summary["test_top1"].tolist() == pytest.approx([0.8, 0.5, 0.6, 0.7])
    assert summary["test_top1_error"].tolist()[:2] == pytest.approx([0.1, 0.1])
    assert summary["target_top1"].tolist() == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert summary["steps_to_target"].tolist() == [10, 20, pd.NA, 20]
    assert summary["runs"].tolist() == [2, 2, 1, 1]
    assert summary["classes"].tolist() == [10, 10, 2, 2]
    metrics = metrics_of(summary)
    assert metrics["faces"] == {"predicted_top1": 0.6, "random_top1": 0.7}
    json.dumps(metrics, allow_nan=False)


def test_runs_that_are_finished_are_not_trained_again(
    ray_on_this_machine: None, target: Target, ghn: GHN, tmp_path: Path
) -> None:
    def train(**settings: object) -> pd.DataFrame:
        changed = SETTINGS.model_copy(update=settings)
        return train_all([NETWORK], ghn, {"digits": target}, changed, 0, str(tmp_path))

    few = train(seeds=1)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == 4  # two initialisations, two learning rates
    more = train(seeds=2)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(tmp_path.iterdir())) == 6
    pd.testing.assert_frame_equal(more[more["seed"] == 0].reset_index(drop=True), few)
    assert len(more) == len(INITIALISATIONS) * 2 * 3  # seeds, measurements

    train(seeds=1, batch=8)
    assert len(list(tmp_path.iterdir())) == 10  # another budget shares nothing


@pytest.mark.slow
def test_the_stage_writes_curves_and_summary(
    ray_on_this_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["images"]["size"] = 8
    values["evaluate"] |= {"width": 8, "head_width": 16}
    values["finetune"] |= {"architectures": 2, "seeds": 2, "steps": 4, "evaluate_every": 2}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    params = load_params()
    networks = [NETWORK, replace(NETWORK, norm=None)]
    shard = write_shard("storage/test/0.parquet", table_of([row(*item) for item in enumerate(networks)]))
    write_manifest(MANIFEST, {"test": ("test", [shard])})
    torch.manual_seed(0)
    GHN(GHNConfig(num_classes=10, image_size=8, hidden=8, kernel=3)).save(CHECKPOINT)
    finetune(params)

    curves = pd.read_parquet("results/finetune/curves.parquet")
    assert len(curves) == 2 * 2 * 2 * 2 * 3  # data sets, architectures, initialisations, seeds, measurements
    assert curves["test_top1"].between(0, 1).all()
    summary = pd.read_csv("results/finetune/summary.csv")
    assert summary["runs"].tolist() == [4] * 4
    assert set(json.loads(Path("results/finetune/metrics.json").read_text())) == {"digits", "faces"}

    too_many = params.model_copy(update={"finetune": params.finetune.model_copy(update={"architectures": 3})})
    with pytest.raises(UserError, match=r"finetune.architectures = 3: must be at most 2"):
        finetune(too_many)
