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
    """Rounds of gated message passing, as in the module docstring; all have the same weights.

    Args:
        hidden: H.
        longest_virtual_edge: s_max, in edges; None: no virtual edges, as in GHN-1.
        rounds: one as published.
    """

    def __init__(self, hidden: int, longest_virtual_edge: int | None = None, rounds: int = 1):
        super().__init__()
        self.rounds = rounds
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
        for _ in range(self.rounds):
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

    number: int
    """Its place among the levels in the order of their nodes."""
    incoming: WeightedSums | None
    """Sums of the message table (R, H) that each node of the level receives; None if no node receives any."""
    outgoing: WeightedSums | None
    """Sums of the gradient (N, H) of received messages, for each node and kind of message that it sends; None if no
    node sends any."""


@dataclass(frozen=True)
class Schedule:
    """The levels in the order in which a pass updates them, and the number of nodes of each level by its number."""

    levels: list[Level]
    sizes: list[int]


def schedules(batch: GraphBatch, kinds: int, dtype: torch.dtype, device: torch.device) -> tuple[Schedule, Schedule]:
    """Return the schedules of the forward pass and of the backward pass over a batch's graphs."""
    towards = _sums(batch.sources, batch.targets, batch.distances, batch.num_nodes, kinds)
    away = _sums(batch.targets, batch.sources, batch.distances, batch.num_nodes, kinds)
    return (
        _schedule(towards, batch.level_bounds, kinds, dtype, device),
        _schedule(away, batch.level_bounds, kinds, dtype, device, is_backward=True),
    )


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


def _schedule(
    sums: sparse.csr_array,
    bounds: np.ndarray,
    kinds: int,
    dtype: torch.dtype,
    device: torch.device,
    is_backward: bool = False,
) -> Schedule:
    """Return the levels between consecutive bounds, with their sums and those of the transposed matrix."""
    incoming = _cut(sums, bounds, dtype, device)
    outgoing = _cut(sums.T.tocsr(), bounds * kinds, dtype, device)
    levels = [Level(number, *both) for number, both in enumerate(zip(incoming, outgoing, strict=True))]
    return Schedule(levels[::-1] if is_backward else levels, np.diff(bounds).tolist())


def _cut(
    sums: sparse.csr_array, bounds: np.ndarray, dtype: torch.dtype, device: torch.device
) -> list[WeightedSums | None]:
    """Return the rows between consecutive bounds as weighted sums; None where all rows are empty."""
    starts = sums.indptr[bounds].astype(np.int64)
    offsets = sums.indptr[:-1] - np.repeat(starts[:-1], np.diff(bounds))
    entries = np.diff(starts).tolist()
    parts = zip(
        torch.from_numpy(sums.indices.astype(np.int64)).to(device).split_with_sizes(entries),
        torch.from_numpy(offsets.astype(np.int64)).to(device).split_with_sizes(np.diff(bounds).tolist()),
        torch.from_numpy(sums.data).to(device, dtype).split_with_sizes(entries),
        strict=True,
    )
    return [WeightedSums(*part) if count else None for part, count in zip(parts, entries, strict=True)]


class _Pass(torch.autograd.Function):
    """One pass over the levels, with its gradient.

    Each level works in views of tensors for all nodes, which are cut once, because cutting would take longer than the
    work itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_NH: Tensor,
        schedule: Schedule,
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
        kinds, sizes = len(w2) // H, schedule.sizes
        received_NH = h_NH.new_zeros(N, H)
        gates_N2H = h_NH.new_empty(N, 2 * H)  # reset and update
        candidate_NH = torch.empty_like(h_NH)
        updated_NH = torch.empty_like(h_NH)
        inner_ND = h_NH.new_empty(N, len(w1_DH))
        messages_NKH = h_NH.new_empty(N, kinds * H)
        table_RH = messages_NKH.view(N * kinds, H)
        from_state_N3H = torch.addmm(b_hh, h_NH, w_hh.t())
        to_gates_N2H = from_state_N3H[:, : 2 * H] + b_ih[: 2 * H]

        states, received, updated, inner, messages, gates, candidates = (
            x.split_with_sizes(sizes)
            for x in (h_NH, received_NH, updated_NH, inner_ND, messages_NKH, gates_N2H, candidate_NH)
        )
        reset, update = gates_N2H[:, :H].split_with_sizes(sizes), gates_N2H[:, H:].split_with_sizes(sizes)
        to_gates, to_candidate = (
            to_gates_N2H.split_with_sizes(sizes),
            from_state_N3H[:, 2 * H :].split_with_sizes(sizes),
        )
        w1_t, w2_t, w_gates_t, w_candidate_t = (w.t().contiguous() for w in (w1_DH, w2, w_ih[: 2 * H], w_ih[2 * H :]))
        b_candidate_H = b_ih[2 * H :]
        for level in schedule.levels:
            at = level.number
            if level.incoming is not None:
                received[at].copy_(level.incoming.of(table_RH))
            torch.addmm(to_gates[at], received[at], w_gates_t, out=gates[at]).sigmoid_()
            torch.addmm(b_candidate_H, received[at], w_candidate_t, out=candidates[at])
            candidates[at].addcmul_(reset[at], to_candidate[at]).tanh_()
            torch.lerp(candidates[at], states[at], update[at], out=updated[at])
            torch.addmm(b1_D, updated[at], w1_t, out=inner[at]).relu_()
            torch.addmm(b2, inner[at], w2_t, out=messages[at]).relu_()
        ctx.schedule = schedule
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
        sizes = ctx.schedule.sizes
        reset_NH, update_NH = gates_N2H[:, :H], gates_N2H[:, H:]
        # The gradient of the three gates' inputs is the state's gradient times these factors.
        to_candidate_NH = (1 - update_NH) * (1 - candidate_NH**2)
        to_reset_NH = to_candidate_NH * from_state_N3H[:, 2 * H :] * reset_NH * (1 - reset_NH)
        to_update_NH = (h_NH - candidate_NH) * update_NH * (1 - update_NH)
        factors_N3H = torch.stack([to_reset_NH, to_update_NH, to_candidate_NH], 1)  # (N, 3, H)

        d_state_NH = d_updated_NH.clone()
        d_gates_N3H = h_NH.new_empty(N, 3, H)
        d_from_messages_N3H = d_gates_N3H.view(N, 3 * H)
        d_received_NH = h_NH.new_zeros(N, H)
        d_inner_ND = torch.zeros_like(inner_ND)
        d_messages_NKH = torch.zeros_like(messages_NKH)
        is_sent, is_active = (messages_NKH > 0).split_with_sizes(sizes), (inner_ND > 0).split_with_sizes(sizes)

        d_state, d_state_1, factors, d_gates, d_from_messages, d_received, d_inner, d_messages = (
            x.split_with_sizes(sizes)
            for x in (
                d_state_NH,
                d_state_NH.unsqueeze(1),
                factors_N3H,
                d_gates_N3H,
                d_from_messages_N3H,
                d_received_NH,
                d_inner_ND,
                d_messages_NKH,
            )
        )
        for level in reversed(ctx.schedule.levels):
            at = level.number
            if level.outgoing is not None:
                d_table_RH = level.outgoing.of(d_received_NH)
                torch.mul(d_table_RH.view(d_messages[at].shape), is_sent[at], out=d_messages[at])
                torch.mm(d_messages[at], w2, out=d_inner[at]).mul_(is_active[at])
                d_state[at].addmm_(d_inner[at], w1_DH)
            torch.mul(d_state_1[at], factors[at], out=d_gates[at])
            torch.mm(d_from_messages[at], w_ih, out=d_received[at])
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
