"""Entries: what a stage logs, each as a record that can be stored and delivered to MLflow later.

An entry may be delivered twice, because a sender can die between MLflow's answer and the removal of the entry. All
entries therefore leave the store the same when they are delivered twice: metrics keep the time at which they were
logged (MLflow stores a metric of the same name, step, time and value once), files replace themselves, and a model is
looked up by its key before it is registered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.tracking.mlflow_private import LOGGED_TABLES, RUN_LIST_VIEW, SHARED_VIEW

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_PER_REQUEST = 1000
"""Limit of MLflow's log_batch."""

MODEL_KEY = "ghn.key"
"""Tag of a logged model: the key of the entry that created it."""

CHECKPOINT, MODEL_CODE, MODEL_PACKAGE = "checkpoint", "registered_model.py", "ghn"
"""Names of a model's files in its entry's folder."""


class Entry(Protocol):
    """A record for MLflow. `files` is the entry's own folder, where it has one."""

    def deliver(self, client: MlflowClient, files: Path) -> Any: ...


@dataclass(frozen=True)
class LogMetrics:
    """Values of a run's metrics: (name, value, time in milliseconds, step) of each."""

    run_id: str
    metrics: Sequence[tuple[str, float, int, int]]

    def deliver(self, client: MlflowClient, files: Path) -> None:
        from mlflow.entities import Metric

        client.log_batch(self.run_id, metrics=[Metric(*metric) for metric in self.metrics])


@dataclass(frozen=True)
class SetTag:
    """A tag of a run."""

    run_id: str
    key: str
    value: str

    def deliver(self, client: MlflowClient, files: Path) -> None:
        client.set_tag(self.run_id, self.key, self.value)


@dataclass(frozen=True)
class LogDataset:
    """A data set that a run reads."""

    run_id: str
    name: str
    digest: str

    def deliver(self, client: MlflowClient, files: Path) -> None:
        from mlflow.entities import Dataset, DatasetInput

        source = json.dumps({"version": self.digest})
        client.log_inputs(
            self.run_id, [DatasetInput(Dataset(self.name, self.digest, source_type="local", source=source))]
        )


@dataclass(frozen=True)
class LogArtifacts:
    """Files and folders of a run, below `folder` of its artifacts (None: at the top)."""

    run_id: str
    folder: str | None

    def deliver(self, client: MlflowClient, files: Path) -> None:
        for path in sorted(files.iterdir()):
            client.log_artifact(self.run_id, str(path), self.folder)


@dataclass(frozen=True)
class ListTable:
    """An artifact of a run (`tables/summary.json`) that the MLflow page shows as a table.

    `MlflowClient.log_table` is not used, because it appends the rows again when it is called again.
    """

    run_id: str
    file: str

    def deliver(self, client: MlflowClient, files: Path) -> None:
        tables = json.loads(client.get_run(self.run_id).data.tags.get(LOGGED_TABLES, "[]"))
        table = {"path": self.file, "type": "table"}
        if table not in tables:
            client.set_tag(self.run_id, LOGGED_TABLES, json.dumps([*tables, table]))


@dataclass(frozen=True)
class AddColumns:
    """Metrics that are columns of the view `ghn` of an experiment's run list.

    Without a view, the run list of the MLflow page has no column for any metric. The view is at
    `#/experiments/<id>/runs?workflowType=machine_learning&viewStateShareKey=ghn`.
    """

    experiment_id: str
    metrics: Sequence[str]

    def deliver(self, client: MlflowClient, files: Path) -> None:
        view = json.loads(client.get_experiment(self.experiment_id).tags.get(RUN_LIST_VIEW, "{}"))
        before = view.get("selectedColumns", ["params.`dataset`", "params.`meta_batch`"])
        columns = list(dict.fromkeys([*before, *(f"metrics.`{name}`" for name in self.metrics)]))
        if columns != before:
            view = json.dumps({**view, "selectedColumns": columns})
            client.set_experiment_tag(self.experiment_id, RUN_LIST_VIEW, view)


@dataclass(frozen=True)
class ShareView:
    """A view of an experiment's runs, at `#/experiments/<id>/runs?viewStateShareKey=<name>`."""

    experiment_id: str
    name: str
    view: dict[str, Any]

    def deliver(self, client: MlflowClient, files: Path) -> None:
        client.set_experiment_tag(self.experiment_id, f"{SHARED_VIEW}{self.name}", json.dumps(self.view))


