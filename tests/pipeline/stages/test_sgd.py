"""Stage `sgd`: what it writes. That it goes on when it or its workers are killed is in `test_task_faults.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from evaluation_examples import ARCHITECTURES, architecture, store_splits

from pipeline.errors import UserError
from pipeline.evaluation.stored_sources import read_sources, read_tensors
from pipeline.params import Params
from pipeline.stages.sgd import sgd, summarise

SMALL = architecture("conv_3x3", "skip_connect")
TASKS = Path("storage/sgd/tasks")
RESULTS = Path("results/sgd")
SECONDS = ["train_seconds", "seconds"]

Project = Callable[..., Params]


@pytest.fixture
def project(small_project: Project) -> Project:
    """Return a function that makes a project with architectures of all splits that the stage reads."""
    splits = {"train": ARCHITECTURES[:3], "val": [SMALL, ARCHITECTURES[4]], "test": ARCHITECTURES[1:4]}
    splits |= {split: [SMALL] for split in ("wide", "deep", "dense", "bn_free")}

    def make(**changes: object) -> Params:
        params = small_project(**changes)
        store_splits(splits)
        return params

    return make


def tables() -> dict[str, pd.DataFrame]:
    """Return what the stage has written, without seconds."""
    sources = pd.read_json(RESULTS / "sources.json", dtype={"checksum": str})
    return {
        "scores": pd.read_parquet(RESULTS / "scores.parquet").drop(columns=SECONDS),
        "rates": pd.read_csv(RESULTS / "learning_rates.csv"),
        "sources": sources.drop(columns="train_seconds"),
    }


def assert_equal(some: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame]) -> None:
    for name, table in some.items():
        pd.testing.assert_frame_equal(table, others[name], check_exact=True)


def finished() -> dict[str, bytes]:
    """Return the results of the runs that are finished so far, by name."""
    return {file.name: file.read_bytes() for file in TASKS.glob("*/*.json")}


@pytest.mark.slow
def test_the_stage_trains_what_the_settings_name_and_keeps_the_sources(
    ray_on_this_machine: None, project: Project
) -> None:
    params = project()
    sgd(params)
    scores = pd.read_parquet(RESULTS / "scores.parquet")
    assert list(scores) == [
        *("split", "index", "name", "identity", "parameters", "nodes", "epochs", "learning_rate", "rate_is_inside"),
        *("top1", "top5", "loss", "running_top1", "noisy_top1", "convergence_steps", "steps", *SECONDS),
    ]
    assert str(scores["convergence_steps"].dtype) == "Int64"
    assert scores.groupby("split", sort=False).size().to_dict() == {"train": 4, "val": 2, "test": 4, "wide": 2}
    assert scores["epochs"].tolist() == [1, 2] * 6
    assert (scores["steps"] == scores["epochs"].map({1: 5, 2: 11})).all()  # of 256 images, of which there are 1,366
    widths = scores.groupby("split")["parameters"].min()
    assert widths["wide"] > 8 * widths["val"]  # the same architecture with four times the width
    assert scores["top1"].between(0, 1).all() and scores["top1"].max() > 0.2

    sources = read_sources()
    assert [source.index for source in sources] == [0, 1]
    of_sources = scores[(scores["split"] == "train") & (scores["epochs"] == 2)]
    assert [source.top1 for source in sources] == of_sources["top1"].tolist()
    assert [source.network_hash for source in sources] == of_sources["identity"].tolist()
    for source, parameters in zip(sources, of_sources["parameters"], strict=True):
        assert sum(tensor.numel() for tensor in read_tensors(source, "storage").values()) == parameters

    rates = pd.read_csv(RESULTS / "learning_rates.csv")
    assert rates["epochs"].tolist() == [1, 2] and rates["is_chosen"].all()
    metrics = json.loads((RESULTS / "metrics.json").read_text())
    means = summarise(scores).set_index(["split", "epochs"])["top1"]
    assert metrics["test"]["sgd_2_top1"] == means["test", 2]
    assert not list(TASKS.iterdir())  # a stage that ended well trains all again the next time


@pytest.mark.slow
def test_a_source_that_was_lost_before_the_stage_ended_is_trained_again(
    ray_on_this_machine: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project(sgd={"epochs": [1], "architectures": {}})
    monkeypatch.setattr("pipeline.stages.sgd.clear_task_cache", lambda folder: None)  # as if it was killed just before
    sgd(params)
    whole, kept = tables(), finished()
    first, second = (Path("storage") / source.file for source in read_sources())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.unlink()
    sgd(params)
    assert_equal(tables(), whole)
    assert first.read_bytes() == content
    assert {name for name, result in finished().items() if kept[name] != result} == {
        name for name in kept if name.startswith("train_and_measure")
    }
    kept = finished()
    sgd(params)
    assert finished() == kept


def test_too_many_architectures_are_refused(project: Project) -> None:
    params = project(generate={"val": 9}, sgd={"architectures": {"val": 9}})
    with pytest.raises(UserError, match=r"sgd\.architectures\.val = 9: must be at most 2, as split val has that many"):
        sgd(params)
