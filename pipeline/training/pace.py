"""How many steps a training run takes in a given time."""

from __future__ import annotations

import pandas as pd

from pipeline.architectures.store import ArchitectureStore
from pipeline.images.dataset import Images
from pipeline.params import Params
from pipeline.training.hypernetwork_training import trained_hypernetwork

TIMED_STEPS, WARM_UP = 50, 10
"""Steps of the run that measures the seconds per step, and how many of them are left out."""


def seconds_per_step(params: Params, store: ArchitectureStore, images: Images) -> float:
    """Return the mean seconds per step of a short run with the same settings, whose weights are thrown away.

    The time of a step varies with the architectures in it, and more between machines than anything else: a number that
    is measured elsewhere or at another time is no measure of this run.

    Raises:
        UserError: the run cannot go on, or it has diverged.
        Terminated: SIGTERM came before the last step.
    """
    changes = {"steps": TIMED_STEPS, "log_every": 1}
    with trained_hypernetwork(params.with_train(**changes), store, images, None) as trained:
        history: pd.DataFrame = trained.history
    return float(history["step_seconds"].iloc[WARM_UP:].mean())


def steps_within(minutes: float, seconds: float) -> int:
    """Return how many steps of so many seconds each take so many minutes, at least one."""
    return max(1, round(60 * minutes / seconds))
