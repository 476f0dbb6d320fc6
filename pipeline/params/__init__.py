"""The settings of a pipeline run: `params.yaml`, typed and validated.

Every stage reads them once, when it begins. The values in a `Params` are possible: no other code checks them again.
"""

from __future__ import annotations

from pipeline.params.data import SAMPLED_SPLITS, SPLITS, TEXT_DATASETS, GenerateSettings, ImageSettings
from pipeline.params.hashing import flat_settings, settings_hash
from pipeline.params.measuring import (
    AdaptSettings,
    ConditionSettings,
    CopiesSettings,
    DetectSettings,
    EvaluateSettings,
    FinetuneSettings,
    PropertiesSettings,
    RateSearchSettings,
    SgdSettings,
    StudySettings,
    VariedSettings,
)
from pipeline.params.messages import MOVED_KEYS
from pipeline.params.reading import load_params, read_values
from pipeline.params.sections import (
    Count,
    Integer,
    Keys,
    Natural,
    Positive,
    Section,
    Seed,
    Share,
    Width,
    section_of,
    set_leaf,
)
from pipeline.params.settings import ClusterSettings, Params, TrackingSettings, leaves, validated, with_changes
from pipeline.params.training import (
    MAX_KERNEL,
    HypernetworkSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainSettings,
    ValidationSettings,
    WorkerSettings,
)

__all__ = [
    "MAX_KERNEL",
    "MOVED_KEYS",
    "SAMPLED_SPLITS",
    "SPLITS",
    "TEXT_DATASETS",
    "AdaptSettings",
    "ClusterSettings",
    "ConditionSettings",
    "CopiesSettings",
    "Count",
    "DetectSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "GenerateSettings",
    "HypernetworkSettings",
    "ImageSettings",
    "Integer",
    "Keys",
    "Natural",
    "OptimizerSettings",
    "Params",
    "Positive",
    "PropertiesSettings",
    "RateSearchSettings",
    "ScheduleSettings",
    "Section",
    "Seed",
    "SgdSettings",
    "Share",
    "StudySettings",
    "TrackingSettings",
    "TrainSettings",
    "ValidationSettings",
    "VariedSettings",
    "Width",
    "WorkerSettings",
    "flat_settings",
    "leaves",
    "load_params",
    "read_values",
    "section_of",
    "set_leaf",
    "settings_hash",
    "validated",
    "with_changes",
]
