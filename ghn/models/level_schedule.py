"""A pass of the gated graph neural network, one level of a whole meta-batch at a time.

Nodes of one level (longest path from the input) exchange no messages, so a level is updated at once. Each MLP
runs once per node, and the sums of a level are one weighted `embedding_bag` of table rows.

Dimensions: those of `ghn.models.gated_pass`, L nodes of a level, E entries of the sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ghn.models.gated_pass import PassGradients, PassStates, PassWeights, Schedule


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
class LevelSchedule(Schedule):
    """The levels in the order in which a pass updates them, and the number of nodes of each level by its number.

    Each level works in views of tensors for all nodes, which are cut once, because cutting would take longer than the
    work itself.
    """

    levels: list[Level]
    sizes: list[int]

    @classmethod
    def of(
        cls,
        sums: sparse.csr_array,
        bounds: np.ndarray,
        kinds: int,
        dtype: torch.dtype,
        device: torch.device,
        is_backward: bool = False,
    ) -> LevelSchedule:
        """Return the levels between consecutive bounds, with their sums and those of the transposed matrix.

        Args:
            sums: the sparse matrix (N, R) that maps the message table to the received messages.
            bounds: where the levels begin, and where the last one ends.
            is_backward: whether the pass begins with the last level.
        """
        incoming = _cut(sums, bounds, dtype, device)
        outgoing = _cut(sums.T.tocsr(), bounds * kinds, dtype, device)
        levels = [Level(number, *both) for number, both in enumerate(zip(incoming, outgoing, strict=True))]
        return cls(levels[::-1] if is_backward else levels, np.diff(bounds).tolist())

    def update(self, states: PassStates, weights: PassWeights) -> None:
        """Write what each level receives, its gates, its updated states and the messages that it sends."""
        H, sizes = states.h_NH.shape[1], self.sizes
        table_RH = states.messages_NKH.view(-1, H)
        to_gates_N2H = states.from_state_N3H[:, : 2 * H] + weights.b_ih[: 2 * H]
        before, received, updated, inner, messages, gates, candidates = (
            x.split_with_sizes(sizes)
            for x in (
                states.h_NH,
                states.received_NH,
                states.updated_NH,
                states.inner_ND,
                states.messages_NKH,
                states.gates_N2H,
                states.candidate_NH,
            )
        )
        reset, update, to_gates, to_candidate = (
            x.split_with_sizes(sizes)
            for x in (
                states.gates_N2H[:, :H],
                states.gates_N2H[:, H:],
                to_gates_N2H,
                states.from_state_N3H[:, 2 * H :],
            )
        )
        w1_t, w2_t, w_gates_t, w_candidate_t = (
            w.t().contiguous() for w in (weights.w1_DH, weights.w2, weights.w_ih[: 2 * H], weights.w_ih[2 * H :])
        )
        b1_D, b2, b_candidate_H = weights.b1_D, weights.b2, weights.b_ih[2 * H :]
        for level in self.levels:
            at = level.number
            if level.incoming is not None:
                received[at].copy_(level.incoming.of(table_RH))
            torch.addmm(to_gates[at], received[at], w_gates_t, out=gates[at]).sigmoid_()
            torch.addmm(b_candidate_H, received[at], w_candidate_t, out=candidates[at])
            candidates[at].addcmul_(reset[at], to_candidate[at]).tanh_()
            torch.lerp(candidates[at], before[at], update[at], out=updated[at])
            torch.addmm(b1_D, updated[at], w1_t, out=inner[at]).relu_()
            torch.addmm(b2, inner[at], w2_t, out=messages[at]).relu_()

    def differentiate(self, states: PassStates, weights: PassWeights, gradients: PassGradients) -> None:
        """Write the gradients of all levels, the last updated first."""
        H, sizes = states.h_NH.shape[1], self.sizes
        is_sent, is_active = (x.split_with_sizes(sizes) for x in (states.messages_NKH > 0, states.inner_ND > 0))
        d_state, d_state_1, factors, d_gates, d_from_messages, d_received, d_inner, d_messages = (
            x.split_with_sizes(sizes)
            for x in (
                gradients.d_state_NH,
                gradients.d_state_NH.unsqueeze(1),
                gradients.factors_N3H,
                gradients.d_gates_N3H,
                gradients.d_gates_N3H.view(-1, 3 * H),
                gradients.d_received_NH,
                gradients.d_inner_ND,
                gradients.d_messages_NKH,
            )
        )
        w1_DH, w2, w_ih = weights.w1_DH, weights.w2, weights.w_ih
        for level in reversed(self.levels):
            at = level.number
            if level.outgoing is not None:
                d_table_RH = level.outgoing.of(gradients.d_received_NH)
                torch.mul(d_table_RH.view(d_messages[at].shape), is_sent[at], out=d_messages[at])
                torch.mm(d_messages[at], w2, out=d_inner[at]).mul_(is_active[at])
                d_state[at].addmm_(d_inner[at], w1_DH)
            torch.mul(d_state_1[at], factors[at], out=d_gates[at])
            torch.mm(d_from_messages[at], w_ih, out=d_received[at])


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
