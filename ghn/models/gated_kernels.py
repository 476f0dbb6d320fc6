"""The kernels of a pass of the gated graph neural network, in Triton: see `ghn.models.kernel_schedule`.

One program visits the nodes of one graph, one after the other. It has threads for the H numbers of a state and holds
the weights in registers. What its earlier visits have written is read from global memory, after a barrier of its
threads.

With the environment variable `TRITON_INTERPRET=1`, set before Triton is imported, they run on a CPU, slowly.

Dimensions: those of `ghn.models.gated_pass`; E entries of the sums, M = K·H numbers of a node's messages. Letters with
a P are the powers of two that Triton's blocks have, at least as large: HP for H.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _matrix(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Read a matrix (ROWS, COLUMNS); what lies beyond it is 0."""
    is_inside = (rows[:, None] < ROWS) & (columns[None, :] < COLUMNS)
    return tl.load(pointer + rows[:, None] * COLUMNS + columns[None, :], mask=is_inside, other=0.0)


@triton.jit
def _weighted_sum(table, columns_E, weights_E, begin, end, h, H: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr):
    """Return the weighted sum (H,) of the rows of a table (R, H) that entries `begin` to `end` name."""
    total = tl.zeros((HP,), tl.float32)
    for first in range(begin, end, EP):
        entry = first + tl.arange(0, EP)
        row = tl.load(columns_E + entry, mask=entry < end, other=0)
        weight = tl.load(weights_E + entry, mask=entry < end, other=0.0)
        is_inside = (entry[:, None] < end) & (h[None, :] < H)
        values = tl.load(table + row[:, None] * H + h[None, :], mask=is_inside, other=0.0)
        total += tl.sum(weight[:, None] * values, axis=0)
    return total


