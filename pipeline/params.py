"""The settings of a pipeline run: `params.yaml`, typed and validated.

Every stage reads them once, when it begins. The values in a `Params` are possible: no other code checks them again.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails

from ghn.models.config import GHNConfig
from pipeline.errors import UserError

# Integers are strict: otherwise `true` would be 1. Numbers are not, because YAML reads 1e-3 as a text.
Integer = Annotated[int, Strict()]
Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Width = Annotated[Integer, Field(ge=8, multiple_of=8)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

Keys = tuple[str, ...]
"""A setting's key, after those of the sections that it lies in."""

SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bn_free")
"""Names of the stored splits. Split `predefined` is not stored: it is computed when it is evaluated."""

SAMPLED_SPLITS = tuple(split for split in SPLITS if split != "wide")
"""Names of the splits that are sampled or imported; `wide` is made from `test`."""

MAX_KERNEL = 16
"""The largest kernel, in positions, that has an embedding of its own in `ghn.models.node_encoder`."""

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


class Section(BaseModel):
    """A group of settings that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _require_increasing(name: str, values: Sequence[float]) -> None:
    """Raise ValueError unless the values are different and in increasing order."""
    if list(values) != sorted(set(values)):
        raise ValueError(f"{name} = {values}: must be different and in increasing order")


class ImageSettings(Section):
    """Images: their size, where they lie, and how they are augmented."""

    size: Annotated[Integer, Field(ge=8, le=224)]
    folder: str | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    shift: Natural
    flip: StrictBool

    @model_validator(mode="after")
    def _shift_is_less_than_the_size(self) -> ImageSettings:
        if self.shift >= self.size:
            raise ValueError(f"shift = {self.shift}: must be less than size = {self.size}")
        return self


class GenerateSettings(Section):
    """Numbers of architectures of each split, and the splits that are imported instead of sampled."""

    train: Count
    val: Count
    test: Count
    wide: Count
    deep: Count
    dense: Count
    bn_free: Count
    shard_rows: Count
    imported: dict[str, Annotated[str, Field(min_length=1)]]

    @model_validator(mode="after")
    def _imported_splits_exist(self) -> GenerateSettings:
        for split in self.imported:
            if split not in SAMPLED_SPLITS:
                raise ValueError(f"imported names split {split}: must be one of {', '.join(SAMPLED_SPLITS)}")
        return self

    @model_validator(mode="after")
    def _wide_comes_from_test(self) -> GenerateSettings:
        if "test" not in self.imported and self.wide > self.test:
            raise ValueError(f"wide = {self.wide} is more than test = {self.test}: must be at most as many")
        return self


_CONFIG_TYPES = get_type_hints(GHNConfig)
_HYPERNETWORK_FIELDS: dict[str, Any] = {
    field.name: (_CONFIG_TYPES[field.name], ...)
    for field in dataclasses.fields(GHNConfig)
    if field.name not in ("num_classes", "image_size")  # which follow from the images
}
_HypernetworkFields: Any = create_model("_HypernetworkFields", __base__=Section, **_HYPERNETWORK_FIELDS)


class HypernetworkSettings(_HypernetworkFields):
    """The fields of `GHNConfig`, which says what values are possible, except for the sizes of the images' task."""

    model_config = ConfigDict(strict=True)

    def config(self, num_classes: int, image_size: int) -> GHNConfig:
        """Return the configuration of a hypernetwork for so many classes and images of so many pixels a side.

        Raises:
            ValueError: a value is impossible.
        """
        return GHNConfig(num_classes=num_classes, image_size=image_size, **self.model_dump())

    @model_validator(mode="after")
    def _can_be_built(self) -> HypernetworkSettings:
        self.config(num_classes=1, image_size=1)  # any sizes: no other value depends on them
        if self.kernel > MAX_KERNEL:
            raise ValueError(f"kernel = {self.kernel}: must be at most {MAX_KERNEL}")
        return self


class OptimizerSettings(Section):
    """Settings of Adam."""

    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]


class ScheduleSettings(Section):
    """The learning rate as a function of the step."""

    name: Literal["multi_step", "cosine"]
    warmup: Natural
    milestones: list[Share]
    decay: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _milestones_increase(self) -> ScheduleSettings:
        _require_increasing("milestones", self.milestones)
        return self


