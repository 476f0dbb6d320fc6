"""Runs in MLflow: one parent run for the pipeline, one child run for each stage.

Stages are processes of their own, so the parent is found by its tags (settings, git commit, DVC experiment).
It stays open until the last stage succeeds: a stage that is run again, after a crash too, joins the same one.

The store is `MLFLOW_TRACKING_URI`, else `mlflow.db` and `mlartifacts` in the workspace.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.workspace import CODE, git, workspace

# MLflow takes seconds to import, and who only asks for `workspace()` does not need it.
if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

REGISTERED_MODEL = Path(__file__).with_name("registered_model.py")
MODEL_REQUIREMENTS = ("mlflow", "numpy", "safetensors", "scipy", "torch")  # of ghn and registered_model.py
METRICS_A_CALL = 1000  # limits of MLflow's log_batch
PARAMS_A_CALL = 100
RUN_LIST_VIEW = "mlflow.sharedViewState.ghn"  # where the MLflow page keeps a view that was shared as `ghn`


def tracking_uri() -> str:
    """The address of the store; that of an SQLite file is absolute, so that it is the same from anywhere."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{workspace() / uri.removeprefix('sqlite:///')}"


def flatten(parameters: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` -> text: strings as they are, all else as JSON."""
    flat = {}
    for key, value in parameters.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


@contextmanager
def stage_run(
    stage: str, parameters: dict[str, Any], *, experiment: str = "ghn", last: bool = False
) -> Iterator[StageRun]:
    """The child run of one stage, ended when the block ends: FINISHED, FAILED, or KILLED by Ctrl-C.

    `parameters` are all settings, nested. A failure leaves the parent FAILED, and the next attempt joins it;
    the success of the `last` stage ends it. Raises UserError if the store cannot be used.
    """
    settings = flatten(parameters)
    client = _open_store()
    with _one_process_at_a_time(client.tracking_uri):
        experiment_id = _experiment(client, experiment)
        pipeline_id = _join_or_start_pipeline(client, experiment_id, settings)
    _end_abandoned_runs(client, experiment_id, pipeline_id, stage)
    run_id = _create_run(client, experiment_id, stage, {"mlflow.parentRunId": pipeline_id})
    own = {key: value for key, value in settings.items() if "." not in key or key.startswith(f"{stage}.")}
    _log_parameters(client, run_id, own)
    try:
        yield StageRun(client, experiment_id, pipeline_id, run_id, stage, settings)
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        client.set_tag(run_id, "mlflow.note.content", f"```\n{reason[:4000]}\n```")
        client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        client.set_terminated(pipeline_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    if last:
        client.set_terminated(pipeline_id, "FINISHED")


@dataclass(frozen=True)
class StageRun:
    """What a stage can log. Names of tables and figures have no suffix; a folder may lead (`plots/loss`)."""

    client: MlflowClient
    experiment_id: str
    pipeline_id: str
    run_id: str
    stage: str
    settings: dict[str, str]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the values of one step; raises UserError for a value that is not finite."""
        self.client.log_batch(self.run_id, metrics=self._finite(metrics, step or 0))

    def log_history(self, rows: list[dict[str, float]], step_key: str = "step") -> None:
        """Log a whole curve, one row a step; raises UserError, and logs nothing, if a value is not finite."""
        metrics: list[Metric] = []
        for row in rows:
            values = {name: value for name, value in row.items() if name != step_key}
            metrics += self._finite(values, int(row[step_key]))
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_A_CALL])

    def summary(self, metrics: dict[str, float]) -> None:
        """Log headline figures, here and on the pipeline's run: columns of the view `ghn` of the run list.

        All stages share that row: a name says what it measures without the stage (`test_top1`).
        """
        values = self._finite(metrics, 0)
        self.client.log_batch(self.run_id, metrics=values)
        self.client.log_batch(self.pipeline_id, metrics=values)
        _add_columns(self.client, self.experiment_id, metrics)

    def log_data(self, name: str, version: str) -> None:
        """Log which data the stage reads, here and on the pipeline's run: `version` changes whenever the data do."""
        from mlflow.entities import Dataset, DatasetInput

        data = DatasetInput(Dataset(name, version, source_type="local", source=json.dumps({"version": version})))
        for run_id in (self.run_id, self.pipeline_id):
            self.client.log_inputs(run_id, [data])

    def log_table(self, frame: pandas.DataFrame, name: str) -> None:
        """Log a table as `name.json`, which the MLflow page shows and compares over runs, and `name.csv`."""
        self.client.log_table(self.run_id, frame, f"{name}.json")
        self.client.log_text(self.run_id, frame.to_csv(index=False), f"{name}.csv")

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a matplotlib figure as `name.png`."""
        self.client.log_figure(self.run_id, figure, f"{name}.png", save_kwargs={"dpi": 150})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all that is in it."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Tag the stage's run."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)

    def log_ghn(self, checkpoint_folder: str | Path, name: str = "ghn") -> str:
        """Log and register a GHN checkpoint; returns the address that loads it, such as `models:/ghn/1`."""
        import mlflow

        import ghn

        checkpoint = Path(checkpoint_folder).resolve(strict=True)
        # Created here, because `Model.log` would put it into the experiment of the process's active run.
        model = self.client.create_logged_model(
            self.experiment_id, name=name, source_run_id=self.run_id, params=self.settings
        )
        # `Model.log` takes no address, only that of the process, which is set here and put back.
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.client.tracking_uri)
        try:
            info = mlflow.models.Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                model_id=model.model_id,
                run_id=self.run_id,
                registered_model_name=name,
                python_model=str(REGISTERED_MODEL),
                artifacts={"checkpoint": str(checkpoint)},
                code_paths=[str(Path(ghn.__file__).parent)],
                # Given, because MLflow would else load the model in another process to find them.
                pip_requirements=[f"{each}=={version(each).split('+')[0]}" for each in MODEL_REQUIREMENTS],
            )
        finally:
            mlflow.set_tracking_uri(before)
        uri = f"models:/{name}/{info.registered_model_version}"
        self.client.set_tag(self.pipeline_id, "model", uri)
        return uri

    def _finite(self, values: dict[str, float], step: int) -> list[Metric]:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} = {float(value)} at step {step} of stage {self.stage}: must be finite.\n"
                    "The run ends as failed, because its results could not be trusted."
                )
        return [Metric(name, float(value), now, step) for name, value in values.items()]


def _open_store() -> MlflowClient:
    # MLflow reads these when it is imported. Without them it reports its use over the internet.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # The first run creates the tables of the SQLite file, with a line a migration.
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = tracking_uri()
    try:
        client = MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"MLflow cannot use its store (MLFLOW_TRACKING_URI) {uri}:\n{reason}") from error
    return client


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        uri = client.tracking_uri
        local = uri.startswith("sqlite:///")
        database = Path(uri.removeprefix("sqlite:///"))
        artifacts = (database.parent / "mlartifacts" / name).as_uri() if local else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens as one for LLMs
        return client.create_experiment(name, artifact_location=artifacts, tags=kind)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name} was deleted in MLflow: restore it with\n"
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


def _join_or_start_pipeline(client: MlflowClient, experiment_id: str, settings: dict[str, str]) -> str:
    settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    dvc_experiment = os.environ.get("DVC_EXP_NAME")
    key = {
        "ghn.pipeline": settings_hash,
        "mlflow.source.git.commit": git("rev-parse", "HEAD") or "unknown",
        "dvc.experiment": dvc_experiment or "none",
    }
    same = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in key.items())
    open_runs = client.search_runs(
        [experiment_id],
        f"{same} and attributes.status != 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if open_runs:
        pipeline_id = open_runs[0].info.run_id
        client.update_run(pipeline_id, status="RUNNING")
    else:
        name = dvc_experiment or f"{settings.get('dataset', 'run')} {datetime.now():%Y-%m-%d %H:%M}"
        dirty = bool(git("status", "--porcelain", "--", *CODE))
        pipeline_id = _create_run(client, experiment_id, name, key | {"git.dirty": str(dirty).lower()})
        if dirty:
            client.log_text(pipeline_id, git("diff", "HEAD", "--", *CODE) or "", "uncommitted.diff")
    _log_parameters(client, pipeline_id, settings)
    return pipeline_id


def _add_columns(client: MlflowClient, experiment_id: str, metrics: Iterable[str]) -> None:
    # The run list has no column for any metric until a reader chooses some; a shared view is a choice made.
    # It is at #/experiments/<id>/runs?workflowType=machine_learning&viewStateShareKey=ghn
    view = json.loads(client.get_experiment(experiment_id).tags.get(RUN_LIST_VIEW, "{}"))
    before = view.get("selectedColumns", ["params.`dataset`", "params.`meta_batch`"])
    columns = list(dict.fromkeys([*before, *(f"metrics.`{name}`" for name in metrics)]))
    if columns != before:
        client.set_experiment_tag(experiment_id, RUN_LIST_VIEW, json.dumps({**view, "selectedColumns": columns}))


def _create_run(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    user_and_program = resolve_tags()
    return client.create_run(experiment_id, tags=user_and_program | tags, run_name=name).info.run_id


def _end_abandoned_runs(client: MlflowClient, experiment_id: str, pipeline_id: str, stage: str) -> None:
    # A process that lost power or memory could not end its run, which would look alive for ever.
    same = f"tags.`mlflow.parentRunId` = '{pipeline_id}' and attributes.run_name = '{stage}'"
    for run in client.search_runs([experiment_id], f"{same} and attributes.status = 'RUNNING'"):
        client.set_terminated(run.info.run_id, "KILLED")


def _log_parameters(client: MlflowClient, run_id: str, settings: dict[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in settings.items()]
    for start in range(0, len(params), PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + PARAMS_A_CALL])


@contextmanager
def _one_process_at_a_time(store: str) -> Iterator[None]:
    """Keeps two stages that start at once from each creating a parent."""
    name = hashlib.sha256(store.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"ghn-tracking-{os.getuid()}-{name}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
