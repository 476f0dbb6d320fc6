"""Graph hypernetworks: networks that predict the parameters of networks they have never seen.

Each name is imported when it is first used, because architectures alone need no PyTorch, which takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghn.deepnets1m.architecture import Architecture
    from ghn.deepnets1m.genotype import Genotype
    from ghn.deepnets1m.records import network_from_dict
    from ghn.deepnets1m.sampling import sample_architecture
    from ghn.models.config import GHNConfig
    from ghn.models.ghn import GHN
    from ghn.models.predict_module import PredictionReport, estimate_statistics, use_batch_statistics
    from ghn.networks.graph import Graph
    from ghn.networks.network import Network
    from ghn.tracing.trace import TracingError, trace
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
    "sample_architecture",
    "trace",
    "use_batch_statistics",
]

MODULES = {
    "ghn.deepnets1m.architecture": ("Architecture",),
    "ghn.deepnets1m.genotype": ("Genotype",),
    "ghn.deepnets1m.records": ("network_from_dict",),
    "ghn.deepnets1m.sampling": ("sample_architecture",),
    "ghn.models.config": ("GHNConfig",),
    "ghn.models.ghn": ("GHN",),
    "ghn.models.predict_module": ("PredictionReport", "estimate_statistics", "use_batch_statistics"),
    "ghn.networks.graph": ("Graph",),
    "ghn.networks.network": ("Network",),
    "ghn.tracing.trace": ("TracingError", "trace"),
    "ghn.zoo": ("list_architectures", "load"),
}


def __getattr__(name: str) -> Any:
    module = next((module for module, names in MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