class ValidationSettings(Section):
    """Validation during training, on architectures and images that are not trained on."""

    every: Count | None
    architectures: Count
    images: Annotated[float, Field(gt=0, le=0.5)]


class TrainSettings(Section):
    """What is learned: a change of any value trains another hypernetwork."""

    steps: Count
    batch: Annotated[Integer, Field(ge=2)]
    clip: Positive
    architecture_clip: Positive | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema: Share | None
    widths: Annotated[list[Width], Field(min_length=1)]
    head_widths: Annotated[list[Count], Field(min_length=1)]
    norm_free: Share | None
    max_nodes: Count
    micro_batches: Count
    precision: Literal["auto", "fp32", "bf16", "fp64"]
    log_every: Count
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    validation: ValidationSettings

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainSettings:
        if self.schedule.warmup >= self.steps:
            raise ValueError(f"schedule.warmup = {self.schedule.warmup}: must be less than train.steps = {self.steps}")
        return self

    @model_validator(mode="after")
    def _widths_increase(self) -> TrainSettings:
        _require_increasing("widths", self.widths)
        _require_increasing("head_widths", self.head_widths)
        return self


class WorkerSettings(Section):
    """How training is run: no value changes what is learned."""

    number: Count
    minimum: Count | None
    cpus: Count
    gpus: Annotated[Integer, Field(ge=0, le=1)]
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    max_failures: Natural
    checkpoint_every: Count
    profile_steps: Natural

    @model_validator(mode="after")
    def _minimum_is_at_most_the_number(self) -> WorkerSettings:
        if self.minimum is not None and self.minimum > self.number:
            raise ValueError(f"minimum = {self.minimum}: must be at most workers.number = {self.number}")
        return self


class EvaluateSettings(Section):
    """How stage evaluate scores predicted and other parameters."""

    batch: Annotated[Integer, Field(ge=2)]
    width: Width
    head_width: Count


class FinetuneSettings(Section):
    """What stage finetune transfers to, and how it trains there."""

    datasets: Annotated[list[str], Field(min_length=1)]
    architectures: Count
    images_per_class: Annotated[list[Count], Field(min_length=1)]
    seeds: Count
    steps: Count
    batch: Annotated[Integer, Field(ge=2)]
    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    learning_rate_limits: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    tuning_architectures: Count
    evaluate_every: Count

    @model_validator(mode="after")
    def _lists_increase(self) -> FinetuneSettings:
        _require_increasing("images_per_class", self.images_per_class)
        _require_increasing("learning_rates", self.learning_rates)
        _require_increasing("learning_rate_limits", self.learning_rate_limits)
        return self

    @model_validator(mode="after")
    def _learning_rates_are_within_the_limits(self) -> FinetuneSettings:
        lowest, highest = self.learning_rate_limits
        for rate in self.learning_rates:
            if not lowest <= rate <= highest:
                limits = f"learning_rate_limits = [{lowest:g}, {highest:g}]"
                raise ValueError(f"learning_rates has {rate:g}: must be within {limits}")
        return self


class ClusterSettings(Section):
    """The Ray cluster that the stages run on."""

    address: str | None
    cpus: Count | None


class TrackingSettings(Section):
    """Where MLflow keeps the runs."""

    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """All settings: the keys and sections of `params.yaml`, where each is described."""

    seed: Seed
    dataset: str
    meta_batch: Count
    storage: Annotated[str, Field(min_length=1)]
    images: ImageSettings
    generate: GenerateSettings
    hypernetwork: HypernetworkSettings
    train: TrainSettings
    workers: WorkerSettings
    evaluate: EvaluateSettings
    finetune: FinetuneSettings
    cluster: ClusterSettings
    tracking: TrackingSettings

    @model_validator(mode="after")
    def _storage_is_a_folder_or_a_bucket(self) -> Params:
        if ":" in self.storage and not re.match(r"s3://[^/]+", self.storage):
            raise ValueError(f"storage = {self.storage}: must be a folder, or s3://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _validation_architectures_exist(self) -> Params:
        validation = self.train.validation
        if validation.every is None or "val" in self.generate.imported:
            return self
        if validation.architectures > self.generate.val:
            raise ValueError(
                f"train.validation.architectures = {validation.architectures}: must be at most generate.val = "
                f"{self.generate.val}"
            )
        return self

    @model_validator(mode="after")
    def _finetuned_architectures_exist(self) -> Params:
        if "test" not in self.generate.imported and self.finetune.architectures > self.generate.test:
            raise ValueError(
                f"finetune.architectures = {self.finetune.architectures}: must be at most generate.test = "
                f"{self.generate.test}"
            )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Return the validated settings of a file.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown or missing, a value is impossible.
    """
    return validated(read_values(path), path)


def read_values(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a settings file, not validated.

    Raises:
        UserError: the file is missing, is not YAML or holds no keys.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found: run from the project's folder, or give the file with --params")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: must be `key: value` lines, as in params.yaml")
    return values


def validated(values: Mapping[str, Any], source: str | Path) -> Params:
    """Return values as settings; `source` names in errors where they come from.

    Raises:
        UserError: a key is unknown, missing or has moved, a value is impossible.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, source)) from error


