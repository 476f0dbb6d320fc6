"""Parts for sequences: recurrent layers, attention, and experts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from awkward_networks.base import PARTS, SIDE, C, Part, conv, image, parameter, part, tokens

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def recurrent(kind: str, start: bool, packed: bool) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        sequence = tokens(x)
        state = None
        if start:
            state = self.start.expand(-1, len(x), -1).contiguous()
            state = (state, state) if kind == "lstm" else state
        if packed:
            lengths = [sequence.shape[1]] * len(x)
            result, _ = self.layer(pack_padded_sequence(sequence, lengths, batch_first=True), state)
            result, _ = pad_packed_sequence(result, batch_first=True)
        else:
            result, _ = self.layer(sequence, state)
        return image(result)

    more = {"start": parameter(1, 1, C)} if start else {}
    return Part(forward, layer=RECURRENT[kind](C, C, batch_first=True), **more)


PARTS |= {
    f"{kind}{'_with_a_start' * start}{'_packed' * packed}": functools.partial(recurrent, kind, start, packed)
    for kind in RECURRENT
    for start in (False, True)
    for packed in (False, True)
}


@part
def attention() -> nn.Module:
    layer = nn.MultiheadAttention(C, 2, batch_first=True)
    return Part(lambda self, x: x + image(self.mix(tokens(x), tokens(x), tokens(x))[0]), mix=layer)


@part
def transformer_layer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(C, 2, 8, batch_first=True)
    return Part(lambda self, x: image(self.layer(tokens(x))), layer=layer)


@part
def routed_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).reshape(-1, C)
        best = self.router(flat).argmax(1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            chosen = best == number
            if chosen.any():
                out[chosen] = expert(flat[chosen])
        return x + out.view(len(x), SIDE, SIDE, C).permute(0, 3, 1, 2)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(C, 6), nn.ReLU(), nn.Linear(6, C)) for _ in range(3))
    return Part(forward, router=nn.Linear(C, 3), experts=experts)


@part
def softly_mixed_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gates = self.router(x.mean((2, 3))).softmax(1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (gates[:, :, None, None, None] * outputs).sum(1)

    return Part(forward, router=nn.Linear(C, 2), experts=nn.ModuleList(conv(1) for _ in range(2)))
