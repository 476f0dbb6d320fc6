"""The Weisfeiler-Lehman subtree kernel: how similar two graphs are.

Every node begins with a label that says what it is. In each round it gets a new label, a hash of its own and of those
of its neighbours. After r rounds, nodes have the same label if what surrounds them up to r edges away is the same. The
features of a graph are how often each label of each round occurs in it, and the kernel is the product of the features
of two graphs over the lengths of both: 1 for equal graphs, 0 for graphs without a common label (Shervashidze et al.,
"Weisfeiler-Lehman graph kernels", JMLR 2011).

Graphs are directed: predecessors and successors count apart. The first labels are primitives, and a second time
primitives with shapes; the similarity is the mean of both kernels. So the network that a wider one was made from is
similar to it although no shape is the same. Labels are the same in all processes and on all machines.

Dimensions: N nodes, E edges, G graphs, F features of all graphs, Q queries, V different labels of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from ghn.networks.node_table import NodeTable, joined

ROUNDS = 3
"""The rounds after the first labels."""

FROM_PREDECESSORS, FROM_SUCCESSORS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
"""Numbers that tell the labels of predecessors and of successors apart."""


@dataclass(frozen=True)
class Features:
    """The features of several graphs, of length 1: a sparse vector of labels for each graph."""

    starts: np.ndarray
    """Where the features of each graph begin, and where the last ones end, int64 (G + 1,)."""
    labels_F: np.ndarray
    """The labels, uint64, each once a graph."""
    weights_F: np.ndarray
    """How often they occur, divided so that both kernels count the same, float32."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def matrix(self, labels_V: np.ndarray) -> csr_array:
        """Return the weights of some labels, which are sorted, as a sparse matrix (G, V)."""
        columns_F = np.minimum(np.searchsorted(labels_V, self.labels_F), len(labels_V) - 1)
        is_known_F = labels_V[columns_F] == self.labels_F
        starts = np.concatenate([[0], np.cumsum(is_known_F)])[self.starts]
        return csr_array((self.weights_F[is_known_F], columns_F[is_known_F], starts), shape=(len(self), len(labels_V)))


def features(tables: Sequence[NodeTable], rounds: int = ROUNDS) -> Features:
    """Return the features of at least one graph, all of which have nodes; they are computed together."""
    (nodes_N5, edges_E2), sizes = joined(tables)
    neighbours = Neighbours(edges_E2, len(nodes_N5))
    of_primitives = _rounds(_first_labels(nodes_N5[:, :1]), neighbours, rounds)
    of_shapes = _rounds(_first_labels(nodes_N5), neighbours, rounds)
    graph_N = np.repeat(np.arange(len(sizes)), sizes)
    return _counted(np.tile(graph_N, 2 * (rounds + 1)), np.concatenate(of_primitives + of_shapes), len(sizes))


def similarities(queries: Features, candidates: Features) -> np.ndarray:
    """Return the similarity of each query to each candidate, 0 to 1, float32 (Q, G)."""
    labels_V = np.unique(queries.labels_F)
    products_GQ = candidates.matrix(labels_V) @ queries.matrix(labels_V).T
    similarity_QG: np.ndarray = np.minimum(products_GQ.toarray().T, 1)  # rounding may give a little more
    return similarity_QG


class Neighbours:
    """The edges of a graph, sorted by source and by target, to add up what lies at the other ends."""

    def __init__(self, edges_E2: np.ndarray, num_nodes: int):
        self._ends = []
        for here, there in ((1, 0), (0, 1)):
            edges_E2 = edges_E2[np.argsort(edges_E2[:, here], kind="stable")]
            bounds = np.searchsorted(edges_E2[:, here], np.arange(num_nodes + 1))
            self._ends.append((edges_E2[:, there], bounds))

    def sums(self, from_predecessors_N: np.ndarray, from_successors_N: np.ndarray) -> np.ndarray:
        """Return for each node the sum of what its predecessors and its successors have, modulo 2⁶⁴, (N,)."""
        total_N = np.zeros_like(from_predecessors_N)
        for values_N, (there_E, bounds) in zip((from_predecessors_N, from_successors_N), self._ends, strict=True):
            cumulated = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values_N[there_E])])
            total_N += cumulated[bounds[1:]] - cumulated[bounds[:-1]]
        return total_N


def _first_labels(columns: np.ndarray) -> np.ndarray:
    """Return labels of nodes, equal for nodes whose columns (N, …) are equal, uint64 (N,)."""
    labels_N = np.full(len(columns), columns.shape[1], dtype=np.uint64)
    for column_N in columns.T:
        labels_N = _mixed(labels_N + column_N.astype(np.int64).astype(np.uint64))
    return labels_N


def _rounds(labels_N: np.ndarray, neighbours: Neighbours, rounds: int) -> list[np.ndarray]:
    """Return the labels of the nodes at first and after each round."""
    labels = [labels_N]
    for _ in range(rounds):
        sums_N = neighbours.sums(_mixed(labels[-1] ^ FROM_PREDECESSORS), _mixed(labels[-1] ^ FROM_SUCCESSORS))
        labels.append(_mixed(_mixed(labels[-1]) + sums_N))
    return labels


def _counted(graph_F: np.ndarray, labels_F: np.ndarray, num_graphs: int) -> Features:
    """Return the features of graphs from their labels, with repetitions, each with its graph.

    The first half of the labels belongs to the first kernel, and the second half to the second one.
    """
    kernel_F = np.arange(len(labels_F)) >= len(labels_F) // 2
    order = np.lexsort((labels_F, graph_F))
    graph_F, labels_F = graph_F[order], labels_F[order]
    is_new_F = np.ones(len(labels_F), dtype=bool)
    is_new_F[1:] = (labels_F[1:] != labels_F[:-1]) | (graph_F[1:] != graph_F[:-1])
    first_F = np.flatnonzero(is_new_F)
    counts_F = np.diff(first_F, append=len(labels_F))
    group_F = 2 * graph_F[first_F] + kernel_F[order[first_F]]
    squares = np.bincount(group_F, weights=np.square(counts_F), minlength=2 * num_graphs)  # of each graph and kernel
    weights_F = (counts_F / np.sqrt(2 * squares)[group_F]).astype(np.float32)
    return Features(np.searchsorted(graph_F[first_F], np.arange(num_graphs + 1)), labels_F[first_F], weights_F)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return well-mixed bits of 64-bit numbers, one to one (the finaliser of Steele et al.'s SplitMix64, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
