from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow_server import TrackingServer
from training_runs import finished_tasks, wait_for

from ghn import GHN
from pipeline.architectures.splits import make_splits
from pipeline.architectures.store import write_manifest
from pipeline.evaluation.networks import EVALUATED_SPLITS
from pipeline.evaluation.study_summary import Cell, summarise_study
from pipeline.params import Params
from pipeline.results import MANIFEST
from pipeline.stages.study import study
from pipeline.training.pace import steps_within

STUDY = """
from pipeline.params import load_params
from pipeline.stages.study import study
from pipeline.training import pace
pace.TIMED_STEPS, pace.WARM_UP = 3, 1
study(load_params(), "mlp", 1)
"""


@pytest.fixture
def project(ray_on_this_machine: None, small_project: Callable[..., Params]) -> Params:
    """Make a project folder with architectures and a short study."""
    params = small_project(
        study={"variants": ["ghn2", "one_architecture"], "minutes": 0.05, "architectures": 2},
    )
    write_manifest(MANIFEST, make_splits(params))
    return params


@pytest.mark.slow
def test_its_runs_have_what_a_parallel_coordinates_chart_of_mlflow_needs(
    project: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr("pipeline.stages.study.seconds_per_step", lambda *arguments: 0.5)
    server = TrackingServer(Path.cwd())
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        for variant in project.study.variants:
            study(project, variant, 3)
        client = MlflowClient(server.address)
        experiment = client.get_experiment_by_name(project.tracking.experiment)
        view = json.loads(experiment.tags["mlflow.sharedViewState.study"])
        runs = client.search_runs([experiment.experiment_id], view["searchFilter"])
        chart, *others = view["compareRunCharts"]
        curves = [other["metricKey"] for other in others if other["type"] == "LINE"]
        points = {len(client.get_metric_history(run.info.run_id, name)) for run in runs for name in curves}
    finally:
        server.stop()
    assert curves and min(points) >= 1
    assert {run.info.run_name for run in runs} == {"study-ghn2-3", "study-one_architecture-3"}
    assert (chart["type"], chart["metricSectionId"]) == ("PARALLEL", view["compareRunSections"][0]["uuid"])
    assert chart["selectedParams"] == ["variant", "seed", "meta_batch"]
    assert chart["selectedMetrics"] == [f"{split}_top1" for split in reversed(EVALUATED_SPLITS)]
    for run in runs:
        variant = run.data.params["variant"]
        scores = json.loads(Path(f"results/study/{variant}-3/scores.json").read_text())
        assert {name: run.data.metrics[name] for name in chart["selectedMetrics"]} == pytest.approx(scores)
        assert run.data.params["seed"] == "3"
        assert run.data.params["meta_batch"] == ("1" if variant == "one_architecture" else "3")


@pytest.mark.slow
def test_an_interrupted_variant_goes_on_with_its_pace_and_leaves_its_scores(project: Params) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUDY], start_new_session=True, stderr=subprocess.PIPE)

    wait_for(lambda: bool(finished_tasks(Path("storage/studies"))), process)
    pace = json.loads(finished_tasks(Path("storage/studies"))[0].read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    study(project, "mlp", 1)
    folder = Path("results/study/mlp-1")
    assert GHN.from_pretrained(folder / "checkpoint").config.variant == "mlp"
    history = pd.read_csv(folder / "history.csv")
    assert history["step"].iloc[-1] == steps_within(project.study.minutes, pace)
    table = pd.read_parquet(folder / "architectures.parquet")
    assert table["split"].value_counts().max() == project.study.architectures
    top1 = table.groupby("split")["top1"].mean()
    assert json.loads((folder / "scores.json").read_text()) == {f"{s}_top1": pytest.approx(v) for s, v in top1.items()}
    assert set(summarise_study({Cell("mlp", 1): table}, {Cell("mlp", 1): len(history)})["variant"]) == {"mlp"}
    assert not list(Path("storage/studies").glob("*")) and not list(Path("storage/training").glob("*"))


def test_the_number_of_steps_is_that_of_the_time() -> None:
    assert steps_within(1, 0.25) == 240
    assert steps_within(0.001, 10) == 1
