"""The gated graph neural network of GHN-1 and GHN-2, one level of a whole meta-batch at a time.

One round is a forward pass over the graph in topological order and a backward pass in the reverse order.
Visiting node v, with N(v) its direct neighbours on the incoming side of the pass and N⁺(v) all nodes on that
side at distance 1..s_max:

    m_v = Σ_{u∈N(v)} MLP(h_u) + Σ_{u∈N⁺(v)} MLP_ve(h_u) / d(u,v)
    h_v ← GRU(m_v, h_v)

where h_u is already updated in this pass. Source: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural
Architecture Search", ICLR 2019, eq. 3; virtual edges: Knyazev et al., NeurIPS 2021, eq. 4.

Nodes of one level (longest path from the input) do not hear each other, so a level is updated at once; each
MLP runs once a node, and the sums of a level are one weighted bag of table rows. The gradient is written out
(`_Pass`) because automatic differentiation of hundreds of small in-place steps costs several times the steps.

Dimensions: N nodes, H hidden, D hidden width of both MLPs together, K kinds of messages (1: direct; 2: direct
and virtual), E entries of the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ghn.networks.graph_batch import GraphBatch


class GatedGNN(nn.Module):
    """One round of gated message passing (module docstring). States (N, H) to states (N, H)."""

    def __init__(self, hidden: int, virtual_edges: bool):
        super().__init__()
        inner = hidden // 2 if virtual_edges else hidden
        self.mlp = _message_mlp(hidden, inner)
        self.mlp_virtual = _message_mlp(hidden, inner) if virtual_edges else None
        self.gru = nn.GRUCell(hidden, hidden)

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> Tensor:
        mlps = [self.mlp] if self.mlp_virtual is None else [self.mlp, self.mlp_virtual]
        weights = (
            torch.cat([mlp[0].weight for mlp in mlps]),
            torch.cat([mlp[0].bias for mlp in mlps]),
            torch.block_diag(*[mlp[2].weight for mlp in mlps]),
            torch.cat([mlp[2].bias for mlp in mlps]),
            self.gru.weight_ih,
            self.gru.weight_hh,
            self.gru.bias_ih,
            self.gru.bias_hh,
        )
        forward, backward = schedules(batch, len(mlps), h_NH.dtype, h_NH.device)
        h_NH = _Pass.apply(h_NH, forward, *weights)
        return _Pass.apply(h_NH, backward, *weights)


def _message_mlp(hidden: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, hidden), nn.ReLU())


@dataclass(frozen=True)
class WeightedSums:
    """For one level, which table rows each of its nodes sums up, and with which weights."""

    rows: Tensor  # (E,)
    offsets: Tensor  # (nodes,) where the bag of each node begins
    weights: Tensor  # (E,)

    def sum(self, table: Tensor) -> Tensor:
        """The weighted sums of rows of `table` (rows, H): (nodes, H)."""
        return torch.embedding_bag(table, self.rows, self.offsets, False, 0, False, self.weights)[0]


@dataclass(frozen=True)
class Level:
    """A contiguous range of nodes that is updated at once, and the two sums that it takes part in."""

    nodes: slice
    incoming: WeightedSums | None
    """Sums of the message table (N·K, H): what each node of the level receives; None: nothing."""
    outgoing: WeightedSums | None
    """Sums of the gradient of received messages (N, H), for each node and kind of message; None: by nobody."""


def schedules(
    batch: GraphBatch, kinds: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Level], list[Level]]:
    """The levels of the forward and of the backward pass, in the order in which they are updated."""
    towards = _sums(batch.sources, batch.targets, batch.distances, batch.num_nodes, kinds)
    away = _sums(batch.targets, batch.sources, batch.distances, batch.num_nodes, kinds)
    forward = _levels(towards, batch.level_bounds, kinds, dtype, device)
    backward = _levels(away, batch.level_bounds, kinds, dtype, device)
    return forward, backward[::-1]


def _sums(sources: np.ndarray, targets: np.ndarray, distances: np.ndarray, N: int, kinds: int) -> sparse.csr_array:
    """The sparse matrix (N, N·K) that takes the message table to the received messages."""
    direct = distances == 1
    rows, columns, weights = [targets[direct]], [sources[direct] * kinds], [np.ones(direct.sum())]
    if kinds == 2:
        rows.append(targets)
        columns.append(sources * kinds + 1)
        weights.append(1.0 / distances)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(sparse.coo_array(entries, shape=(N, N * kinds)))


def _levels(
    sums: sparse.csr_array, bounds: np.ndarray, kinds: int, dtype: torch.dtype, device: torch.device
) -> list[Level]:
    incoming = _cut(sums, bounds, dtype, device)
    outgoing = _cut(sums.T.tocsr(), bounds * kinds, dtype, device)
    ranges = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return [Level(slice(*pair), *bags) for pair, *bags in zip(ranges, incoming, outgoing, strict=True)]


def _cut(
    sums: sparse.csr_array, bounds: np.ndarray, dtype: torch.dtype, device: torch.device
) -> list[WeightedSums | None]:
    """The rows between consecutive bounds as bags; None where they are all empty."""
    rows = torch.from_numpy(sums.indices.astype(np.int64)).to(device)
    weights = torch.from_numpy(sums.data).to(device, dtype)
    starts = sums.indptr[bounds].astype(np.int64)
    offsets = sums.indptr[:-1] - np.repeat(starts[:-1], np.diff(bounds))
    offsets = torch.from_numpy(offsets.astype(np.int64)).to(device)
    bags: list[WeightedSums | None] = []
    for level, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        begin, end = int(starts[level]), int(starts[level + 1])
        bags.append(WeightedSums(rows[begin:end], offsets[first:last], weights[begin:end]) if end > begin else None)
    return bags


class _Pass(torch.autograd.Function):
    """One pass over the levels, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        levels: list[Level],
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
    ) -> Tensor:
        N, H = h.shape
        kinds = len(w2) // H
        received = h.new_zeros(N, H)
        gates = h.new_empty(N, 2 * H)  # reset and update
        candidate = torch.empty_like(h)
        updated = torch.empty_like(h)
        inner = h.new_empty(N, len(w1))
        messages = h.new_empty(N, kinds * H)
        table = messages.view(N * kinds, H)
        from_state = torch.addmm(b_hh, h, w_hh.t())
        w1_t, w2_t, w_ih_t = w1.t().contiguous(), w2.t().contiguous(), w_ih.t().contiguous()
        for level in levels:
            at = level.nodes
            if level.incoming is not None:
                received[at] = level.incoming.sum(table)
            from_messages = torch.addmm(b_ih, received[at], w_ih_t)
            gate = torch.sigmoid(from_messages[:, : 2 * H] + from_state[at, : 2 * H])
            new = torch.addcmul(from_messages[:, 2 * H :], gate[:, :H], from_state[at, 2 * H :]).tanh_()
            state = torch.lerp(new, h[at], gate[:, H:])
            hidden = torch.addmm(b1, state, w1_t).relu_()
            messages[at] = torch.addmm(b2, hidden, w2_t).relu_()
            gates[at], candidate[at], updated[at], inner[at] = gate, new, state, hidden
        ctx.levels = levels
        ctx.save_for_backward(h, received, gates, candidate, updated, inner, messages, from_state, w1, w2, w_ih, w_hh)
        return updated

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_updated: Tensor) -> tuple[Tensor | None, ...]:
        h, received, gates, candidate, updated, inner, messages, from_state, w1, w2, w_ih, w_hh = ctx.saved_tensors
        N, H = h.shape
        kinds = len(w2) // H
        reset, update = gates[:, :H], gates[:, H:]
        # The gradient of the three gates' inputs is the state's gradient times these factors.
        to_candidate = (1 - update) * (1 - candidate**2)
        to_reset = to_candidate * from_state[:, 2 * H :] * reset * (1 - reset)
        to_update = (h - candidate) * update * (1 - update)
        factors = torch.stack([to_reset, to_update, to_candidate], 1)

        d_state = d_updated.clone()
        d_gates = h.new_empty(N, 3, H)
        d_received = h.new_zeros(N, H)
        d_inner = torch.zeros_like(inner)
        d_messages = torch.zeros_like(messages)
        for level in reversed(ctx.levels):
            at = level.nodes
            state = d_state[at]
            if level.outgoing is not None:
                d_table = level.outgoing.sum(d_received).view(-1, kinds * H)
                d_message = d_table * (messages[at] > 0)
                d_hidden = (d_message @ w2) * (inner[at] > 0)
                state.addmm_(d_hidden, w1)
                d_messages[at], d_inner[at] = d_message, d_hidden
            gate = state.unsqueeze(1) * factors[at]
            d_gates[at] = gate
            d_received[at] = gate.view(-1, 3 * H) @ w_ih
        d_from_messages = d_gates.view(N, 3 * H)
        d_from_state = torch.cat([d_from_messages[:, : 2 * H], d_from_messages[:, 2 * H :] * reset], 1)
        d_h = torch.addmm(d_state * update, d_from_state, w_hh)
        return (
            d_h,
            None,
            d_inner.t() @ updated,
            d_inner.sum(0),
            d_messages.t() @ inner,
            d_messages.sum(0),
            d_from_messages.t() @ received,
            d_from_state.t() @ h,
            d_from_messages.sum(0),
            d_from_state.sum(0),
        )
