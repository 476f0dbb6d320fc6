"""Private interfaces of MLflow, checked with MLflow 3.17."""

from __future__ import annotations

RUN_LIST_VIEW = "mlflow.sharedViewState.ghn"
"""Tag of an experiment in which the MLflow page keeps the view of the run list that was shared as `ghn`."""

EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose page opens as one for training, not as one for language models."""

LOGGED_TABLES = "mlflow.loggedArtifacts"
"""Tag of a run that lists the tables which the MLflow page shows and compares, as JSON."""

NOISY_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool", "mlflow.utils.rest_utils")
"""Loggers that report each migration, each retry and each database error; the pipeline reports what matters itself."""


def user_and_program() -> dict[str, str]:
    """Return the tags that MLflow gives a run of its fluent interface: user, program, git commit."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags()
