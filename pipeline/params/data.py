"""Settings of the data: images and architectures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from pipeline.params.sections import Count, Integer, Natural, Section

SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bn_free")
"""Names of the stored splits. Split `predefined` is not stored: it is computed when it is evaluated."""

SAMPLED_SPLITS = tuple(split for split in SPLITS if split != "wide")
"""Names of the splits that are sampled or imported; `wide` is made from `test`."""

SPLITS_OF_SPACE = {"deepnets1m": SPLITS, "gpt": ("train", "val", "test", "wide", "deep")}
"""Names of the stored splits of each design space."""


TEXT_DATASETS = ("python", "text")
"""The data sets that are texts: the source of Python's standard library, and a folder of text files."""


class ImageSettings(Section):
    """Images: their size, where they lie, and how they are augmented; of texts, their length in tokens, and where."""

    size: Annotated[Integer, Field(ge=8, le=224)]
    folder: str | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    passed_over: Annotated[float, Field(ge=0, le=1)]
    max_pixels: Count
    tokenizer: str | None
    shift: Natural
    flip: StrictBool

    @model_validator(mode="after")
    def _shift_is_less_than_the_size(self) -> ImageSettings:
        if self.shift >= self.size:
            raise ValueError(f"shift = {self.shift}: must be less than size = {self.size}")
        return self


class GenerateSettings(Section):
    """The design space, numbers of architectures of each split, and the splits that are imported instead of sampled."""

    space: Literal["deepnets1m", "gpt"]
    train: Count
    val: Count
    test: Count
    wide: Count
    deep: Count
    dense: Count
    bn_free: Count
    shard_rows: Count
    imported: dict[str, Annotated[str, Field(min_length=1)]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the stored splits."""
        return SPLITS_OF_SPACE[self.space]

    @model_validator(mode="after")
    def _only_deepnets1m_is_imported(self) -> GenerateSettings:
        if self.imported and self.space != "deepnets1m":
            raise ValueError(f"imported has architectures of DeepNets-1M: must be {{}} where space is {self.space}")
        return self

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
