"""The decoder of vectors: scales and biases.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, appendix B.

Dimensions: M nodes of a group, H hidden, W most channels; 2 stands for the rows of scales and of biases.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class VectorDecoder(nn.Module):
    """A decoder of vectors: an MLP H→2H→2·W, whose row 0 is the scale of a norm and row 1 any bias.

    The classification bias is Linear W→classes of ReLU(row 1).

    Args:
        hidden: H.
        num_classes: of class layers.
        channels: W, by default 2H.
    """

    def __init__(self, hidden: int, num_classes: int, channels: int | None = None):
        super().__init__()
        channels = 2 * hidden if channels is None else channels
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 2 * channels))
        self.classes = nn.Linear(channels, num_classes)

    def forward(self, h_MH: Tensor) -> Tensor:
        """Return the two rows (M, 2, W) of nodes with states (M, H)."""
        rows: Tensor = self.mlp(h_MH)
        return rows.view(len(h_MH), 2, -1)

    def classification(self, rows_M2W: Tensor) -> Tensor:
        """Return the classification biases (M, classes) of rows (M, 2, W)."""
        biases: Tensor = self.classes(F.relu(rows_M2W[:, 1]))
        return biases

    def last_layers(self) -> list[nn.Linear]:
        """Return the linear layers whose outputs are the predicted numbers."""
        return [cast(nn.Linear, self.mlp[2]), self.classes]
