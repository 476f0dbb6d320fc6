"""Schedules of the learning rate, as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def multi_step(base: float, step: int, steps: int, milestones: Sequence[float], decay: float) -> float:
    """Return `base`, multiplied by `decay` once for each milestone that the step has reached.

    Args:
        step: steps before this one.
        steps: steps of the whole run.
        milestones: fractions of the run; ⅔ and ⅚ as published (Knyazev et al., NeurIPS 2021).
        decay: 0.1 as published.
    """
    return base * decay ** sum(step >= milestone * steps for milestone in milestones)


def cosine(base: float, step: int, steps: int) -> float:
    """Return base · (1 + cos(π · step / steps)) / 2, which falls from `base` to 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5.

    Args:
        step: steps before this one.
        steps: steps of the whole run.
    """
    return base * (1 + math.cos(math.pi * step / steps)) / 2


def warm_up(step: int, steps: int) -> float:
    """Return a factor that rises in equal increments, is 1 at the last step of the warm-up, and stays 1.

    Args:
        step: steps before this one.
        steps: steps of the warm-up; 0 for none.
    """
    return min(1.0, (step + 1) / steps) if steps else 1.0
