"""A second weight decoder is a class and a name in `WEIGHT_DECODERS`; no file of the package changes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor, nn
from training_steps import CONFIG, assert_trains_two_steps_saves_and_loads

from ghn import GHNConfig
from ghn.models.config import WEIGHT_DECODERS
from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.parameter_axes import Shape


class LinearDecoder(WeightDecoder):
    def __init__(self, config: GHNConfig):
        super().__init__()
        self.all = nn.Linear(config.hidden, 4 * 4 * 3 * 3)

    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        return tuple(min(size, most) for size, most in zip(shape, (4, 4, 3, 3), strict=True))

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        wholes = [self.all(h_MH).view(-1, 4, 4, 3, 3) for h_MH in states]
        return [x[:, :out, :inputs, :kh, :kw] for x, (out, inputs, kh, kw) in zip(wholes, sizes, strict=True)]


def test_a_new_weight_decoder_trains_saves_and_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(WEIGHT_DECODERS, "linear", LinearDecoder)
    assert_trains_two_steps_saves_and_loads(GHNConfig(**CONFIG, decoder="linear"), tmp_path / "checkpoint")


def test_a_new_weight_decoder_takes_at_most_15_lines() -> None:
    assert len(inspect.getsource(LinearDecoder).splitlines()) + 1 <= 15  # and the line that registers it
