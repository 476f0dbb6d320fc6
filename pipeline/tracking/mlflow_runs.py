"""Runs in MLflow: one parent run for the pipeline, one child run for each stage.

Stages are processes of their own, so the parent is found by its tags (settings, git commit, DVC experiment).
It stays open until the last stage succeeds: a stage that is run again, after a crash too, joins the same one.

The store is `MLFLOW_TRACKING_URI`, else `mlflow.db` and `mlartifacts` in the workspace. A stage begins only if the
store answers. From then on it does not depend on the store: what it logs goes through an outbox.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.params import flat_settings, settings_hash
from pipeline.secrets import hidden, without_user_info
from pipeline.tracking.entries import (
    CHECKPOINT,
    METRICS_PER_REQUEST,
    MODEL_CODE,
    MODEL_PACKAGE,
    AddColumns,
    EndPipeline,
    EndRun,
    ListTable,
    LogArtifacts,
    LogDataset,
    LogMetrics,
    RegisterModel,
    SetTag,
    ShareView,
)
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_private import EXPERIMENT_KIND, study_view, user_and_program
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.store import is_outage, open_store, tracking_uri, unusable
from pipeline.workspace import CODE, commit_and_changes, git

# MLflow takes seconds to import, and most of what imports this module only needs `tracking_uri`.
if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = ["StageRun", "stage_run", "tracking_uri"]

log = logging.getLogger(__name__)

REGISTERED_MODEL = Path(__file__).with_name("registered_model.py")

MODEL_REQUIREMENTS = ("mlflow", "numpy", "safetensors", "scipy", "torch")
"""What `ghn` and registered_model.py import."""

MODEL_SECONDS = 600.0
"""How long `log_ghn` waits for the address of the model."""

SECTIONS = {"train": ("train", "workers")}
"""Sections of the settings that a stage's run shows, where they are not the one with the stage's name alone."""

PARAMS_PER_REQUEST = 100
"""Limit of MLflow's log_batch."""

NOTE_LENGTH = 4000

COMMIT = "mlflow.source.git.commit"
"""MLflow's tag of the commit of a run."""


@contextmanager
def stage_run(
    stage: str,
    parameters: dict[str, Any],
    *,
    experiment: str = "ghn",
    last: bool = False,
    own: dict[str, Any] | None = None,
) -> Iterator[StageRun]:
    """Open the child run of one stage, and end it when the block ends: FINISHED, FAILED, or KILLED by Ctrl-C.

    `parameters` are all settings, nested, and `own` those that the stage's run shows, by default those of its section.
    A failure leaves the parent FAILED, and the next attempt joins it;
    the success of the `last` stage ends it.

    Raises:
        UserError: the store cannot be used when the block begins.
    """
    settings = flat_settings(parameters)
    run = _begin(stage, settings, experiment, _section(stage, settings) if own is None else flat_settings(own))
    interrupted = False
    try:
        yield run
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "".join(traceback.format_exception_only(error)).strip()
        run._put_end("KILLED" if interrupted else "FAILED", "FAILED", f"```\n{hidden(reason)[:NOTE_LENGTH]}\n```")
        raise
    else:
        run._put_end("FINISHED", "FINISHED" if last else None)
    finally:
        run._close(interrupted)


