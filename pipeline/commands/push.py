"""Command `push`: a registered hypernetwork with what MLflow knows of it, on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import PurePath

from ghn import GHN, CheckpointError
from pipeline.errors import UserError
from pipeline.results import CHECKPOINT
from pipeline.secrets import hidden
from pipeline.tracking.store import client_of, is_outage, reason_of, tracking_uri

REGISTERED = re.compile(r"models:/(?P<name>[^/]+)/(?P<version>\d+)")

SHOWN_SECTIONS = ("dataset", "meta_batch", "images", "hypernetwork", "train")
"""Sections of the settings that the card shows."""

NOT_SHOWN = ("images.folder", "images.tokenizer")
"""Settings of these that are matters of one machine."""


def push(model: str, repository: str, private: bool = False) -> None:
    """Upload a registered hypernetwork, with a card of its settings and of the results of its pipeline.

    Args:
        model: its address in MLflow, such as `models:/ghn/1`.
        repository: `owner/name` on the hub.
        private: whether a new repository is private.

    Raises:
        UserError: MLflow does not have the model or does not answer, or the hub refuses or does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, settings, metrics = _registered(model, scratch)
        try:
            ghn = GHN.from_pretrained(checkpoint)
            url = ghn.push_to_hub(repository, card_sections(settings, metrics), private)
        except CheckpointError as error:
            raise UserError(str(error)) from error
    print(f"{model} is at {url}")


def card_sections(settings: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Return the sections of a card: the results of all stages, and the settings of training."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items()))
    names = [name for name in settings if name.partition(".")[0] in SHOWN_SECTIONS and name not in NOT_SHOWN]
    shown = {name: settings[name].replace("|", "\\|") for name in names}
    if "dataset" in shown:
        shown["dataset"] = PurePath(shown["dataset"]).name  # it may be a folder
    lines = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    results = f"\n## Results\n\nOf the run in MLflow.\n\n| metric | value |\n| --- | --- |\n{rows}\n" if metrics else ""
    return f"{results}\n## How it was trained\n\n| setting | value |\n| --- | --- |\n{lines}\n"


def _registered(model: str, scratch: str) -> tuple[str, dict[str, str], dict[str, float]]:
    """Return a registered hypernetwork's checkpoint folder, the settings of its run, and the metrics of its pipeline.

    Where the pipeline has another model by now, the metrics are those of training alone.
    """
    parts = REGISTERED.fullmatch(model)
    if parts is None:
        raise UserError(f"{model} is no registered model: must be such as models:/ghn/1")
    uri = tracking_uri()
    client = client_of(uri)
    from mlflow import artifacts
    from mlflow.exceptions import MlflowException

    try:
        source = client.get_model_version(parts["name"], parts["version"]).source or ""
        logged = client.get_logged_model(source.removeprefix("models:/"))
        run = client.get_run(logged.source_run_id or "")
        pipeline = client.get_run(run.data.tags.get("mlflow.parentRunId", run.info.run_id))
        checkpoint = artifacts.download_artifacts(
            artifact_uri=f"{logged.artifact_location}/artifacts/{CHECKPOINT.name}", dst_path=scratch, tracking_uri=uri
        )
    except Exception as error:
        if is_outage(error):
            raise UserError(f"MLflow at {hidden(uri)} does not answer: {reason_of(error)}") from error
        if not isinstance(error, MlflowException):
            raise
        raise UserError(f"MLflow does not have {model}: {reason_of(error)}") from error
    is_last = pipeline.data.tags.get("model") == model
    return checkpoint, logged.params, (pipeline if is_last else run).data.metrics
