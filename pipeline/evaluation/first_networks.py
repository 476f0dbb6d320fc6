"""The first architectures of a split, at the width at which networks are evaluated."""

from __future__ import annotations

from ghn.networks.network import ScalableNetwork
from pipeline.architectures.store import ArchitectureStore
from pipeline.errors import UserError
from pipeline.evaluation.networks import at_width
from pipeline.params import Params


def first_networks(
    store: ArchitectureStore, split: str, count: int, params: Params, setting: str = ""
) -> list[ScalableNetwork]:
    """Return the first architectures of a split at the evaluation's width.

    Args:
        setting: the one that says the count.

    Raises:
        UserError: the split has not so many.
    """
    stored = len(store[split])
    if count > stored:
        raise UserError(f"{setting} = {count}: must be at most {stored}, the number of architectures of split {split}")
    return [at_width(store.read(split, index), params.evaluate, params.images.size) for index in range(count)]
