"""The gated graph neural network of GHN-1 and GHN-2.

One round is a forward pass over the graph in topological order and a backward pass in the reverse order.
Visiting node v, with N(v) its direct neighbours on the incoming side of the pass and N⁺(v) all nodes on that
side at distance 1..s_max:

    m_v = Σ_{u∈N(v)} MLP(h_u) + Σ_{u∈N⁺(v)} MLP_ve(h_u) / d(u,v)
    h_v ← GRU(m_v, h_v)

where h_u is already updated in this pass. Source: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural
Architecture Search", ICLR 2019, eq. 3; virtual edges: Knyazev et al., NeurIPS 2021, eq. 4.

A pass is `ghn.models.gated_pass.Pass`. On a GPU with Triton it runs in one kernel (`ghn.models.kernel_schedule`), for
states in fp32 with at most `MOST_HIDDEN` numbers; else level by level (`ghn.models.level_schedule`).

Dimensions: N nodes, E edges, H hidden, K kinds of messages (1: direct; 2: direct and virtual), R = N·K rows of the
message table.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ghn.models.gated_pass import Pass, Schedule
from ghn.models.gnn import GNN
from ghn.models.level_schedule import LevelSchedule
from ghn.networks.graph_batch import GraphBatch

log = logging.getLogger(__name__)

MOST_HIDDEN = 64
"""The largest H whose weights fit into the registers of a kernel's threads."""


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
        forward, backward = self.schedules(batch)
        for _ in range(self.rounds):
            h_NH = Pass.apply(h_NH, forward, *weights)
            h_NH = Pass.apply(h_NH, backward, *weights)
        return h_NH

    def prepare(self, batch: GraphBatch) -> None:
        """Keep the schedules of the two passes in a batch, on the device of the weights."""
        self.schedules(batch)

    def schedules(self, batch: GraphBatch) -> tuple[Schedule, Schedule]:
        """Return the schedules of the forward pass and of the backward pass over a batch, which keeps them."""
        kinds, weight = 1 if self.mlp_virtual is None else 2, self.gru.weight_ih
        key = (kinds, weight.dtype, weight.device, self.gru.hidden_size)
        if key not in batch.cache:
            batch.cache[key] = _new_schedules(batch, *key)
        found: tuple[Schedule, Schedule] = batch.cache[key]
        return found


def _message_mlp(hidden: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, hidden), nn.ReLU())


def _new_schedules(
    batch: GraphBatch, kinds: int, dtype: torch.dtype, device: torch.device, hidden: int
) -> tuple[Schedule, Schedule]:
    towards = _sums(batch.sources, batch.targets, batch.distances, batch.num_nodes, kinds)
    away = _sums(batch.targets, batch.sources, batch.distances, batch.num_nodes, kinds)
    if dtype == torch.float32 and hidden <= MOST_HIDDEN and has_kernels(device.type):
        from ghn.models.kernel_schedule import KernelSchedule

        return (
            KernelSchedule.of(towards, batch.graph_of, device),
            KernelSchedule.of(away, batch.graph_of, device, is_backward=True),
        )
    return (
        LevelSchedule.of(towards, batch.level_bounds, kinds, dtype, device),
        LevelSchedule.of(away, batch.level_bounds, kinds, dtype, device, is_backward=True),
    )


@cache
def has_kernels(device: str) -> bool:
    """Return whether passes in fp32 can run in one kernel on this type of device, which is tried once.

    Triton needs a compiler of C, the headers of Python and a GPU that it supports. Where it fails, the log says why.
    """
    if device != "cuda" or find_spec("triton") is None:
        return False
    from ghn.models.kernel_schedule import try_kernels

    try:
        try_kernels(torch.device(device))
    except Exception as error:  # of Triton, of the compiler that it calls, or of CUDA
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("the gated graph neural network runs level by level, because its kernels cannot run: %s", reason)
        return False
    return True


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
