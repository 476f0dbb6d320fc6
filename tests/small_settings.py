"""Settings so small that a stage of the pipeline takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.params import with_changes

ROOT = Path(__file__).parents[1]

SMALL = {
    "dataset": "digits",
    "meta_batch": 3,
    "images": {"size": 8},
    "generate": {"train": 12, "val": 2, "test": 3, "wide": 2, "deep": 2, "dense": 2, "bn_free": 2, "shard_rows": 5},
    "hypernetwork": {"hidden": 8, "kernel": 5},
    "train": {
        "steps": 6,
        "batch": 8,
        "widths": [8, 16],
        "head_widths": [16],
        "norm_free": None,
        "ema": 0.9,
        "schedule": {"name": "cosine", "warmup": 2},
        "validation": {"every": 3, "architectures": 2},
    },
    "workers": {"number": 1, "checkpoint_every": 10},
    "sgd": {
        "architectures": {"val": 1, "test": 2, "wide": 1},
        "sources": 2,
        "epochs": [1, 2],
        "batch": 256,
        "learning_rates": [0.1],
        "tuning_architectures": 1,
    },
    "evaluate": {"images": 60, "width": 8, "head_width": 16, "running_statistics": 1, "similarity": 10},
    "copies": {"architectures": 2},
    "finetune": {
        "datasets": ["faces"],
        "architectures": 1,
        "images_per_class": [2],
        "seeds": 1,
        "steps": 2,
        "learning_rates": [0.01],
        "tuning_architectures": 1,
        "evaluate_every": 1,
    },
    "adapt": {
        "images_per_class": [2],
        "architectures": 1,
        "steps": 2,
        "batch": 8,
        "validate_every": 1,
        "learning_rates": [0.01],
        "tuning_architectures": 1,
        "alone_steps": 2,
        "learning_rate_limits": [0.001, 0.1],
    },
    "condition": {
        "datasets": ["digits", "faces"],
        "unseen": ["mnist_5k"],
        "images_per_class": 2,
        "architectures": 1,
        "tuning_architectures": 1,
        "steps": 2,
        "batch": 8,
        "validate_every": 2,
    },
    "detect": {
        "size": 32,
        "images": 5,
        "test_images": 2,
        "epochs": 1,
        "batch": 2,
        "learning_rates": [0.02],
    },
    "study": {"variants": ["mlp"], "minutes": 0.02, "architectures": 1, "images": 20},
    "properties": {"batch": 4, "repeats": 2, "resamples": 100},
    "cluster": {"cpus": 1},
}


def small_settings(**changes: Any) -> dict[str, Any]:
    """Return the project's own settings, made small; `changes` are values of whole keys, or of keys in sections."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    return with_changes(with_changes(values, SMALL), changes)


def preset_settings(name: str) -> dict[str, Any]:
    """Return the project's own settings with those of `params/<name>.yaml`."""
    values, preset = (yaml.safe_load((ROOT / file).read_text()) for file in ("params.yaml", f"params/{name}.yaml"))
    return with_changes(values, preset)
