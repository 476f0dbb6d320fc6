"""Networks by name: those of torchvision and timm, the predefined ones, and the samples of each split."""

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

SAMPLED_NAME = re.compile(rf"({'|'.join(SPLIT_RULES)})/(\d+)")
"""Name of a sampled architecture: a split and an index."""


def list_architectures(pattern: str = "*") -> list[str]:
    """Return the names that `load` takes and that match a shell pattern such as `*resnet*`.

    Names of torchvision have no prefix (`resnet50`). Names of timm, if it is installed, begin with `timm/`, and those
    of the split `predefined` with `predefined/`. Names of sampled architectures, `<split>/<index>`, are not listed.
    """
    names = [f"predefined/{name}" for name in PREDEFINED]
    # torchvision and timm are not required, and importing them takes seconds: they are imported where they are used.
    if find_spec("torchvision") is not None:
        import torchvision

        names += torchvision.models.list_models(module=torchvision.models)
    if find_spec("timm") is not None:
        import timm

        names += [f"timm/{name}" for name in timm.list_models()]
    return [name for name in names if fnmatchcase(name, pattern)]


def find_network(name: str) -> Network | None:
    """Return the network that is named `predefined/<name>` or `<split>/<index>`; None for any other name.

    `<split>/<index>` is the architecture at that index of the split, sampled with seed 0.
    """
    sampled = SAMPLED_NAME.fullmatch(name)
    if sampled is not None:
        return sample_architecture(0, sampled[1], int(sampled[2]))
    return PREDEFINED.get(name.removeprefix("predefined/")) if name.startswith("predefined/") else None


def load(name: str, num_classes: int = 1000, image_size: int = 224) -> nn.Module:
    """Return the network of a name (see `list_architectures`), with random parameters.

    Args:
        num_classes: number of logits.
        image_size: side of its images, in pixels, for predefined and sampled networks alone: those of torchvision and
            timm fix it themselves.

    Raises:
        ValueError: there is no network of this name.
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

        model: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=num_classes)
        return model
    import torchvision

    # These two would spend a minute on their own random initialisation, and warn that it is going to change.
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings)
    return model
