"""The graph transformer of GHN-3.

Every node attends to every node of its graph, with a bias that depends on the distances between them. Source:
Knyazev, Hwang, Lacoste-Julien, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?", ICML
2023, section 3; the bias and the embeddings of degrees follow Ying et al., "Do Transformers Really Perform Badly for
Graph Representation?", NeurIPS 2021.

Graphs of a batch are not padded: layers read the nodes of all graphs side by side, and attention each graph alone, so
that graphs of different sizes cost what they would cost one by one. Graphs are acyclic, so a pair of nodes has a
distance in at most one direction, and the bias takes one of 2s + 1 values for each head: it is computed once for each
of them, and looked up for the pairs.

Dimensions: N nodes of all graphs, n nodes of one graph, E edges, H hidden, F = 3H, A heads, D = H/A features of a
head, s longest distance, V = 2s + 1 kinds of pairs, P = n² pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ghn.models.gnn import GNN
from ghn.networks.devices import upload
from ghn.networks.graph_batch import GraphBatch

MOST_DEGREE, MOST_DEPTH = 100, 1000
"""Degrees, and distances from the input, above which all have the same embedding."""

DISTANCE_ROWS = 257
"""Rows of the table of distances, which `ghn.models.config.LONGEST_DISTANCE` follows from."""

FIRST_DISTANCE = 2
"""The row of distance 0, which stands for "no path", in the table of distances. The rows before it are not read."""

LAYERS_KEPT = 8
"""Layers up to which activations are kept for the backward pass; those of deeper transformers are computed again."""


class GraphTransformer(GNN):
    """Layers of attention and of an MLP on each node.

    Args:
        hidden: H.
        layers: the number of layers.
        heads: A, a divisor of H.
        longest_distance: s, in direct edges; nodes farther apart count as unconnected.
    """

    def __init__(self, hidden: int, layers: int, heads: int, longest_distance: int):
        super().__init__()
        self.longest_edge = longest_distance
        self.in_degrees = nn.Embedding(MOST_DEGREE + 1, hidden)
        self.out_degrees = nn.Embedding(MOST_DEGREE + 1, hidden)
        self.depths = nn.Embedding(MOST_DEPTH + 1, hidden)
        self.distances = nn.Embedding(DISTANCE_ROWS, hidden)
        self.bias = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, heads))
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads) for _ in range(layers))

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> Tensor:
        """Return the updated states (N, H) of states (N, H), both in the order of `batch.nodes`."""
        order_N = np.argsort(batch.graph_of, kind="stable")  # nodes of a graph side by side
        place_N = np.empty_like(order_N)
        place_N[order_N] = np.arange(len(order_N))
        sizes = np.bincount(batch.graph_of, minlength=batch.num_graphs).tolist()
        device = h_NH.device
        h_NH = h_NH + self.in_degrees(_tensor(_degrees(batch, batch.targets), device))
        h_NH = h_NH + self.out_degrees(_tensor(_degrees(batch, batch.sources), device))
        h_NH = h_NH + self.depths(_tensor(_depths(batch), device))
        h_NH = h_NH[_tensor(order_N, device)]
        values_AV = self._bias_values()
        kinds = pair_kinds(batch, place_N, sizes, self.longest_edge)
        biases = [_LookUp.apply(values_AV, _tensor(kinds_nn, device)) for kinds_nn in kinds]
        is_kept = len(self.layers) <= LAYERS_KEPT or not torch.is_grad_enabled()
        for layer in self.layers:
            if is_kept:
                h_NH = layer(h_NH, biases, sizes)
            else:
                h_NH = checkpoint(layer, h_NH, biases, sizes, use_reentrant=False)
        return h_NH[_tensor(place_N, device)]

    def _bias_values(self) -> Tensor:
        """Return the bias (A, V) of each kind of pair, numbered as `pair_kinds` does."""
        s = self.longest_edge
        device = self.distances.weight.device
        there_V = torch.arange(2 * s + 1, device=device)
        there_V[s + 1 :] = 0
        back_V = torch.arange(2 * s + 1, device=device) - s
        back_V[: s + 1] = 0
        pairs_V2H = torch.cat([self.distances(there_V + FIRST_DISTANCE), self.distances(back_V + FIRST_DISTANCE)], 1)
        values_VA: Tensor = self.bias(pairs_V2H)
        return values_VA.T.contiguous()


class TransformerLayer(nn.Module):
    """Attention within each graph, then an MLP H→4H→H on each node; both read normalised states and are added."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, h_NH: Tensor, biases: list[Tensor], sizes: list[int]) -> Tensor:
        """Return the updated states (N, H), nodes of a graph side by side.

        Args:
            biases: of each graph, (A, n, n): what is added to the scores of a query (row) for the keys (columns).
            sizes: n of each graph.
        """
        N, H = h_NH.shape
        projected_NF: Tensor = self.queries_keys_values(self.attention_norm(h_NH))
        heads_3AND = projected_NF.view(N, 3, self.heads, H // self.heads).permute(1, 2, 0, 3)
        scale = (H // self.heads) ** -0.5
        attended = []
        for heads_3AnD, bias_Ann in zip(heads_3AND.split_with_sizes(sizes, 2), biases, strict=True):
            queries_AnD, keys_AnD, values_AnD = heads_3AnD
            scores_Ann = torch.baddbmm(bias_Ann, queries_AnD, keys_AnD.transpose(1, 2), alpha=scale)
            attended.append(torch.bmm(scores_Ann.softmax(2), values_AnD))
        h_NH = h_NH + self.out(torch.cat(attended, 1).transpose(0, 1).reshape(N, H))
        updated_NH: Tensor = h_NH + self.mlp(self.mlp_norm(h_NH))
        return updated_NH


def pair_kinds(batch: GraphBatch, place_N: np.ndarray, sizes: list[int], longest: int) -> list[np.ndarray]:
    """Return the kind of each pair of nodes (u, v) of each graph, int64 (n, n).

    It is d if v is at distance d from u, s + d if u is at distance d from v, and 0 if there is no path up to s edges.

    Args:
        place_N: where each node of `batch.nodes` lies when nodes of a graph lie side by side.
        sizes: n of each graph.
        longest: s.
    """
    graph_E = batch.graph_of[batch.sources]
    first_E = np.cumsum([0, *sizes[:-1]])[graph_E]
    sources_E, targets_E = place_N[batch.sources] - first_E, place_N[batch.targets] - first_E
    distances_E = batch.distances.astype(np.int64)
    by_graph_E = np.argsort(graph_E, kind="stable")
    own_edges = np.split(by_graph_E, np.searchsorted(graph_E[by_graph_E], np.arange(1, len(sizes))))
    kinds = [np.zeros((n, n), dtype=np.int64) for n in sizes]
    for kinds_nn, own in zip(kinds, own_edges, strict=True):
        kinds_nn[sources_E[own], targets_E[own]] = distances_E[own]
        kinds_nn[targets_E[own], sources_E[own]] = longest + distances_E[own]
    return kinds


def _degrees(batch: GraphBatch, ends_E: np.ndarray) -> np.ndarray:
    """Return how many direct edges have each node at this end, (N,), at most `MOST_DEGREE`."""
    return np.bincount(ends_E[batch.distances == 1], minlength=batch.num_nodes).clip(max=MOST_DEGREE)


def _depths(batch: GraphBatch) -> np.ndarray:
    """Return the distance of each node from the nearest input of its graph, (N,); 0 where no input is near enough.

    The first node stands for the input in a graph without one, such as that of a network that reads tokens.
    """
    is_input_N = np.array([node.primitive == "input" for node in batch.nodes])
    with_input = np.bincount(batch.graph_of, is_input_N, minlength=batch.num_graphs) > 0
    _, first = np.unique(batch.graph_of, return_index=True)
    is_input_N[first[~with_input]] = True
    from_input_E = is_input_N[batch.sources]
    depth_N = np.full(batch.num_nodes, MOST_DEPTH)
    np.minimum.at(depth_N, batch.targets[from_input_E], batch.distances[from_input_E])
    reached_N = np.zeros(batch.num_nodes, dtype=bool)
    reached_N[batch.targets[from_input_E]] = True
    return np.where(reached_N, depth_N, 0)


class _LookUp(torch.autograd.Function):
    """The values (A, n, n) of pairs, of a table (A, V) by their kinds (n, n).

    Indexing has the same result, with a gradient that takes ten times as long.
    """

    @staticmethod
    def forward(ctx: Any, values_AV: Tensor, kinds_nn: Tensor) -> Tensor:
        """Return the values of the pairs."""
        ctx.save_for_backward(kinds_nn)
        ctx.kinds = values_AV.shape[1]
        return values_AV[:, kinds_nn]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient at the table."""
        (gradient_Ann,) = gradients
        (kinds_nn,) = ctx.saved_tensors
        rows_PA = gradient_Ann.flatten(1).T.contiguous()
        sums_VA = rows_PA.new_zeros(ctx.kinds, rows_PA.shape[1]).index_add_(0, kinds_nn.flatten(), rows_PA)
        return sums_VA.T, None


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return upload(torch.from_numpy(array), device)
