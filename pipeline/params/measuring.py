"""Settings of what is measured: stages evaluate, sgd, copies, finetune, adapt, condition, detect,
properties and study."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from pipeline.params.data import SPLITS
from pipeline.params.sections import (
    Count,
    Integer,
    Natural,
    Positive,
    Section,
    Seed,
    Share,
    Width,
    require_different,
    require_increasing,
)
from pipeline.params.training import HypernetworkSettings, TrainSettings


class EvaluateSettings(Section):
    """How stage evaluate scores predicted and other parameters."""

    batch: Annotated[Integer, Field(ge=2)]
    images: Annotated[Integer, Field(ge=2)] | None
    running_statistics: Natural | None
    width: Width
    head_width: Count
    similarity: Count


class CopiesSettings(Section):
    """Which architectures stage copies measures."""

    architectures: Count


class RateSearchSettings(Section):
    """How a stage searches for learning rates: see `pipeline.evaluation.learning_rates`."""

    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    learning_rate_limits: Annotated[list[Positive], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _learning_rates_increase(self) -> Self:
        require_increasing("learning_rates", self.learning_rates)
        require_increasing("learning_rate_limits", self.learning_rate_limits)
        return self

    @model_validator(mode="after")
    def _learning_rates_are_within_the_limits(self) -> Self:
        lowest, highest = self.learning_rate_limits
        for rate in self.learning_rates:
            if not lowest <= rate <= highest:
                limits = f"learning_rate_limits = [{lowest:g}, {highest:g}]"
                raise ValueError(f"learning_rates has {rate:g}: must be within {limits}")
        return self


class SgdSettings(RateSearchSettings):
    """Which networks stage sgd trains from random initialisation, and how long."""

    architectures: dict[str, Count]
    sources: Count
    tuning_architectures: Count
    epochs: Annotated[list[Count], Field(min_length=1)]
    batch: Annotated[Integer, Field(ge=2)]
    held_out: Annotated[float, Field(gt=0, le=0.5)]
    converged_at: Share

    @model_validator(mode="after")
    def _epochs_increase(self) -> Self:
        require_increasing("epochs", self.epochs)
        return self

    @model_validator(mode="after")
    def _splits_exist(self) -> Self:
        possible = [split for split in SPLITS if split != "train"]  # of which `sources` are trained
        for split in self.architectures:
            if split not in possible:
                raise ValueError(f"architectures names split {split}: must be one of {', '.join(possible)}")
        return self

    @property
    def wanted(self) -> dict[str, int]:
        """The number of architectures that are trained of each split that has any, the sources first."""
        numbers = {"train": self.sources} | {split: self.architectures.get(split, 0) for split in SPLITS[1:]}
        return {split: number for split, number in numbers.items() if number}


class TransferSettings(RateSearchSettings):
    """What a stage transfers to: data sets with few training images, on which some architectures are measured."""

    datasets: Annotated[list[str], Field(min_length=1)]
    images_per_class: Annotated[list[Count], Field(min_length=1)]
    seeds: Count
    architectures: Count
    tuning_architectures: Count
    steps: Count
    batch: Annotated[Integer, Field(ge=2)]

    @model_validator(mode="after")
    def _images_per_class_increase(self) -> Self:
        require_increasing("images_per_class", self.images_per_class)
        return self


class FinetuneSettings(TransferSettings):
    """What stage finetune transfers to, and how it trains there."""

    evaluate_every: Count


class AdaptSettings(TransferSettings):
    """What stage adapt adapts the hypernetwork to, and what it compares that with."""

    all_images: StrictBool
    validate_every: Count
    alone_steps: Count


class ConditionSettings(Section):
    """Which data sets stage condition learns together, and which it predicts for without learning from them."""

    datasets: Annotated[list[str], Field(min_length=2)]
    unseen: list[str]
    images_per_class: Count
    seeds: Count
    architectures: Count
    tuning_architectures: Count
    steps: Count
    batch: Annotated[Integer, Field(ge=2)]
    validate_every: Count
    learning_rate: Positive

    @model_validator(mode="after")
    def _no_data_set_is_there_twice(self) -> Self:
        require_different("datasets + unseen", [*self.datasets, *self.unseen])
        return self


class DetectSettings(RateSearchSettings):
    """What stage detect detects, with which backbones, and how it trains."""

    dataset: Literal["scenes", "penn_fudan", "coco"]
    folder: str | None
    backbones: Annotated[list[str], Field(min_length=1)]
    pyramid: StrictBool
    size: Annotated[Integer, Field(ge=32)]
    images: Annotated[Integer, Field(ge=2)]
    test_images: Count
    held_out: Annotated[float, Field(gt=0, le=0.5)]
    epochs: Count
    batch: Annotated[Integer, Field(ge=2)]
    seeds: Count

    @model_validator(mode="after")
    def _backbones_are_known(self) -> Self:
        for name in self.backbones:
            if not re.fullmatch(r"resnet(18|34|50)|[a-z_]+/\d+", name):
                raise ValueError(f"backbones has {name}: must be resnet18, resnet34, resnet50 or as test/3")
        require_different("backbones", self.backbones)
        return self

    @model_validator(mode="after")
    def _folder_belongs_to_files(self) -> Self:
        if self.dataset != "scenes" and self.folder is None:
            raise ValueError(f"folder = null: must be where the files of {self.dataset} lie")
        return self


class PropertiesSettings(Section):
    """How stage properties measures inference time and intervals, and the published results that it reads too."""

    batch: Count
    repeats: Count
    resamples: Annotated[Integer, Field(ge=100)]
    published: Annotated[str, Field(min_length=1)] | None


class VariedSettings(Section):
    """What a variant of a study may change: what is learned, from the same architectures and images."""

    meta_batch: Count
    hypernetwork: HypernetworkSettings
    train: TrainSettings


class StudySettings(Section):
    """Ablations: variants of the hypernetwork and of its training, each trained in the same time with each seed."""

    variants: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    minutes: Positive
    architectures: Count
    images: Annotated[Integer, Field(ge=2)] | None
    changes: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def _variants_are_known(self) -> StudySettings:
        for name in self.variants:
            if name not in self.changes:
                raise ValueError(f"variants names {name}: must be one of {', '.join(self.changes)}")
        return self

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> StudySettings:
        require_different("variants", self.variants)
        require_different("seeds", self.seeds)
        return self
