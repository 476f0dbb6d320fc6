"""A trained hypernetwork for other classes: all that it has learned but the rows of its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.models.node_encoder import channel_vocabulary, nearest_entries

CHANNELS = "encoder.channels.weight"
"""The embeddings of numbers of channels, whose vocabulary has the number of classes too."""

AnyHypernetwork = TypeVar("AnyHypernetwork", bound=Hypernetwork)


def with_new_classes(ghn: AnyHypernetwork, num_classes: int, seed: int) -> AnyHypernetwork:
    """Return a hypernetwork with the weights of `ghn`, for another data set: its rows of classes, if any, are new.

    New are the last layers of the decoders, of which a class is a row, even if there are as many classes as before:
    the first class of one data set is not that of another. The embedding of the number of classes is taken over.

    Args:
        seed: of the new rows, which are in PyTorch's default initialisation.

    Raises:
        ValueError: the number of classes is impossible.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = type(ghn)(replace(ghn.config, num_classes=num_classes))
    weights = {name: weight for name, weight in ghn.state_dict().items() if not _is_of_classes(name)}
    weights[CHANNELS] = channel_embeddings(weights[CHANNELS], ghn.config.num_classes, num_classes)
    missing, unexpected = adapted.load_state_dict(weights, strict=False)
    assert not unexpected and all(_is_of_classes(name) for name in missing), "only rows of classes are left out"
    return adapted.to(weights[CHANNELS])


def _is_of_classes(name: str) -> bool:
    return "classes" in name.split(".")


def channel_embeddings(before: Tensor, old_classes: int, new_classes: int) -> Tensor:
    """Return the embeddings of the vocabulary for `new_classes`, from those of the vocabulary for `old_classes`.

    A number that is new in it has the embedding of the nearest one, but for the number of classes, which has that of
    the number of classes before.
    """
    old, new = channel_vocabulary(old_classes), channel_vocabulary(new_classes)
    nearest = nearest_entries(old)
    rows = [nearest[min(value, old[-1])] for value in new]
    if new_classes not in old:
        rows[new.index(new_classes)] = old.index(old_classes)
    return before[[*rows, len(old)]]  # the last stands for no shape
