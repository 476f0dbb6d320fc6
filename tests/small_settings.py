"""Settings so small that a stage of the pipeline takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
        "checkpoint_every": 10,
        "validate_every": 3,
        "schedule": "cosine",
        "warmup": 2,
        "ema": 0.9,
        "validate_architectures": 2,
        "workers": 1,
    },
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
