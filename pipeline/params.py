"""The settings of a pipeline run: `params.yaml`, typed and validated.

Read once, at the door of every stage. What is in a `Params` can be trusted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, ValidationError, model_validator

from pipeline.errors import UserError

# Integers are strict, or `true` would be 1. Numbers are not: YAML reads 1e-3 as a text.
Integer = Annotated[int, Strict()]
Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Width = Annotated[Integer, Field(ge=8, multiple_of=8)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bn_free")
"""The sampled splits; `predefined` is added to the evaluation as it is."""

SAMPLED_SPLITS = tuple(split for split in SPLITS if split != "wide")
"""Those that are drawn or imported; `wide` is made from `test`."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageSettings(Section):
    size: Annotated[Integer, Field(ge=8, le=224)]
    folder: str | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    shift: Natural
    flip: StrictBool

    @model_validator(mode="after")
    def _shifted_images_stay_in_sight(self) -> ImageSettings:
        if self.shift >= self.size:
            raise ValueError(f"shift = {self.shift}: must be less than size = {self.size}")
        return self


class GenerateSettings(Section):
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


class HypernetworkSettings(Section):
    variant: Literal["ghn2", "ghn1", "mlp"]
    hidden: Width
    kernel: Annotated[Integer, Field(ge=1, le=16)]
    virtual_edges: Count


class TrainSettings(Section):
    steps: Count
    batch: Annotated[Integer, Field(ge=2)]
    learning_rate: Positive
    schedule: Literal["multi_step", "cosine"]
    warmup: Natural
    milestones: list[Share]
    decay: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Positive
    architecture_clip: Positive | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema: Share | None
    widths: Annotated[list[Width], Field(min_length=1)]
    head_widths: Annotated[list[Count], Field(min_length=1)]
    max_nodes: Count
    precision: Literal["auto", "fp32", "bf16", "fp64"]
    validate_every: Count | None
    validate_architectures: Count
    validate_images: Annotated[float, Field(gt=0, le=0.5)]
    workers: Count
    min_workers: Count | None
    slices: Count
    cpus_per_worker: Count
    gpus_per_worker: Annotated[Integer, Field(ge=0, le=1)]
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    log_every: Count
    checkpoint_every: Count
    max_failures: Natural
    profile_steps: Natural

    @model_validator(mode="after")
    def _fewer_workers_at_least(self) -> TrainSettings:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers}: must be at most workers = {self.workers}")
        return self

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainSettings:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup = {self.warmup}: must be less than steps = {self.steps}")
        return self

    @model_validator(mode="after")
    def _sorted(self) -> TrainSettings:
        for name in ("widths", "head_widths", "milestones"):
            values = getattr(self, name)
            if values != sorted(set(values)):
                raise ValueError(f"{name} = {values}: must be different and in increasing order")
        return self


class EvaluateSettings(Section):
    batch: Annotated[Integer, Field(ge=2)]
    width: Width
    head_width: Count


class FinetuneSettings(Section):
    datasets: Annotated[list[str], Field(min_length=1)]
    architectures: Count
    images_per_class: Count
    seeds: Count
    steps: Count
    batch: Annotated[Integer, Field(ge=2)]
    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    evaluate_every: Count


class ClusterSettings(Section):
    address: str | None
    cpus: Count | None


class TrackingSettings(Section):
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """All settings; the fields and sections of `params.yaml`, where each is described."""

    seed: Seed
    dataset: str
    meta_batch: Count
    storage: Annotated[str, Field(min_length=1)]
    images: ImageSettings
    generate: GenerateSettings
    hypernetwork: HypernetworkSettings
    train: TrainSettings
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
    def _architectures_to_validate_on_exist(self) -> Params:
        settings = self.train
        if settings.validate_every is None or "val" in self.generate.imported:
            return self
        if settings.validate_architectures > self.generate.val:
            raise ValueError(
                f"train.validate_architectures = {settings.validate_architectures}: must be at most generate.val = "
                f"{self.generate.val}"
            )
        return self

    @model_validator(mode="after")
    def _architectures_to_finetune_exist(self) -> Params:
        if "test" not in self.generate.imported and self.finetune.architectures > self.generate.test:
            raise ValueError(
                f"finetune.architectures = {self.finetune.architectures}: must be at most generate.test = "
                f"{self.generate.test}"
            )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """The validated settings of a file.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown or missing, a value is impossible.
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
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from error


def settings_hash(settings: Any, length: int = 12) -> str:
    """Hexadecimal digits that change whenever the settings do (any JSON-serialisable value)."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def _explain(error: ValidationError, path: Path) -> str:
    """The first two problems, a line each, and how many more there are."""
    lines = [_line(problem, path) for problem in error.errors()]
    if len(lines) > 2:
        lines[2:] = [f"… and {len(lines) - 2} more"]
    return "\n".join(lines)


def _line(problem: Any, path: Path) -> str:
    keys = [str(key) for key in problem["loc"]]
    name, value = ".".join(keys), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name} in {path}{_suggestion(keys)}"
    if problem["type"] == "missing":
        return f"{name} is missing in {path}"
    if problem["type"] == "value_error":
        section = f"{name}." if name else ""  # the error names the key
        return f"{section}{problem['ctx']['error']} (in {path})"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    shown = json.dumps(value) if isinstance(value, str | int | float | None) else str(value)
    return f"{name} = {shown[:100]} in {path}: must be {message}"


def _suggestion(keys: list[str]) -> str:
    model: Any = Params
    for key in keys[:-1]:
        model = model.model_fields[key].annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f": did you mean {close[0]}?" if close else f": must be one of {', '.join(known)}"
