"""The records of a run that travel from the workers to the driver, and that checkpoints keep."""

from __future__ import annotations

from typing import TypedDict

Row = dict[str, float]
"""Values of one step, or means of several, by the name of their column in the history."""


NORM_QUANTILES = {"median": 0.5, "p90": 0.9, "max": 1.0}
"""Quantiles of the norms of single architectures' gradients, whose columns are `architecture_norm_median` and so on."""


class DroppedArchitecture(TypedDict):
    """An architecture whose loss or gradient was not finite, so that a step left it out.

    `index` is its position in the training split, `identity` its network hash.
    """

    step: int
    index: int
    identity: str
