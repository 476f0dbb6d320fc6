"""Made-up rows of the leaderboard."""

from __future__ import annotations

from typing import Any

from pipeline.reporting.leaderboard import RACE_SPLITS, LeaderboardRow, SeedResult

TOP1 = dict(zip(RACE_SPLITS, (70.0, 62.0, 69.0, 69.5, 35.0), strict=True))


def a_seed(seed: int = 0, shift: float = 0.0, **changes: Any) -> SeedResult:
    """Return a result whose accuracies are `shift` points above those of `TOP1`."""
    values: dict[str, Any] = {
        "seed": seed,
        "steps": 2000,
        "minutes": 10.0,
        "seconds_per_step": 0.3,
        "minutes_to": {"60": 4.0 + shift, "70": None, "80": None},
        "top1": {split: top1 + shift for split, top1 in TOP1.items()},
        "resnet50": 55.0,
        "curve": [(5.0, 62.0 + shift), (10.0, 69.0 + shift)],
    }
    return SeedResult(**values | changes)


def a_row(name: str = "a row", shifts: tuple[float, ...] = (-1.0, 0.0, 1.0), **changes: Any) -> LeaderboardRow:
    """Return a row with a seed for each shift of the accuracies."""
    values: dict[str, Any] = {
        "name": name,
        "dataset": "mnist_5k",
        "minutes": 10.0,
        "command": f"python benchmarks/learning.py '{name}'",
        "machine": "a machine",
        "commit": "0123456789ab",
        "date": "2026-01-01",
        "seeds": [a_seed(seed, shift) for seed, shift in enumerate(shifts)],
    }
    return LeaderboardRow(**values | changes)
