"""A project folder with settings so small that a stage takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[2]

SMALL = {
    "dataset": "digits",
    "meta_batch": 3,
    "images": {"size": 8},
    "generate": {"train": 12, "val": 2, "test": 3, "wide": 2, "deep": 2, "dense": 2, "bn_free": 2, "shard_rows": 5},
    "hypernetwork": {"hidden": 8, "kernel": 5},
    "train": {"steps": 6, "batch": 8, "widths": [8, 16], "head_widths": [16], "checkpoint_every": 2, "workers": 1},
    "evaluate": {"width": 8, "head_width": 16},
    "finetune": {
        "datasets": ["faces"],
        "architectures": 1,
        "images_per_class": 2,
        "seeds": 1,
        "steps": 2,
        "learning_rates": [0.01],
        "evaluate_every": 1,
    },
    "cluster": {"cpus": 2},
}


def small_settings(**changes: Any) -> dict[str, Any]:
    """The project's own settings, made small; `changes` are values of whole keys, or of keys in sections."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for settings in (SMALL, changes):
        for key, value in settings.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
    return values


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Params]]:
    """Makes an empty project folder, the working directory; called, it writes and reads the settings there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def settings(**changes: Any) -> Params:
        Path("params.yaml").write_text(yaml.safe_dump(small_settings(**changes)))
        return load_params()

    yield settings
    torch.set_num_threads(threads)
