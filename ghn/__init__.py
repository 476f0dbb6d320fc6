"""Graph hypernetworks: networks that predict the parameters of networks they have never seen."""

from ghn.architectures import Architecture, Genotype, Network, network_from_dict
from ghn.graphs import Graph
from ghn.hypernetwork import GHN, GHNConfig
from ghn.prediction import PredictionReport
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
    "list_architectures",
    "load",
    "network_from_dict",
    "trace",
]