@dataclass(frozen=True)
class StageRun:
    """What a stage can log. Names of tables and figures have no suffix; a folder may lead (`plots/loss`)."""

    outbox: Outbox
    experiment_id: str
    pipeline_id: str
    run_id: str
    stage: str
    settings: dict[str, str]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the values of one step.

        Raises:
            UserError: a value is not finite.
        """
        self.outbox.put(LogMetrics(self.run_id, self._finite(metrics, step or 0)))

    def log_history(self, rows: list[dict[str, float]]) -> None:
        """Log a whole curve, one row per `step`.

        Raises:
            UserError: a value is not finite; then nothing is logged.
        """
        metrics: list[tuple[str, float, int, int]] = []
        for row in rows:
            values = {name: value for name, value in row.items() if name != "step"}
            metrics += self._finite(values, int(row["step"]))
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self.outbox.put(LogMetrics(self.run_id, metrics[start : start + METRICS_PER_REQUEST]))

    def summary(self, metrics: dict[str, float]) -> None:
        """Log headline figures, here and on the pipeline's run: columns of the view `ghn` of the run list.

        All stages share that row: a name says what it measures without the stage (`test_top1`).
        """
        values = self._finite(metrics, 0)
        for run_id in (self.run_id, self.pipeline_id):
            self.outbox.put(LogMetrics(run_id, values))
        self.outbox.put(AddColumns(self.experiment_id, list(metrics)))

    def share_study_view(
        self, search: str, params: Sequence[str], metrics: Sequence[str], curves: Sequence[str]
    ) -> None:
        """Share the view `study` of the experiment, which charts the runs that `search` finds: see `study_view`."""
        self.outbox.put(ShareView(self.experiment_id, "study", study_view(search, params, metrics, curves)))

    def log_data(self, name: str, version: str) -> None:
        """Log which data the stage reads, here and on the pipeline's run: `version` changes whenever the data do."""
        for run_id in (self.run_id, self.pipeline_id):
            self.outbox.put(LogDataset(run_id, name, version))

    def log_table(self, frame: pandas.DataFrame, name: str) -> None:
        """Log a table as `name.json`, which the MLflow page shows and compares over runs, and `name.csv`."""
        folder, file = _split(name)

        def write(files: Path) -> None:
            frame.to_json(files / f"{file}.json", orient="split", index=False, date_format="iso")
            frame.to_csv(files / f"{file}.csv", index=False)

        self.outbox.put(LogArtifacts(self.run_id, folder), write)
        self.outbox.put(ListTable(self.run_id, f"{name}.json"))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a matplotlib figure as `name.png`."""
        folder, file = _split(name)
        self.outbox.put(LogArtifacts(self.run_id, folder), lambda files: figure.savefig(files / f"{file}.png", dpi=150))

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all that is in it."""
        source = Path(path).resolve(strict=True)
        self.outbox.put(LogArtifacts(self.run_id, folder), lambda files: _copy(source, files / source.name))

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Tag the stage's run."""
        for key, value in tags.items():
            self.outbox.put(SetTag(self.run_id, key, hidden(str(value))))

    def log_ghn(self, checkpoint_folder: str | Path) -> str | None:
        """Log and register a GHN checkpoint.

        Return the address that loads it, such as `models:/ghn/1`; None if MLflow does not have the model yet.
        """
        import ghn

        checkpoint = Path(checkpoint_folder).resolve(strict=True)

        def write(files: Path) -> None:
            _copy(checkpoint, files / CHECKPOINT)
            _copy(REGISTERED_MODEL, files / MODEL_CODE)
            _copy(Path(ghn.__file__).parent, files / MODEL_PACKAGE)

        model = RegisterModel(
            key=uuid.uuid4().hex,
            name="ghn",
            experiment_id=self.experiment_id,
            run_id=self.run_id,
            pipeline_id=self.pipeline_id,
            params=self.settings,
            requirements=[f"{each}=={version(each).split('+')[0]}" for each in MODEL_REQUIREMENTS],
        )
        return self.outbox.put(model, write, patience=MODEL_SECONDS)

    def _finite(self, values: dict[str, float], step: int) -> list[tuple[str, float, int, int]]:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} = {float(value)} at step {step} of stage {self.stage}: must be finite.\n"
                    "The run ends as failed, because its results could not be trusted."
                )
        now = _now()
        return [(name, float(value), now, step) for name, value in values.items()]

    def _put_end(self, status: str, pipeline_status: str | None, note: str | None = None) -> None:
        """Log the end of the run, and of the pipeline's run where it ends too, without waiting."""
        now = _now()
        if note is not None:
            self.outbox.put(SetTag(self.run_id, "mlflow.note.content", note), patience=0)
        self.outbox.put(EndRun(self.run_id, status, now), patience=0)
        if pipeline_status is not None:
            self.outbox.put(EndPipeline(self.experiment_id, self.pipeline_id, pipeline_status, now), patience=0)

    def _close(self, interrupted: bool) -> None:
        """Wait for the deliveries, and report entries that are left."""
        try:
            self.outbox.flush(interrupted)
        finally:
            left = self.outbox.close()
            if left:
                folder = self.outbox.journal.folder
                log.warning("%d entries for MLflow are kept in %s: `ghn deliver` delivers them", left, folder)


