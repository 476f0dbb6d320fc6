"""Folders of pictures in three colours, and what loading them says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.load import load_cached_images

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}  # in the order of the labels


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 12), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def class_folders(folder: Path, count: int = 3) -> Path:
    for name, colour in COLOURS.items():
        for number in range(count):
            paint(folder / name / f"{number}.png", colour, (12 + number, 12))
    return folder


def are_colours(part) -> bool:
    """Return whether each image has the colour that its label stands for."""
    expected = np.array(list(COLOURS.values()))[part.labels]
    return bool((part.pixels == expected[:, :, None, None]).all())


def refused(dataset: str, cache: Path, **options) -> str:
    """Return the message of the refusal; check that it is short and that no data was left behind."""
    with pytest.raises(UserError) as caught:
        load_cached_images(dataset, 8, cache, **options)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert not cache.exists() or {path.suffix for path in cache.iterdir()} <= {".lock"}
    return message
