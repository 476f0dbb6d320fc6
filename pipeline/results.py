"""The folders under `results/` that the stages write."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")
MANIFEST = RESULTS / "generate" / "manifest.json"
CHECKPOINT = RESULTS / "train" / "checkpoint"


def results_folder(stage: str) -> Path:
    """`results/<stage>`, which exists afterwards."""
    folder = RESULTS / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder
