"""Settings of training: the hypernetwork, what it learns, and how the run is spread over workers."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, create_model, model_validator

from ghn.models.config import GHNConfig
from pipeline.params.sections import Count, Integer, Natural, Positive, Section, Share, Width, require_increasing

MAX_KERNEL = 16
"""The largest kernel, in positions, that has an embedding of its own in `ghn.models.node_encoder`."""

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
        require_increasing("milestones", self.milestones)
        return self


class ValidationSettings(Section):
    """Validation during training, on architectures and images that are not trained on."""

    every: Count | None
    architectures: Count
    images: Annotated[float, Field(gt=0, le=0.5)]


class TrainSettings(Section):
    """What is learned: a change of any value trains another hypernetwork."""

    steps: Count
    architectures: Count | None
    batch: Annotated[Integer, Field(ge=2)]
    clip: Positive
    architecture_clip: Positive | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    penalty: Annotated[float, Field(ge=0)]
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
        require_increasing("widths", self.widths)
        require_increasing("head_widths", self.head_widths)
        return self


class WorkerSettings(Section):
    """How training is run: no value changes what is learned."""

    number: Count
    minimum: Count | None
    cpus: Count
    gpus: Annotated[float, Field(ge=0, le=1)]
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    max_failures: Natural
    checkpoint_every: Count
    profile_steps: Natural

    @model_validator(mode="after")
    def _minimum_is_at_most_the_number(self) -> WorkerSettings:
        if self.minimum is not None and self.minimum > self.number:
            raise ValueError(f"minimum = {self.minimum}: must be at most workers.number = {self.number}")
        return self