def _now() -> int:
    """Return the time in milliseconds, as MLflow stores it."""
    return int(time.time() * 1000)


def _split(name: str) -> tuple[str | None, str]:
    """Return folder and file of an artifact's name; the folder is None for a name without one."""
    path = PurePosixPath(name)
    return (None if path.parent == PurePosixPath() else str(path.parent)), path.name


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def _section(stage: str, settings: dict[str, str]) -> dict[str, str]:
    """Return the settings of a stage's sections, and those in no section."""
    sections = SECTIONS.get(stage, (stage,))
    return {key: value for key, value in settings.items() if "." not in key or key.partition(".")[0] in sections}


def _begin(stage: str, settings: dict[str, str], experiment: str, own: dict[str, str]) -> StageRun:
    """Join or start the pipeline's run, create the stage's run below it, and open its outbox."""
    client = open_store()
    try:
        with _one_process_at_a_time(client.tracking_uri):
            experiment_id = _experiment(client, experiment)
            pipeline_id = _join_or_start_pipeline(client, experiment_id, settings)
        _end_abandoned_runs(client, experiment_id, pipeline_id, stage)
        run_id = _create_run(client, experiment_id, stage, {"mlflow.parentRunId": pipeline_id})
        _log_parameters(client, run_id, own)
    except Exception as error:
        if isinstance(error, UserError) or not is_outage(error):
            raise
        raise unusable(client.tracking_uri, error) from error
    outbox = Outbox(client, Journal.create(run_id, stage, client.tracking_uri))
    return StageRun(outbox, experiment_id, pipeline_id, run_id, stage, settings)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        uri = client.tracking_uri
        local = uri.startswith("sqlite:///")
        database = Path(uri.removeprefix("sqlite:///"))
        artifacts = (database.parent / "mlartifacts" / name).as_uri() if local else None
        return client.create_experiment(name, artifact_location=artifacts, tags=EXPERIMENT_KIND)
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name} was deleted in MLflow: restore it with\n"
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


def _join_or_start_pipeline(client: MlflowClient, experiment_id: str, settings: dict[str, str]) -> str:
    dvc_experiment = os.environ.get("DVC_EXP_NAME")
    commit, changes = commit_and_changes(*CODE)
    key = {
        "ghn.pipeline": settings_hash(settings, 16),
        COMMIT: commit or "unknown",
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
        dirty = "unknown" if changes is None else str(bool(changes)).lower()
        pipeline_id = _create_run(client, experiment_id, name, key | {"git.dirty": dirty})
        if changes:
            client.log_text(pipeline_id, hidden(git("diff", "HEAD", "--", *CODE) or ""), "uncommitted.diff")
    _log_parameters(client, pipeline_id, settings)
    return pipeline_id


def _create_run(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    found = {key: hidden(value) for key, value in user_and_program().items()}
    commit = {COMMIT: git("rev-parse", "HEAD") or "unknown"}  # MLflow looks beside the program, not here
    return client.create_run(experiment_id, tags=found | commit | tags, run_name=name).info.run_id


def _end_abandoned_runs(client: MlflowClient, experiment_id: str, pipeline_id: str, stage: str) -> None:
    """End the runs of this stage that their processes left open, because they lost power or memory."""
    same = f"tags.`mlflow.parentRunId` = '{pipeline_id}' and attributes.run_name = '{stage}'"
    for run in client.search_runs([experiment_id], f"{same} and attributes.status = 'RUNNING'"):
        client.set_terminated(run.info.run_id, "KILLED")


def _log_parameters(client: MlflowClient, run_id: str, settings: dict[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in settings.items()]
    for start in range(0, len(params), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_REQUEST])


@contextmanager
def _one_process_at_a_time(store: str) -> Iterator[None]:
    """Keep two stages that start at once from each creating a parent."""
    name = hashlib.sha256(without_user_info(store).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"ghn-tracking-{os.getuid()}-{name}.lock"):
        yield
