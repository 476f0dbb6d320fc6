"""Places under `results/`, where stages write small results; large data lie under the storage."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")
MANIFEST = RESULTS / "generate" / "manifest.json"
CHECKPOINT = RESULTS / "train" / "checkpoint"
SOURCES = RESULTS / "sgd" / "sources.json"


def results_folder(stage: str) -> Path:
    """Create the folder `results/<stage>` if it is missing and return it."""
    folder = RESULTS / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder
