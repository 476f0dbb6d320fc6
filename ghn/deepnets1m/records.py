"""Networks from the records that `Network.to_dict` writes."""

from __future__ import annotations

from typing import Any

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.predefined import ResNet
from ghn.networks.network import Network


def network_from_dict(record: dict[str, Any]) -> Network:
    """The network of a record written by `to_dict`: an `Architecture`, or a predefined one by its name."""
    if "predefined" in record:
        return ResNet.from_dict(record)
    return Architecture.from_dict(record)