@triton.jit
def update(
    h_NH,
    from_state_N3H,
    received_NH,
    gates_N2H,
    candidate_NH,
    updated_NH,
    inner_ND,
    messages_NKH,
    w1_DH,
    b1_D,
    w2,
    b2,
    w_ih,
    b_ih,
    nodes_N,
    graph_bounds,
    bounds,
    columns_E,
    weights_E,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    EP: tl.constexpr,
):
    """Visit the nodes of one graph: see `KernelSchedule.update`."""
    graph = tl.program_id(0)
    h, d, m = tl.arange(0, HP), tl.arange(0, DP), tl.arange(0, MP)
    w1, w2 = _matrix(w1_DH, d, h, D, H), _matrix(w2, m, d, M, D)
    w_reset = _matrix(w_ih, h, h, H, H)
    w_update = _matrix(w_ih + H * H, h, h, H, H)
    w_candidate = _matrix(w_ih + 2 * H * H, h, h, H, H)
    b1, b2 = tl.load(b1_D + d, mask=d < D, other=0.0), tl.load(b2 + m, mask=m < M, other=0.0)
    b_reset = tl.load(b_ih + h, mask=h < H, other=0.0)
    b_update = tl.load(b_ih + H + h, mask=h < H, other=0.0)
    b_candidate = tl.load(b_ih + 2 * H + h, mask=h < H, other=0.0)
    for visit in range(tl.load(graph_bounds + graph), tl.load(graph_bounds + graph + 1)):
        v = tl.load(nodes_N + visit)
        begin, end = tl.load(bounds + v), tl.load(bounds + v + 1)
        received = _weighted_sum(messages_NKH, columns_E, weights_E, begin, end, h, H, HP, EP)
        from_state = from_state_N3H + v * 3 * H + h
        to_reset = tl.load(from_state, mask=h < H, other=0.0)
        to_update = tl.load(from_state + H, mask=h < H, other=0.0)
        to_candidate = tl.load(from_state + 2 * H, mask=h < H, other=0.0)
        reset = tl.sigmoid(to_reset + b_reset + tl.sum(w_reset * received[None, :], axis=1))
        update = tl.sigmoid(to_update + b_update + tl.sum(w_update * received[None, :], axis=1))
        candidate = b_candidate + tl.sum(w_candidate * received[None, :], axis=1) + reset * to_candidate
        candidate = 2 * tl.sigmoid(2 * candidate) - 1  # tanh
        updated = candidate + update * (tl.load(h_NH + v * H + h, mask=h < H, other=0.0) - candidate)
        inner = tl.maximum(b1 + tl.sum(w1 * updated[None, :], axis=1), 0.0, propagate_nan=tl.PropagateNan.ALL)
        messages = tl.maximum(b2 + tl.sum(w2 * inner[None, :], axis=1), 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(received_NH + v * H + h, received, mask=h < H)
        tl.store(gates_N2H + v * 2 * H + h, reset, mask=h < H)
        tl.store(gates_N2H + v * 2 * H + H + h, update, mask=h < H)
        tl.store(candidate_NH + v * H + h, candidate, mask=h < H)
        tl.store(updated_NH + v * H + h, updated, mask=h < H)
        tl.store(inner_ND + v * D + d, inner, mask=d < D)
        tl.store(messages_NKH + v * M + m, messages, mask=m < M)
        tl.debug_barrier()  # the next visits read these messages


@triton.jit
def differentiate(
    inner_ND,
    messages_NKH,
    factors_N3H,
    d_state_NH,
    d_gates_N3H,
    d_received_NH,
    d_inner_ND,
    d_messages_NKH,
    w1_DH,
    w2,
    w_ih,
    nodes_N,
    graph_bounds,
    bounds,
    columns_E,
    weights_E,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    EP: tl.constexpr,
):
    """Visit the nodes of one graph in the reverse order: see `KernelSchedule.differentiate`."""
    graph = tl.program_id(0)
    h, d = tl.arange(0, HP), tl.arange(0, DP)
    w1 = _matrix(w1_DH, d, h, D, H)
    w_reset = _matrix(w_ih, h, h, H, H)
    w_update = _matrix(w_ih + H * H, h, h, H, H)
    w_candidate = _matrix(w_ih + 2 * H * H, h, h, H, H)
    first, last = tl.load(graph_bounds + graph), tl.load(graph_bounds + graph + 1)
    for visit in range(0, last - first):
        v = tl.load(nodes_N + last - 1 - visit)
        d_inner = tl.zeros((DP,), tl.float32)
        for kind in tl.static_range(M // H):
            row = v * (M // H) + kind
            begin, end = tl.load(bounds + row), tl.load(bounds + row + 1)
            d_message = _weighted_sum(d_received_NH, columns_E, weights_E, begin, end, h, H, HP, EP)
            message = tl.load(messages_NKH + row * H + h, mask=h < H, other=0.0)
            d_message = tl.where(message > 0, d_message, 0.0)
            tl.store(d_messages_NKH + row * H + h, d_message, mask=h < H)
            d_inner += tl.sum(_matrix(w2 + kind * H * D, h, d, H, D) * d_message[:, None], axis=0)
        d_inner = tl.where(tl.load(inner_ND + v * D + d, mask=d < D, other=0.0) > 0, d_inner, 0.0)
        tl.store(d_inner_ND + v * D + d, d_inner, mask=d < D)
        d_state = tl.load(d_state_NH + v * H + h, mask=h < H, other=0.0) + tl.sum(w1 * d_inner[:, None], axis=0)
        tl.store(d_state_NH + v * H + h, d_state, mask=h < H)
        factors = factors_N3H + v * 3 * H + h
        d_reset = d_state * tl.load(factors, mask=h < H, other=0.0)
        d_update = d_state * tl.load(factors + H, mask=h < H, other=0.0)
        d_candidate = d_state * tl.load(factors + 2 * H, mask=h < H, other=0.0)
        d_gates = d_gates_N3H + v * 3 * H + h
        tl.store(d_gates, d_reset, mask=h < H)
        tl.store(d_gates + H, d_update, mask=h < H)
        tl.store(d_gates + 2 * H, d_candidate, mask=h < H)
        d_received = tl.sum(
            w_reset * d_reset[:, None] + w_update * d_update[:, None] + w_candidate * d_candidate[:, None], axis=0
        )
        tl.store(d_received_NH + v * H + h, d_received, mask=h < H)
        tl.debug_barrier()  # the next visits read what these messages received
