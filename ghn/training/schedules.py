"""How the learning rate changes over a run: functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def multi_step(base: float, step: int, steps: int, milestones: Sequence[float], decay: float) -> float:
    """Multiplied by `decay` at each of the shares `milestones` of all steps (as published: ⅔ and ⅚, 0.1)."""
    return base * decay ** sum(step >= share * steps for share in milestones)


def cosine(base: float, step: int, steps: int) -> float:
    """Half a cosine from `base` down to 0 at the end (Loshchilov and Hutter, "SGDR", ICLR 2017, eq. 5)."""
    return base * (1 + math.cos(math.pi * step / steps)) / 2


def warm_up(step: int, steps: int) -> float:
    """A factor that rises in equal steps to 1, which it reaches at the last of the first `steps` steps."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
