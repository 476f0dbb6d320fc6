"""Another data set is a function and a name in `DATASETS`; no file of the package changes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.images import sources
from pipeline.images.load import load_images
from pipeline.images.sources import DatasetSource, RawDataset, RawImages, list_datasets
from pipeline.params import Params
from pipeline.stages.check import check


def find_stripes(folder: Path | None, downloads: Path) -> DatasetSource:
    def read() -> RawDataset:
        labels = np.arange(40) % 2
        images_NCHW = np.zeros((40, 1, 16, 16), dtype=np.uint8)
        images_NCHW[labels == 0, :, ::2] = 255
        images_NCHW[labels == 1, :, :, ::2] = 255
        return RawDataset(("horizontal", "vertical"), RawImages(images_NCHW, labels), test=None)

    return DatasetSource("stripes", listing="", has_test=False, read=read)


def test_a_new_data_set_is_listed_checked_and_loaded(
    small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources.DATASETS, "stripes", find_stripes)
    params = small_project(dataset="stripes", images={"size": 16, "test_fraction": 0.2})
    assert list_datasets()[-1] == "stripes"
    check(params)
    images = load_images("stripes", params.images, params.storage)
    assert images.classes == ("horizontal", "vertical")
    assert (len(images.train), len(images.test)) == (32, 8)
    rows_differ = (images.train.pixels[:, 0, 0, 0] != images.train.pixels[:, 0, 1, 0]).tolist()
    assert rows_differ == (images.train.labels == 0).tolist()
    assert images.place == str(Path("storage/images").resolve() / Path(images.place).name)


def test_a_new_data_set_takes_at_most_15_lines() -> None:
    assert len(inspect.getsource(find_stripes).splitlines()) + 1 <= 15  # and the line that registers it
