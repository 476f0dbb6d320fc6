"""The decoder of vectors: scales and biases."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class VectorDecoder(nn.Module):
    """Decodes vectors: MLP H→2H→2·2H; row 0 is a norm's weight, row 1 any bias.

    The classification bias is Linear 2H→classes of ReLU(row 1).
    """

    def __init__(self, hidden: int, num_classes: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 4 * hidden))
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, h: Tensor) -> Tensor:
        """The two rows (n, 2, 2H) of nodes with states (n, H)."""
        return self.mlp(h).view(len(h), 2, -1)

    def classification(self, rows: Tensor) -> Tensor:
        """The classification biases (n, classes) from the rows (n, 2, 2H)."""
        return self.classes(F.relu(rows[:, 1]))
