"""Graph hypernetworks: networks that predict the parameters of networks they have never seen.

What is named here is imported when it is used: whoever only wants architectures does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghn.architectures import Architecture, Genotype, Network, network_from_dict
    from ghn.graphs import Graph
    from ghn.hypernetwork import GHN, GHNConfig
    from ghn.prediction import PredictionReport, estimate_statistics, use_batch_statistics
    from ghn.tracing import TracingError, trace
    from ghn.zoo import list_architectures, load

__all__ = [
    "GHN",
    "Architecture",
    "GHNConfig",
    "Genotype",
    "Graph",
    "Network",
    "PredictionReport",
    "TracingError",
    "estimate_statistics",
    "list_architectures",
    "load",
    "network_from_dict",
    "trace",
    "use_batch_statistics",
]

MODULES = {
    "ghn.architectures": ("Architecture", "Genotype", "Network", "network_from_dict"),
    "ghn.graphs": ("Graph",),
    "ghn.hypernetwork": ("GHN", "GHNConfig"),
    "ghn.prediction": ("PredictionReport", "estimate_statistics", "use_batch_statistics"),
    "ghn.tracing": ("TracingError", "trace"),
    "ghn.zoo": ("list_architectures", "load"),
}


def __getattr__(name: str) -> Any:
    module = next((module for module, names in MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
