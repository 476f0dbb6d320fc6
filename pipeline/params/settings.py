"""All settings together, validated: no other code checks them again."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.params.data import TEXT_DATASETS, GenerateSettings, ImageSettings
from pipeline.params.measuring import (
    AdaptSettings,
    ConditionSettings,
    CopiesSettings,
    DetectSettings,
    EvaluateSettings,
    FinetuneSettings,
    PropertiesSettings,
    SgdSettings,
    StudySettings,
    VariedSettings,
)
from pipeline.params.messages import explain
from pipeline.params.sections import Count, Keys, Section, Seed, leaves_of, set_leaf
from pipeline.params.training import HypernetworkSettings, TrainSettings, WorkerSettings


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
    sgd: SgdSettings
    evaluate: EvaluateSettings
    copies: CopiesSettings
    finetune: FinetuneSettings
    adapt: AdaptSettings
    condition: ConditionSettings
    detect: DetectSettings
    properties: PropertiesSettings
    study: StudySettings
    cluster: ClusterSettings
    tracking: TrackingSettings

    @model_validator(mode="after")
    def _storage_is_a_folder_or_a_bucket(self) -> Params:
        is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", self.storage)  # other colons may be part of a folder's name
        if is_address and not re.match(r"s3://[^/@:]+(/|$)", self.storage):
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
    def _architectures_of_transfer_exist(self) -> Params:
        for name in ("finetune", "adapt", "condition"):
            wanted = getattr(self, name).architectures
            if "test" not in self.generate.imported and wanted > self.generate.test:
                raise ValueError(
                    f"{name}.architectures = {wanted}: must be at most generate.test = {self.generate.test}"
                )
        return self

    @model_validator(mode="after")
    def _variants_can_be_trained(self) -> Params:
        for name, changes in self.study.changes.items():
            possible = list(VariedSettings.model_fields)
            if other := [key for key in changes if key not in possible]:
                raise ValueError(f"study.changes.{name} has {other[0]}: must be one of {', '.join(possible)}")
            try:
                VariedSettings.model_validate(with_changes(self.model_dump(include=set(possible)), changes))
            except ValidationError as error:
                raise ValueError(explain(error, f"study.changes.{name}", Params)) from error
        return self

    @model_validator(mode="after")
    def _design_space_reads_the_data(self) -> Params:
        for section in ("finetune", "adapt", "condition"):
            for dataset in getattr(self, section).datasets:
                if dataset in TEXT_DATASETS:
                    raise ValueError(f"{section}.datasets has {dataset}, which is text: must be data sets of images")
        reads_text = self.generate.space == "gpt"
        if self.is_text != reads_text:
            space, kind = ("gpt", "text") if self.is_text else ("deepnets1m", "images")
            raise ValueError(
                f"generate.space = {self.generate.space}: must be {space}, because dataset = {self.dataset} is {kind}"
            )
        if reads_text and self.train.norm_free is not None:
            raise ValueError(
                f"train.norm_free = {self.train.norm_free}: must be null where generate.space is gpt, as all networks "
                "of that space have norms"
            )
        return self

    @model_validator(mode="after")
    def _sgd_architectures_exist(self) -> Params:
        for split, wanted in self.sgd.wanted.items():
            if split not in self.generate.splits:
                raise ValueError(
                    f"sgd.architectures.{split} = {wanted}: generate.space = {self.generate.space} has no such split; "
                    f"must be one of {', '.join(self.generate.splits[1:])}"
                )
            stored = getattr(self.generate, split)
            if split not in self.generate.imported and wanted > stored:
                setting = "sgd.sources" if split == "train" else f"sgd.architectures.{split}"
                raise ValueError(f"{setting} = {wanted}: must be at most generate.{split} = {stored}")
        return self

    @model_validator(mode="after")
    def _published_results_have_their_architectures(self) -> Params:
        missing = [split for split in ("val", "test") if split not in self.generate.imported]
        if self.properties.published is not None and missing:
            raise ValueError(
                f"properties.published = {self.properties.published}: must be null, or split {missing[0]}, whose "
                "results they are, must be in generate.imported"
            )
        return self

    @property
    def is_text(self) -> bool:
        """Whether the data set is text, and the networks are language models."""
        return self.dataset in TEXT_DATASETS

    def of_variant(self, name: str, seed: int) -> Params:
        """Return the settings by which a variant of the study is trained; the weights of the last step are kept.

        Raises:
            UserError: the study has no such variant.
        """
        if name not in self.study.changes:
            raise UserError(f"no variant {name} in study.changes: must be one of {', '.join(self.study.changes)}")
        changed = with_changes(self.model_dump(), self.study.changes[name])
        changed = with_changes(changed, {"seed": seed, "train": {"validation": {"every": None}}})
        return validated(changed, f"study.changes.{name}")

    def with_train(self, steps: int, **changes: Any) -> Params:
        """Return the settings of a run of so many steps; the warm-up is at most a quarter of it.

        Args:
            changes: other settings of the section `train`.
        """
        warmup = min(self.train.schedule.warmup, steps // 4)
        train = changes | {"steps": steps, "schedule": {"warmup": warmup}}
        return validated(with_changes(self.model_dump(), {"train": train}), "params.yaml")


def validated(values: Mapping[str, Any], source: str | Path) -> Params:
    """Return values as settings; `source` names in errors where they come from.

    Raises:
        UserError: a key is unknown, missing or has moved, a value is impossible.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, source, Params)) from error


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[Keys, Any]]:
    """Yield the keys and the value of each of the settings, in sections and in their sections."""
    return leaves_of(values, Params)


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some of them changed; keys that `changes` does not name keep their values."""
    changed = copy.deepcopy(dict(values))
    for keys, value in leaves(changes):
        set_leaf(changed, keys, value)
    return changed
