"""What properties of networks are predicted from: the hypernetwork's embeddings, and two baselines that need none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.graph_statistics import statistics_of_graph
from ghn.networks.network import Network
from pipeline.evaluation.networks import Candidate

EMBEDDING = "embedding"
"""The features that the baselines are compared with."""

NETWORKS_AT_ONCE = 16
"""Networks whose nodes are embedded together."""

NetworkKey = tuple[str, int]
"""Split and index of a network."""


def feature_tables(candidates: Sequence[Candidate], ghn: Hypernetwork) -> dict[str, pd.DataFrame]:
    """Return all features of `FEATURES` by name: a row for each network, by split and index.

    Graphs are those for the image size and the number of classes that the hypernetwork was trained for.
    """
    networks = [candidate.network for candidate in candidates]
    keys = keys_of([(candidate.split, candidate.index) for candidate in candidates])
    return {name: pd.DataFrame(features(networks, ghn), index=keys) for name, features in FEATURES.items()}


def keys_of(keys: Sequence[NetworkKey]) -> pd.MultiIndex:
    """Return an index of networks for tables of features and targets."""
    return pd.MultiIndex.from_tuples(keys, names=["split", "index"])


@torch.no_grad()
def embedding_features(networks: Sequence[Network], ghn: Hypernetwork) -> np.ndarray:
    """Return the mean node embedding of each network, (networks, H)."""
    groups = [networks[start : start + NETWORKS_AT_ONCE] for start in range(0, len(networks), NETWORKS_AT_ONCE)]
    return torch.cat([ghn.mean_embeddings(group) for group in groups]).double().numpy(force=True)


def size_features(networks: Sequence[Network], ghn: Hypernetwork) -> np.ndarray:
    """Return the logarithms of parameters, nodes and FLOPs of each network, (networks, 3)."""
    summaries = [network.summary(ghn.config.image_size, ghn.config.num_classes) for network in networks]
    return np.log([[summary.num_parameters, summary.nodes, summary.flops] for summary in summaries])


def graph_features(networks: Sequence[Network], ghn: Hypernetwork) -> np.ndarray:
    """Return degree, path, diameter, depth and the share of each primitive of each network, (networks, 4 + 15)."""
    graphs = (network.graph(ghn.config.image_size, ghn.config.num_classes) for network in networks)
    rows = [statistics_of_graph(graph) for graph in graphs]
    return np.array([[*statistics[:-1], *statistics.shares] for statistics in rows])


FEATURES: dict[str, Callable[[Sequence[Network], Hypernetwork], np.ndarray]] = {
    EMBEDDING: embedding_features,
    "size": size_features,
    "graph": graph_features,
}
"""Functions from networks and a hypernetwork to a row of features for each network, in the order of tables."""