@dataclass(frozen=True)
class RegisterModel:
    """A checkpoint as a registered model. `key` is unique: a model with it is not registered again."""

    key: str
    name: str
    experiment_id: str
    run_id: str
    pipeline_id: str
    params: dict[str, str]
    requirements: Sequence[str]

    def deliver(self, client: MlflowClient, files: Path) -> str:
        """Return the address that loads the model, such as `models:/ghn/1`."""
        version = self._registered_version(client) or self._register(client, files)
        uri = f"models:/{self.name}/{version}"
        client.set_tag(self.pipeline_id, "model", uri)
        return uri

    def _registered_version(self, client: MlflowClient) -> str | None:
        models = client.search_logged_models([self.experiment_id], f"tags.`{MODEL_KEY}` = '{self.key}'")
        for model in models:
            for version in client.search_model_versions(f"name = '{self.name}'"):
                if version.source == f"models:/{model.model_id}":
                    return str(version.version)
            client.delete_logged_model(model.model_id)  # its upload was interrupted, and MLflow cannot resume it
        return None

    def _register(self, client: MlflowClient, files: Path) -> str:
        import mlflow

        # Created here, because `Model.log` would put it into the experiment of the process's active run.
        model = client.create_logged_model(
            self.experiment_id, self.name, source_run_id=self.run_id, tags={MODEL_KEY: self.key}, params=self.params
        )
        # `Model.log` takes no address, only that of the process, which is set here and put back.
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(client.tracking_uri)
        try:
            info = mlflow.models.Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                model_id=model.model_id,
                run_id=self.run_id,
                registered_model_name=self.name,
                python_model=str(files / MODEL_CODE),
                artifacts={"checkpoint": str(files / CHECKPOINT)},
                code_paths=[str(files / MODEL_PACKAGE)],
                # Given, because MLflow would else load the model in another process to find them.
                pip_requirements=list(self.requirements),
            )
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None where there was no address
        return str(info.registered_model_version)


@dataclass(frozen=True)
class EndRun:
    """The end of a stage's run, with its status and time in milliseconds."""

    run_id: str
    status: str
    end_time: int

    def deliver(self, client: MlflowClient, files: Path) -> None:
        client.set_terminated(self.run_id, self.status, self.end_time)


@dataclass(frozen=True)
class EndPipeline:
    """The end of a pipeline's run. A stage that began after `end_time` has opened it again, and it stays open."""

    experiment_id: str
    run_id: str
    status: str
    end_time: int

    def deliver(self, client: MlflowClient, files: Path) -> None:
        children = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.start_time > {self.end_time}"
        if not client.search_runs([self.experiment_id], children, max_results=1):
            client.set_terminated(self.run_id, self.status, self.end_time)


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        LogMetrics,
        SetTag,
        LogDataset,
        LogArtifacts,
        ListTable,
        AddColumns,
        ShareView,
        RegisterModel,
        EndRun,
        EndPipeline,
    )
}
"""The kinds of entries by the name under which they are stored."""


def to_json(entry: Entry) -> str:
    """Return an entry as text."""
    return json.dumps({"kind": type(entry).__name__, **asdict(entry)})  # type: ignore[call-overload]


def from_json(text: str) -> Entry:
    """Return the entry that `to_json` has written."""
    values = json.loads(text)
    return KINDS[values.pop("kind")](**values)


def can_merge(entries: Sequence[Entry]) -> bool:
    """Return whether the entries are metrics of one run that fit into one request."""
    metrics = [entry for entry in entries if isinstance(entry, LogMetrics)]
    return (
        len(metrics) == len(entries)
        and len({entry.run_id for entry in metrics}) == 1
        and sum(len(entry.metrics) for entry in metrics) <= METRICS_PER_REQUEST
    )


def merge(entries: Sequence[Entry]) -> Entry:
    """Return one entry in place of those that `can_merge`, or the only one."""
    if len(entries) == 1:
        return entries[0]
    metrics = [entry for entry in entries if isinstance(entry, LogMetrics)]
    return LogMetrics(metrics[0].run_id, [metric for entry in metrics for metric in entry.metrics])
