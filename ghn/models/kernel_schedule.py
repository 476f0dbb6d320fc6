"""A pass of the gated graph neural network as one kernel on a GPU, in Triton.

Level by level, a pass is hundreds of levels of small kernels, and starting them takes longer than their arithmetic.
Here one program of a kernel visits the nodes of one graph, one after the other; no message leaves a graph, so programs
do not wait for each other. States are fp32.

Dimensions: those of `ghn.models.gated_pass`; G graphs, E entries of the sums.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from scipy import sparse
from torch import Tensor

from ghn.models import gated_kernels
from ghn.models.gated_pass import PassGradients, PassStates, PassWeights, Schedule
from ghn.networks.devices import upload

ENTRIES = 32
"""How many entries of a sum are read at once."""


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows: those of node v, or of table row r, are entries `bounds[v]` to `bounds[v + 1]`."""

    bounds: Tensor
    columns_E: Tensor
    weights_E: Tensor

    @classmethod
    def of(cls, matrix: sparse.csr_array, device: torch.device) -> SparseRows:
        """Return the rows of a matrix on a device."""
        return cls(
            _upload(matrix.indptr, np.int32, device),
            _upload(matrix.indices, np.int32, device),
            _upload(matrix.data, np.float32, device),
        )


@dataclass(frozen=True)
class KernelSchedule(Schedule):
    """The nodes of each graph in the order in which a pass updates them.

    Attributes:
        nodes_N: those of the first graph first.
        graph_bounds: where the nodes of each graph begin, and where the last ones end, (G + 1,).
        incoming: the matrix (N, R) that maps the message table to the received messages.
        outgoing: its transpose.
    """

    nodes_N: Tensor
    graph_bounds: Tensor
    incoming: SparseRows
    outgoing: SparseRows

    @classmethod
    def of(
        cls, sums: sparse.csr_array, graph_of: np.ndarray, device: torch.device, is_backward: bool = False
    ) -> KernelSchedule:
        """Return the schedule of a pass.

        Args:
            sums: the sparse matrix (N, R) that maps the message table to the received messages.
            graph_of: the number of each node's graph, (N,); nodes are sorted by level.
            is_backward: whether the pass begins with the last node.
        """
        order = -np.arange(len(graph_of)) if is_backward else np.arange(len(graph_of))
        return cls(
            nodes_N=_upload(np.lexsort((order, graph_of)), np.int32, device),
            graph_bounds=_upload(np.concatenate([[0], np.cumsum(np.bincount(graph_of))]), np.int32, device),
            incoming=SparseRows.of(sums, device),
            outgoing=SparseRows.of(sums.T.tocsr(), device),
        )

    def update(self, states: PassStates, weights: PassWeights) -> None:
        """Write what each node receives, its gates, its updated state and the messages that it sends."""
        self._run(gated_kernels.update, self.incoming, states.tensors(), tuple(vars(weights).values()), weights)

    def differentiate(self, states: PassStates, weights: PassWeights, gradients: PassGradients) -> None:
        """Write the gradients of all nodes, the last updated first."""
        of_nodes = (states.inner_ND, states.messages_NKH, *vars(gradients).values())
        self._run(
            gated_kernels.differentiate, self.outgoing, of_nodes, (weights.w1_DH, weights.w2, weights.w_ih), weights
        )

    def _run(
        self,
        kernel: Any,
        rows: SparseRows,
        of_nodes: tuple[Tensor, ...],
        matrices: tuple[Tensor, ...],
        weights: PassWeights,
    ) -> None:
        """Run a kernel with a program for each graph, on the device of the states."""
        device = of_nodes[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(len(self.graph_bounds) - 1,)](
                *of_nodes,
                *(matrix.contiguous() for matrix in matrices),
                self.nodes_N,
                self.graph_bounds,
                rows.bounds,
                rows.columns_E,
                rows.weights_E,
                **_sizes(weights),
            )


def try_kernels(device: torch.device) -> None:
    """Run both kernels for a graph of one edge, and wait for them; whatever they raise passes through."""
    H = 8
    schedule = KernelSchedule.of(sparse.csr_array(np.array([[0.0, 0.0], [1.0, 0.0]])), np.zeros(2, dtype=int), device)
    square, row = torch.zeros(H, H, device=device), torch.zeros(H, device=device)
    weights = PassWeights(square, row, square, row, square.repeat(3, 1), row.repeat(3))
    states = PassStates.of(square[:2], square.repeat(1, 3)[:2], H, weights.kinds)
    schedule.update(states, weights)
    gradients = PassGradients.of(states, square[:2])
    schedule.differentiate(states, weights, gradients)
    gradients.d_received_NH.cpu()


def _upload(values: np.ndarray, dtype: type, device: torch.device) -> Tensor:
    return upload(torch.from_numpy(np.ascontiguousarray(values, dtype)), device)


def _sizes(weights: PassWeights) -> dict[str, Any]:
    """Return the sizes that a kernel is compiled for, and its number of warps of 32 threads."""
    D, H = weights.w1_DH.shape
    M = weights.kinds * H
    powers = {name: triton.next_power_of_2(size) for name, size in (("HP", H), ("DP", D), ("MP", M))}
    # Stages would read messages ahead of the visits that write them.
    return {"H": H, "D": D, "M": M, **powers, "EP": ENTRIES, "num_warps": 4 if H <= 32 else 8, "num_stages": 1}
