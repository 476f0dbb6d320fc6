"""The gated graph neural network of GHN-1 and GHN-2, one level of a whole meta-batch at a time.

One round is a forward pass over the graph in topological order and a backward pass in the reverse order.
Visiting node v, with N(v) its direct neighbours on the incoming side of the pass and N⁺(v) all nodes on that
side at distance 1..s_max:

    m_v = Σ_{u∈N(v)} MLP(h_u) + Σ_{u∈N⁺(v)} MLP_ve(h_u) / d(u,v)
    h_v ← GRU(m_v, h_v)

where h_u is already updated in this pass. Source: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural
Architecture Search", ICLR 2019, eq. 3; virtual edges: Knyazev et al., NeurIPS 2021, eq. 4.

Nodes of one level (longest path from the input) exchange no messages, so a level is updated at once. Each MLP
runs once per node, and the sums of a level are one weighted `embedding_bag` of table rows. The gradient is written
out (`_Pass`) because automatic differentiation of hundreds of small in-place steps costs several times the steps.

Dimensions: N nodes, L nodes of a level, H hidden, D hidden width of both MLPs together, K kinds of messages (1: direct;
2: direct and virtual), R = N·K rows of the message table, E entries of the sums. Products of letters are written as
H·K: HK; 2H and 3H are two and three gates of the GRU side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ghn.models.gnn import GNN
from ghn.networks.graph_batch import GraphBatch


class GatedGNN(GNN):
    """One round of gated message passing, as in the module docstring.

    Args:
        hidden: H.
        longest_virtual_edge: s_max, in edges; None: no virtual edges, as in GHN-1.
    """

    def __init__(self, hidden: int, longest_virtual_edge: int | None = None):
        super().__init__()
        self.longest_edge = 1 if longest_virtual_edge is None else longest_virtual_edge
        inner = hidden if longest_virtual_edge is None else hidden // 2
        self.mlp = _message_mlp(hidden, inner)
        self.mlp_virtual = None if longest_virtual_edge is None else _message_mlp(hidden, inner)
        self.gru = nn.GRUCell(hidden, hidden)

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> Tensor:
        """Return the updated states (N, H) of states (N, H), both in the order of `batch.nodes`."""
        mlps = [self.mlp] if self.mlp_virtual is None else [self.mlp, self.mlp_virtual]
        first = [cast(nn.Linear, mlp[0]) for mlp in mlps]
        second = [cast(nn.Linear, mlp[2]) for mlp in mlps]
        weights = (
            torch.cat([layer.weight for layer in first]),
            torch.cat([layer.bias for layer in first]),
            torch.block_diag(*[layer.weight for layer in second]),  # type: ignore[no-untyped-call]
            torch.cat([layer.bias for layer in second]),
            self.gru.weight_ih,
            self.gru.weight_hh,
            self.gru.bias_ih,
            self.gru.bias_hh,
        )
        forward, backward = schedules(batch, len(mlps), h_NH.dtype, h_NH.device)
        h_NH = _Pass.apply(h_NH, forward, *weights)
        h_NH = _Pass.apply(h_NH, backward, *weights)
        return h_NH


def _message_mlp(hidden: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, hidden), nn.ReLU())


@dataclass(frozen=True)
class WeightedSums:
    """The table rows that each node of one level adds up, with their weights."""

    rows_E: Tensor
    offsets_L: Tensor
    """Where the entries of each node begin."""
    weights_E: Tensor

    def of(self, table_RH: Tensor) -> Tensor:
        """Return the weighted sums (L, H) of rows of a table (R, H)."""
        sums: Tensor = torch.embedding_bag(table_RH, self.rows_E, self.offsets_L, False, 0, False, self.weights_E)[0]
        return sums


@dataclass(frozen=True)
class Level:
    """A contiguous range of nodes that is updated at once, and the two sums that it takes part in."""

    nodes: slice
    incoming: WeightedSums | None
    """Sums of the message table (R, H) that each node of the level receives; None if no node receives any."""
    outgoing: WeightedSums | None
    """Sums of the gradient (N, H) of received messages, for each node and kind of message that it sends; None if no
    node sends any."""


def schedules(
    batch: GraphBatch, kinds: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Level], list[Level]]:
    """Return the levels of the forward pass and of the backward pass, each in the order in which they are updated."""
    towards = _sums(batch.sources, batch.targets, batch.distances, batch.num_nodes, kinds)
    away = _sums(batch.targets, batch.sources, batch.distances, batch.num_nodes, kinds)
    forward = _levels(towards, batch.level_bounds, kinds, dtype, device)
    backward = _levels(away, batch.level_bounds, kinds, dtype, device)
    return forward, backward[::-1]


def _sums(
    sources_E: np.ndarray, targets_E: np.ndarray, distances_E: np.ndarray, N: int, kinds: int
) -> sparse.csr_array:
    """Return the sparse matrix (N, R) that maps the message table to the received messages."""
    direct = distances_E == 1
    rows, columns, weights = [targets_E[direct]], [sources_E[direct] * kinds], [np.ones(direct.sum())]
    if kinds == 2:
        rows.append(targets_E)
        columns.append(sources_E * kinds + 1)
        weights.append(1.0 / distances_E)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(sparse.coo_array(entries, shape=(N, N * kinds)))


def _levels(
    sums: sparse.csr_array, bounds: np.ndarray, kinds: int, dtype: torch.dtype, device: torch.device
) -> list[Level]:
    """Return the levels between consecutive bounds, with their sums and those of the transposed matrix."""
    incoming = _cut(sums, bounds, dtype, device)
    outgoing = _cut(sums.T.tocsr(), bounds * kinds, dtype, device)
    ranges = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return [Level(slice(*pair), *both) for pair, *both in zip(ranges, incoming, outgoing, strict=True)]


def _cut(
    sums: sparse.csr_array, bounds: np.ndarray, dtype: torch.dtype, device: torch.device
) -> list[WeightedSums | None]:
    """Return the rows between consecutive bounds as weighted sums; None where all rows are empty."""
    rows_E = torch.from_numpy(sums.indices.astype(np.int64)).to(device)
    weights_E = torch.from_numpy(sums.data).to(device, dtype)
    starts = sums.indptr[bounds].astype(np.int64)
    offsets = sums.indptr[:-1] - np.repeat(starts[:-1], np.diff(bounds))
    offsets_N = torch.from_numpy(offsets.astype(np.int64)).to(device)
    parts: list[WeightedSums | None] = []
    for level, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        begin, end = int(starts[level]), int(starts[level + 1])
        part = WeightedSums(rows_E[begin:end], offsets_N[first:last], weights_E[begin:end])
        parts.append(part if end > begin else None)
    return parts


class _Pass(torch.autograd.Function):
    """One pass over the levels, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        h_NH: Tensor,
        levels: list[Level],
        w1_DH: Tensor,
        b1_D: Tensor,
        w2: Tensor,  # (K·H, D)
        b2: Tensor,  # (K·H,)
        w_ih: Tensor,  # (3H, H)
        w_hh: Tensor,  # (3H, H)
        b_ih: Tensor,  # (3H,)
        b_hh: Tensor,  # (3H,)
    ) -> Tensor:
        """Return the updated states (N, H); weights and biases are those of the message MLPs and of the GRU."""
        N, H = h_NH.shape
        kinds = len(w2) // H
        received_NH = h_NH.new_zeros(N, H)
        gates_N2H = h_NH.new_empty(N, 2 * H)  # reset and update
        candidate_NH = torch.empty_like(h_NH)
        updated_NH = torch.empty_like(h_NH)
        inner_ND = h_NH.new_empty(N, len(w1_DH))
        messages_NKH = h_NH.new_empty(N, kinds * H)
        table_RH = messages_NKH.view(N * kinds, H)
        from_state_N3H = torch.addmm(b_hh, h_NH, w_hh.t())
        w1_t, w2_t, w_ih_t = w1_DH.t().contiguous(), w2.t().contiguous(), w_ih.t().contiguous()
        for level in levels:
            at = level.nodes
            if level.incoming is not None:
                received_NH[at] = level.incoming.of(table_RH)
            from_messages_L3H = torch.addmm(b_ih, received_NH[at], w_ih_t)
            gates_L2H = torch.sigmoid(from_messages_L3H[:, : 2 * H] + from_state_N3H[at, : 2 * H])
            candidate_LH = torch.addcmul(
                from_messages_L3H[:, 2 * H :], gates_L2H[:, :H], from_state_N3H[at, 2 * H :]
            ).tanh_()
            updated_LH = torch.lerp(candidate_LH, h_NH[at], gates_L2H[:, H:])
            inner_LD = torch.addmm(b1_D, updated_LH, w1_t).relu_()
            messages_NKH[at] = torch.addmm(b2, inner_LD, w2_t).relu_()
            gates_N2H[at], candidate_NH[at] = gates_L2H, candidate_LH
            updated_NH[at], inner_ND[at] = updated_LH, inner_LD
        ctx.levels = levels
        per_node = (h_NH, received_NH, gates_N2H, candidate_NH, updated_NH, inner_ND, messages_NKH, from_state_N3H)
        ctx.save_for_backward(*per_node, w1_DH, w2, w_ih, w_hh)
        return updated_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_updated_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients at the arguments of `forward`; `d_x` is the gradient at `x`."""
        *per_node, w1_DH, w2, w_ih, w_hh = ctx.saved_tensors
        h_NH, received_NH, gates_N2H, candidate_NH, updated_NH, inner_ND, messages_NKH, from_state_N3H = per_node
        N, H = h_NH.shape
        kinds = len(w2) // H
        reset_NH, update_NH = gates_N2H[:, :H], gates_N2H[:, H:]
        # The gradient of the three gates' inputs is the state's gradient times these factors.
        to_candidate_NH = (1 - update_NH) * (1 - candidate_NH**2)
        to_reset_NH = to_candidate_NH * from_state_N3H[:, 2 * H :] * reset_NH * (1 - reset_NH)
        to_update_NH = (h_NH - candidate_NH) * update_NH * (1 - update_NH)
        factors_N3H = torch.stack([to_reset_NH, to_update_NH, to_candidate_NH], 1)  # (N, 3, H)

        d_state_NH = d_updated_NH.clone()
        d_gates_N3H = h_NH.new_empty(N, 3, H)
        d_received_NH = h_NH.new_zeros(N, H)
        d_inner_ND = torch.zeros_like(inner_ND)
        d_messages_NKH = torch.zeros_like(messages_NKH)
        for level in reversed(ctx.levels):
            at = level.nodes
            d_state_LH = d_state_NH[at]
            if level.outgoing is not None:
                d_table_LKH = level.outgoing.of(d_received_NH).view(-1, kinds * H)
                d_messages_LKH = d_table_LKH * (messages_NKH[at] > 0)
                d_inner_LD = (d_messages_LKH @ w2) * (inner_ND[at] > 0)
                d_state_LH.addmm_(d_inner_LD, w1_DH)
                d_messages_NKH[at], d_inner_ND[at] = d_messages_LKH, d_inner_LD
            d_gates_L3H = d_state_LH.unsqueeze(1) * factors_N3H[at]
            d_gates_N3H[at] = d_gates_L3H
            d_received_NH[at] = d_gates_L3H.view(-1, 3 * H) @ w_ih
        d_from_messages_N3H = d_gates_N3H.view(N, 3 * H)
        d_from_state_N3H = torch.cat([d_from_messages_N3H[:, : 2 * H], d_from_messages_N3H[:, 2 * H :] * reset_NH], 1)
        d_h_NH = torch.addmm(d_state_NH * update_NH, d_from_state_N3H, w_hh)
        return (
            d_h_NH,
            None,
            d_inner_ND.t() @ updated_NH,
            d_inner_ND.sum(0),
            d_messages_NKH.t() @ inner_ND,
            d_messages_NKH.sum(0),
            d_from_messages_N3H.t() @ received_NH,
            d_from_state_N3H.t() @ h_NH,
            d_from_messages_N3H.sum(0),
            d_from_state_N3H.sum(0),
        )
