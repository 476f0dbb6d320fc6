"""A third way to start networks is one entry of a registry: tables, report and MLflow show it without other changes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from example_results import make_results
from mlflow import MlflowClient

from pipeline.evaluation.initialisations import INITIALISATIONS
from pipeline.params import Params
from pipeline.stages.evaluate import evaluate
from pipeline.stages.finetune import finetune
from pipeline.stages.generate import generate
from pipeline.stages.report import report
from pipeline.stages.train import train


def add_he_initialisation() -> None:
    from torch import empty
    from torch.nn.init import kaiming_normal_

    from pipeline.evaluation.initialisations import INITIALISATIONS, Initialisation

    def he_weights(network, context):
        parameters = network.program(context.image_size, context.classes).parameters()
        return {p.name: kaiming_normal_(empty(p.shape)) for p in parameters if len(p.shape) > 1}

    INITIALISATIONS["he"] = Initialisation("He initialisation", he_weights)


@pytest.fixture
def with_he_initialisation() -> Iterator[None]:
    before = dict(INITIALISATIONS)
    add_he_initialisation()
    yield
    INITIALISATIONS.clear()
    INITIALISATIONS.update(before)


def test_an_initialisation_takes_at_most_15_lines() -> None:
    assert len(inspect.getsource(add_he_initialisation).splitlines()) <= 15


@pytest.mark.slow
def test_tables_report_and_mlflow_show_a_new_initialisation(
    ray_on_this_machine: None,
    small_project: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    with_he_initialisation: None,
) -> None:
    """The stages that show initialisations run; the results of the others, which the report reads too, are made up."""
    params = small_project()
    make_results(Path("results"))
    store = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for stage in (generate, train, evaluate, finetune, report):
        stage(params)

    architectures = pd.read_parquet("results/evaluate/architectures.parquet")
    assert architectures["initialisation"].tolist() == ["predicted", "random", "he"] * (len(architectures) // 3)
    losses = architectures.pivot(index=["split", "index"], columns="initialisation", values="loss")
    assert (losses["he"] != losses["random"]).all()
    summary = pd.read_csv("results/evaluate/summary.csv")
    assert summary["he_top1"].between(0, 1).all()
    assert summary["he_nonfinite"].ge(0).all()
    assert pd.read_csv("results/finetune/summary.csv")["initialisation"].tolist() == list(INITIALISATIONS)

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(params.tracking.experiment)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["evaluate"].data.metrics["test_he_top1"] == pytest.approx(summary["he_top1"][0])
    assert "faces_2_he_top1" in runs["finetune"].data.metrics
    table = client.download_artifacts(runs["evaluate"].info.run_id, "architectures.csv")
    assert set(pd.read_csv(table)["initialisation"]) == {"predicted", "random", "he"}

    page = Path("results/report")
    assert "He initialisation" in (page / "index.html").read_text()
    assert "he: top-1, %" in (page / "accuracy.md").read_text()
    assert "| he |" in (page / "finetuning.md").read_text()
