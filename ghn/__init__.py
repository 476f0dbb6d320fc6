"""Graph hypernetworks: networks that predict the parameters of networks they have never seen.

Each public name is imported when it is first used (PEP 562), because importing PyTorch takes seconds and architectures
alone do not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ghn.deepnets1m.architecture import Architecture
    from ghn.deepnets1m.genotype import Genotype
    from ghn.deepnets1m.sampling import sample_architecture
    from ghn.models.checkpoints import CheckpointError
    from ghn.models.class_layer import fit_class_layer
    from ghn.models.config import GHNConfig
    from ghn.models.ghn import GHN
    from ghn.models.predict_module import PredictionReport, estimate_statistics, use_batch_statistics
    from ghn.models.sharded import write_predicted
    from ghn.networks.graph import Graph
    from ghn.networks.network import Network
    from ghn.records import network_from_dict
    from ghn.tracing.trace import TracingError, declared_shape, trace
    from ghn.zoo import find_network, list_architectures, load

__all__ = [
    "GHN",
    "Architecture",
    "CheckpointError",
    "GHNConfig",
    "Genotype",
    "Graph",
    "Network",
    "PredictionReport",
    "TracingError",
    "declared_shape",
    "estimate_statistics",
    "find_network",
    "fit_class_layer",
    "list_architectures",
    "load",
    "network_from_dict",
    "sample_architecture",
    "trace",
    "use_batch_statistics",
    "write_predicted",
]

_MODULES = {
    "GHN": "ghn.models.ghn",
    "Architecture": "ghn.deepnets1m.architecture",
    "CheckpointError": "ghn.models.checkpoints",
    "GHNConfig": "ghn.models.config",
    "Genotype": "ghn.deepnets1m.genotype",
    "Graph": "ghn.networks.graph",
    "Network": "ghn.networks.network",
    "PredictionReport": "ghn.models.predict_module",
    "TracingError": "ghn.tracing.trace",
    "declared_shape": "ghn.tracing.trace",
    "estimate_statistics": "ghn.models.predict_module",
    "find_network": "ghn.zoo",
    "fit_class_layer": "ghn.models.class_layer",
    "list_architectures": "ghn.zoo",
    "load": "ghn.zoo",
    "network_from_dict": "ghn.records",
    "sample_architecture": "ghn.deepnets1m.sampling",
    "trace": "ghn.tracing.trace",
    "use_batch_statistics": "ghn.models.predict_module",
    "write_predicted": "ghn.models.sharded",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    """Return a public name, and keep it so that the next use finds it at once.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all names of this module, those that are not imported yet too."""
    return sorted({*globals(), *__all__})
