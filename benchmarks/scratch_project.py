"""A project in a temporary folder, where benchmarks train as users do."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from frame import ROOT

from pipeline.params import Params, read_values, with_changes


def project_settings(preset: str | None = None) -> dict[str, Any]:
    """Return the settings of the repository: `params.yaml`, with those of `params/<preset>.yaml`."""
    settings = read_values(ROOT / "params.yaml")
    return settings if preset is None else with_changes(settings, read_values(ROOT / f"params/{preset}.yaml"))


@contextmanager
def scratch_project(settings: dict[str, Any], cpus: int | None = None) -> Iterator[None]:
    """An empty project with these settings' architectures, the working directory of the block; a local Ray runs."""
    logging.basicConfig(format="%(message)s")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from pipeline.architectures.splits import store_architectures
    from pipeline.cluster.ray_cluster import ray_cluster

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("params.yaml").write_text(yaml.safe_dump(settings))  # marks the workspace
            with ray_cluster(num_cpus=cpus):
                store_architectures(Params.model_validate(settings))
                yield
        finally:
            os.chdir(before)


def trained(settings: dict[str, Any]) -> pd.DataFrame:
    """Train in the project, and return the history of the run."""
    from pipeline.stages.train import train

    train(Params.model_validate(settings))
    return pd.read_csv("results/train/history.csv")
