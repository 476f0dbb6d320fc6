"""Architectures by name: torchvision's, timm's, the predefined ones and whatever a split samples."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.sampling import SPLIT_RULES, sample_architecture
from ghn.networks.network import Network

if TYPE_CHECKING:
    from torch import nn

SAMPLED = re.compile(rf"({'|'.join(SPLIT_RULES)})/(\d+)")


def list_architectures(pattern: str = "*") -> list[str]:
    """The names that `load` takes, as far as they match a shell pattern such as `*resnet*`.

    Those of torchvision stand alone (`resnet50`); those of timm, if it is installed, begin with `timm/`, and those of
    the split `predefined` with `predefined/`. Not listed: `<split>/<number>`, what that split samples with seed 0.
    """
    names = [f"predefined/{name}" for name in PREDEFINED]
    if find_spec("torchvision") is not None:
        import torchvision

        names += torchvision.models.list_models(module=torchvision.models)
    if find_spec("timm") is not None:
        import timm

        names += [f"timm/{name}" for name in timm.list_models()]
    return [name for name in names if fnmatchcase(name, pattern)]


def find_network(name: str) -> Network | None:
    """The network of ours that has a name, `predefined/<name>` or `<split>/<number>`; None for other names."""
    sampled = SAMPLED.fullmatch(name)
    if sampled is not None:
        return sample_architecture(0, sampled[1], int(sampled[2]))
    return PREDEFINED.get(name.removeprefix("predefined/")) if name.startswith("predefined/") else None


def load(name: str, num_classes: int = 1000, image_size: int = 224) -> nn.Module:
    """A network by its name (see `list_architectures`), with random parameters.

    Args:
        image_size: side of its images in pixels, for networks of ours; others say what they take.

    Raises:
        ValueError: there is no architecture of this name.
    """
    network = find_network(name)
    if network is not None:
        return network.module(image_size, num_classes)
    if name not in list_architectures():
        close = difflib.get_close_matches(name, list_architectures(), n=3)
        others = f"must be a name that `ghn list` lists, or {' or '.join(SPLIT_RULES)} with a number, such as deep/7"
        hint = f"did you mean {', '.join(close)}?" if close else others
        raise ValueError(f"unknown architecture {name!r}: {hint}")
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), num_classes=num_classes)
    import torchvision

    # Two networks would spend a minute on a random start of their own, and warn that they will not one day.
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings)
