"""Graph hypernetworks: networks that predict the parameters of networks they have never seen."""

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
