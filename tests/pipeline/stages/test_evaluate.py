from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation_examples import ARCHITECTURES, SETTINGS, digits, example_candidates, make_ghn, store_splits
from small_settings import ROOT
from training_runs import finished_tasks, wait_for

from ghn import GHN
from pipeline.evaluation.initialisations import evaluated_initialisations
from pipeline.evaluation.measurement import Measurement, measure, measure_all, measured_images
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.summaries import summarise_architectures
from pipeline.evaluation.tables import SimilarityCorrelations, SimilarityToTraining
from pipeline.evaluation.traits import EvaluatedNetworks, TraitEffects
from pipeline.images.dataset import Images
from pipeline.images.subsets import digest, in_memory, without_train_part
from pipeline.params import Params, load_params
from pipeline.results import CHECKPOINT
from pipeline.stages.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(candidates: Sequence[Candidate], ghn: GHN, images: Images, folder: Path) -> list[Measurement]:
    return measure_all(candidates, evaluated_initialisations(), ghn, images, SETTINGS, 0, str(folder))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return without_train_part(digits(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    return example_candidates()


@pytest.fixture
def ghn() -> GHN:
    return make_ghn(0)


def test_other_images_have_another_digest(images: Images) -> None:
    changed = in_memory(images.test)
    changed.pixels[-1, 0, 0, 0] ^= 1
    assert digest(images) == digest(replace(images, test=in_memory(images.test)))
    assert digest(images) != digest(replace(images, test=changed))
    assert digest(images) != digest(replace(images, mean=(0.5, 0.5, 0.5)))


# --- many architectures ---


def test_the_cluster_measures_what_one_process_does(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    rows = measured(candidates, ghn, images, tmp_path)
    initialisations = evaluated_initialisations()
    alone = [row for candidate in candidates for row in measure(candidate, initialisations, ghn, images, SETTINGS, 0)]
    exact = ("split", "index", "name", "identity", "parameters", "nodes", "initialisation")
    assert [[row[key] for key in exact] for row in rows] == [[row[key] for key in exact] for row in alone]
    assert [row["initialisation"] for row in rows] == ["predicted", "random"] * len(candidates)
    for name, tolerance in (("loss", 1e-4), ("top1", 2 / 360), ("top5", 2 / 360)):  # threads may sum in another order
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in alone], abs=tolerance)


def test_finished_architectures_are_not_measured_again(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    half = measured(candidates[1:4], ghn, images, tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.glob("*.json")}
    rows = measured(candidates, ghn, images, tmp_path)
    assert rows[2:8] == half  # with the seconds that they took then
    assert [row["index"] for row in rows[::2]] == [0, 1, 2, 3, 4, 5]
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert measured(candidates, ghn, images, tmp_path) == rows


def test_another_architecture_at_the_same_place_is_measured(
    ray_on_this_machine: None, candidates: list[Candidate], ghn: GHN, images: Images, tmp_path: Path
) -> None:
    before, *_ = measured(candidates[:1], ghn, images, tmp_path)
    changed = replace(candidates[1], index=0)
    after, *_ = measured([changed], ghn, images, tmp_path)
    assert after["identity"] == changed.network_hash != before["identity"]
    assert after["parameters"] != before["parameters"]


# --- the stage ---


@pytest.fixture
def project(ray_on_this_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Make a project folder with architectures of all splits and an untrained hypernetwork."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["dataset"] = "digits"
    values["images"]["size"] = 8
    values["evaluate"] |= {"images": 60, "width": 8, "head_width": 16, "running_statistics": 2, "similarity": 5}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    splits = {"test": ARCHITECTURES[:4], "wide": ARCHITECTURES[:1], "deep": ARCHITECTURES[4:]}
    splits |= {"dense": ARCHITECTURES[2:3], "bn_free": ARCHITECTURES[4:5], "train": ARCHITECTURES[::-1]}
    store_splits(splits)
    make_ghn(0).save(CHECKPOINT)
    return load_params()


@pytest.mark.slow
def test_the_stage_writes_its_tables_and_never_mixes_two_checkpoints(project: Params) -> None:
    results = Path("results/evaluate")
    evaluate(project)
    first = pd.read_parquet(results / "architectures.parquet")
    assert list(first) == [
        *("split", "index", "name", "identity", "parameters", "nodes"),
        *("initialisation", "top1", "top5", "loss", "running_top1", "initialise_seconds", "seconds"),
    ]
    assert first["running_top1"].notna().tolist() == (first["index"] < 2).tolist()
    norm_free = first[(first["split"] == "bn_free")]
    assert norm_free["running_top1"].tolist() == norm_free["top1"].tolist()
    assert first["initialisation"].tolist() == ["predicted", "random"] * 12
    predicted = first[first["initialisation"] == "predicted"]
    assert predicted["split"].value_counts().to_dict() == {
        "test": 4,
        "predefined": 3,
        "deep": 2,
        "wide": 1,
        "dense": 1,
        "bn_free": 1,
    }
    assert list(predicted[predicted["split"] == "predefined"]["name"]) == ["resnet50", "vit", "darts"]
    summary = pd.read_csv(results / "summary.csv")
    pd.testing.assert_frame_equal(summary, summarise_architectures(first))
    assert len(summary) == 6
    assert set(json.loads((results / "metrics.json").read_text())) == set(first["split"])
    similarity = SimilarityToTraining.validate(pd.read_parquet(results / "similarity.parquet"))
    assert len(similarity) == 24
    of_test = similarity[(similarity["split"] == "test") & (similarity["by"] == "wl")]
    assert of_test["nearest"].tolist()[1:] == [
        4,
        3,
        2,
    ]  # the sixth training architecture, the first of split test, is not compared
    assert of_test["similarity"].tolist()[1:] == pytest.approx([1] * 3, abs=1e-5)
    assert of_test["similarity"].tolist()[0] < 1 - 1e-4
    networks = EvaluatedNetworks.validate(pd.read_parquet(results / "networks.parquet"))
    assert networks[["split", "index"]].values.tolist() == predicted[["split", "index"]].values.tolist()
    TraitEffects.validate(pd.read_csv(results / "traits.csv"))
    correlations = SimilarityCorrelations.validate(pd.read_csv(results / "similarity.csv"))
    assert set(correlations["split"]) == {*first["split"], "all"}

    make_ghn(1).save(CHECKPOINT)
    evaluate(project)
    other = pd.read_parquet(results / "architectures.parquet")
    difference = (other["loss"] - first["loss"]).abs().groupby(first["initialisation"])
    assert difference.max()["random"] < 1e-4
    assert difference.min()["predicted"] > 0


def test_as_many_test_images_are_measured_as_the_settings_say(tmp_path: Path) -> None:
    images = digits(tmp_path)
    some = measured_images(images, SETTINGS.model_copy(update={"images": 50}))
    assert len(some.test) == 50 and len(some.train) == 0
    assert np.bincount(some.test.labels).tolist() == [5] * 10
    assert len(measured_images(images, SETTINGS).test) == len(images.test)


def test_running_statistics_are_estimated_from_training_images(tmp_path: Path) -> None:
    images = digits(tmp_path)
    measured = measured_images(images, SETTINGS.model_copy(update={"running_statistics": 1}))
    assert len(measured.train) == 512
    shares = np.bincount(measured.train.labels) / 512 - np.bincount(images.train.labels) / len(images.train)
    assert abs(shares).max() < 0.003


@pytest.mark.slow
def test_an_interrupted_stage_says_where_finished_tasks_are_kept(project: Params) -> None:
    code = "from pipeline.params import load_params; from pipeline.stages.evaluate import evaluate"
    code += "; evaluate(load_params())"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    wait_for(lambda: bool(finished_tasks(Path("storage/evaluations"))), process)
    os.kill(process.pid, signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"finished tasks are kept in" in output
