"""Error messages about settings: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.params.sections import Section, section_of

MOVED_KEYS = {
    "train.learning_rate": "train.optimizer.learning_rate",
    "train.weight_decay": "train.optimizer.weight_decay",
    "train.schedule": "train.schedule.name",
    "train.warmup": "train.schedule.warmup",
    "train.milestones": "train.schedule.milestones",
    "train.decay": "train.schedule.decay",
    "train.validate_every": "train.validation.every",
    "train.validate_architectures": "train.validation.architectures",
    "train.validate_images": "train.validation.images",
    "train.slices": "train.micro_batches",
    "train.workers": "workers.number",
    "train.min_workers": "workers.minimum",
    "train.cpus_per_worker": "workers.cpus",
    "train.gpus_per_worker": "workers.gpus",
    "train.placement": "workers.placement",
    "train.max_failures": "workers.max_failures",
    "train.checkpoint_every": "workers.checkpoint_every",
    "train.profile_steps": "workers.profile_steps",
}
"""New names of keys that earlier versions of `params.yaml` had, by their old names."""


def explain(error: ValidationError, source: str | Path, section: type[Section]) -> str:
    """Return the keys that have moved, or the first two problems, a line each, and the number of the others.

    Args:
        source: where the values come from.
        section: what was validated: keys of it are suggested for unknown ones.
    """
    problems = error.errors()
    moved = [key for key in MOVED_KEYS if any(_is_moved(problem, key) for problem in problems)]
    if moved:  # they explain the sections that are missing too
        return f"{', '.join(f'{key} is now {MOVED_KEYS[key]}' for key in moved)} (in {source})"
    lines = [_line(problem, source, section) for problem in problems]
    if len(lines) > 2:
        lines[2:] = [f"… and {len(lines) - 2} more"]
    return "\n".join(lines)


def _is_moved(problem: ErrorDetails, key: str) -> bool:
    if ".".join(map(str, problem["loc"])) != key:
        return False
    became_a_section = MOVED_KEYS[key].startswith(f"{key}.")
    return problem["type"] == ("model_type" if became_a_section else "extra_forbidden")


def _line(problem: ErrorDetails, source: str | Path, section: type[Section]) -> str:
    keys = [str(key) for key in problem["loc"]]
    name, value = ".".join(keys), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name} in {source}{_suggestion(keys, section)}"
    if problem["type"] == "missing":
        return f"{name} is missing in {source}"
    if problem["type"] == "model_type":
        return f"{name} = {_shown(value)} in {source}: must be a section of keys"
    if problem["type"] == "value_error":
        prefix = f"{name}." if name else ""  # the error names the key
        return f"{prefix}{problem['ctx']['error']} (in {source})"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{name} = {_shown(value)} in {source}: must be {message}"


def _shown(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, str | int | float | None) else str(value)
    return text[:100]


def _suggestion(keys: Sequence[str], section: type[Section]) -> str:
    for key in keys[:-1]:
        section = section_of(key, section) or section
    known = list(section.model_fields)
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f": did you mean {close[0]}?" if close else f": must be one of {', '.join(known)}"
