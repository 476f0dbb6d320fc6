"""Networks from the records that `Network.to_dict` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.predefined import ResNet
from ghn.gpt.architecture import GptArchitecture
from ghn.networks.network import Network


def network_from_dict(record: Mapping[str, Any]) -> Network:
    """Return the network of a record: an architecture of a design space, or a predefined network if it names one.

    Raises:
        ValueError: a field is missing or impossible.
    """
    if "predefined" in record:
        return ResNet.from_dict(record)
    return GptArchitecture.from_dict(record) if "blocks" in record else Architecture.from_dict(record)
