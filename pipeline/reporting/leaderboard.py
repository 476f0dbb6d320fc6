"""The leaderboard that `benchmarks/learning.py` writes: what a row holds, and which one is shown.

A row is one way to train with several seeds. Times are minutes of training, accuracies are in percent. The row that is
shown for a data set is the last one with at least three seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import UserError

LEADERBOARD = Path("benchmarks/leaderboard.json")
"""The leaderboard in the project's folder."""

RACE_SPLITS = ("test", "wide", "deep", "dense", "bn_free")
NETWORK = "resnet50"

TARGETS = (60, 70, 80)
"""Accuracies in percent whose time is measured."""

FEWEST_SEEDS = 3
"""Seeds of a row that is shown."""

Percent = Annotated[float, Field(ge=0, le=100)]
Minutes = Annotated[float, Field(ge=0)]


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SeedResult(_Measured):
    """What one seed gave.

    Attributes:
        seed: that of the run.
        steps: of training.
        minutes: all steps together; neither validation nor the start of processes.
        seconds_per_step: their mean.
        minutes_to: minutes until the first validation that reached an accuracy, by the accuracy in percent, or None.
        top1: mean over all architectures of a split on test images, by split.
        resnet50: top-1 of torchvision's ResNet-50.
        curve: minutes and top-1 of each validation.
    """

    seed: int
    steps: Annotated[int, Field(ge=1)]
    minutes: Minutes
    seconds_per_step: float
    minutes_to: dict[str, Minutes | None]
    top1: dict[str, Percent]
    resnet50: Percent
    curve: list[tuple[Minutes, Percent]] = []


class LeaderboardRow(_Measured):
    """One way to train, with the results of its seeds.

    Attributes:
        name: of the row.
        dataset: what was trained and evaluated on.
        minutes: the minutes of training that the number of steps was chosen for.
        command: the one that makes the row.
        machine: the processor.
        commit: the code.
        date: when the row was written.
        seeds: a result for each.
    """

    name: str
    dataset: str
    minutes: Minutes
    command: str
    machine: str
    commit: str
    date: str
    seeds: Annotated[list[SeedResult], Field(min_length=1)]

    def top1(self, split: str) -> MeanAndError:
        """Return the mean top-1 over a split's architectures, in percent, over seeds."""
        return mean_and_error([seed.top1[split] for seed in self.seeds])


class MeanAndError(NamedTuple):
    """A mean over seeds and its standard error, which is None for one seed."""

    mean: float
    error: float | None

    def words(self, digits: int = 1) -> str:
        """Return mean ± standard error."""
        text = f"{self.mean:,.{digits}f}"
        return text if self.error is None else f"{text} ± {self.error:,.{digits}f}"


def mean_and_error(values: Sequence[float]) -> MeanAndError:
    """Return the mean over seeds and its standard error."""
    return MeanAndError(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def read_leaderboard(path: Path = LEADERBOARD) -> list[LeaderboardRow]:
    """Return the rows of the leaderboard, oldest first; none if there is no such file.

    Raises:
        UserError: the file is not a leaderboard.
    """
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[LeaderboardRow]).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or "the content"
        raise UserError(f"{path} is not a leaderboard: {name}: {problem['msg']}") from error


def leaderboard_json(rows: Sequence[LeaderboardRow]) -> str:
    """Return the content of the file, each seed in one line, because a curve has many numbers."""
    lines = []
    for row in rows:
        content = row.model_dump(mode="json")
        seeds = ",\n".join(f"   {json.dumps(seed)}" for seed in content.pop("seeds"))
        fields = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in content.items())
        lines.append(f' {{\n{fields}  "seeds": [\n{seeds}\n  ]\n }}')
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def shown_row(rows: Sequence[LeaderboardRow], dataset: str) -> LeaderboardRow | None:
    """Return the last row of a data set with at least three seeds, or None."""
    fitting = [row for row in rows if row.dataset == dataset and len(row.seeds) >= FEWEST_SEEDS]
    return fitting[-1] if fitting else None