def section_of(key: str, section: type[Section] | None = None) -> type[Section] | None:
    """Return the class of the section that a key of a section names, or None if the key is no section's.

    Args:
        section: class that has the key; by default that of all settings.
    """
    field = (section or Params).model_fields.get(key)
    if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
        return None
    return field.annotation


def leaves(values: Mapping[str, Any], section: type[Section] | None = None) -> Iterator[tuple[Keys, Any]]:
    """Yield the keys and the value of each setting, in sections and in their sections."""
    for key, value in values.items():
        inner = section_of(key, section)
        if inner is not None and isinstance(value, Mapping):
            yield from (((key, *keys), leaf) for keys, leaf in leaves(value, inner))
        else:
            yield (key,), value


def set_leaf(values: dict[str, Any], keys: Keys, value: Any) -> None:
    """Set one setting, in place; its sections must be there."""
    *sections, key = keys
    for section in sections:
        values = values[section]
    values[key] = value


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some of them changed; keys that `changes` does not name keep their values."""
    changed = copy.deepcopy(dict(values))
    for keys, value in leaves(changes):
        set_leaf(changed, keys, value)
    return changed


def flat_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` -> text: strings as they are, all else as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def settings_hash(settings: Any, length: int = 12) -> str:
    """Return hexadecimal digits that change whenever the settings do.

    Args:
        settings: any JSON-serialisable value; the order of its keys does not count.
        length: number of digits, at most 64.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def _explain(error: ValidationError, source: str | Path) -> str:
    """Return the keys that have moved, or the first two problems, a line each, and the number of the others."""
    problems = error.errors()
    moved = [key for key in MOVED_KEYS if any(_is_moved(problem, key) for problem in problems)]
    if moved:  # they explain the sections that are missing too
        return f"{', '.join(f'{key} is now {MOVED_KEYS[key]}' for key in moved)} (in {source})"
    lines = [_line(problem, source) for problem in problems]
    if len(lines) > 2:
        lines[2:] = [f"… and {len(lines) - 2} more"]
    return "\n".join(lines)


def _is_moved(problem: ErrorDetails, key: str) -> bool:
    if ".".join(map(str, problem["loc"])) != key:
        return False
    became_a_section = MOVED_KEYS[key].startswith(f"{key}.")
    return problem["type"] == ("model_type" if became_a_section else "extra_forbidden")


def _line(problem: ErrorDetails, source: str | Path) -> str:
    keys = [str(key) for key in problem["loc"]]
    name, value = ".".join(keys), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name} in {source}{_suggestion(keys)}"
    if problem["type"] == "missing":
        return f"{name} is missing in {source}"
    if problem["type"] == "model_type":
        return f"{name} = {_shown(value)} in {source}: must be a section of keys"
    if problem["type"] == "value_error":
        section = f"{name}." if name else ""  # the error names the key
        return f"{section}{problem['ctx']['error']} (in {source})"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{name} = {_shown(value)} in {source}: must be {message}"


def _shown(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, str | int | float | None) else str(value)
    return text[:100]


def _suggestion(keys: Sequence[str]) -> str:
    section: type[Section] = Params
    for key in keys[:-1]:
        section = section_of(key, section) or section
    known = list(section.model_fields)
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f": did you mean {close[0]}?" if close else f": must be one of {', '.join(known)}"
