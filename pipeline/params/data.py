"""Settings of the data: images and architectures."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, model_validator

from pipeline.params.sections import Count, Integer, Natural, Section

SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bn_free")
"""Names of the stored splits. Split `predefined` is not stored: it is computed when it is evaluated."""

SAMPLED_SPLITS = tuple(split for split in SPLITS if split != "wide")
"""Names of the splits that are sampled or imported; `wide` is made from `test`."""


class ImageSettings(Section):
    """Images: their size, where they lie, and how they are augmented."""

    size: Annotated[Integer, Field(ge=8, le=224)]
    folder: str | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    passed_over: Annotated[float, Field(ge=0, le=1)]
    max_pixels: Count
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
