"""Graph hypernetworks: networks that predict the parameters of networks they have never seen."""

from ghn.architectures import Architecture, Genotype, Network, network_from_dict
from ghn.hypernetwork import GHN, GHNConfig

__all__ = ["GHN", "Architecture", "GHNConfig", "Genotype", "Network", "network_from_dict"]
