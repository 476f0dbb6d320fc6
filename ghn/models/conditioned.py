"""One hypernetwork for several data sets: statistics of a data set's classes decide what it predicts.

Each class has a vector of statistics, of a few of its images. An encoder makes an embedding of it. The mean embedding
of all classes is added to the state of each node, as if it were part of every primitive; the embedding of a class gives
its row of class layers. So the classes have no order and no fixed number, and a data set that was never trained on is
one more set of vectors.

With the statistics of one data set the weights are those of an ordinary hypernetwork (`specialised`).

Dimensions: K classes, F statistics of a class, H hidden, E = 2H features of an embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ghn.models.config import GHNConfig
from ghn.models.hypernetwork import Hypernetwork
from ghn.models.new_classes import CHANNELS, channel_embeddings

PRIMITIVES = "encoder.primitives.weight"
ROWS = {"weights": "decoder.weights.classes", "vectors": "decoder.vectors.classes"}
"""The layers of the decoders of which a class is a row. A decoder without them is conditioned by states alone."""


class ConditionedHypernetwork(nn.Module):
    """A hypernetwork whose rows of classes and whose states are functions of a data set's statistics.

    Args:
        config: that of the hypernetworks that it specialises to, but for the number of classes.
        statistics: F, the statistics of a class.
    """

    def __init__(self, config: GHNConfig, statistics: int):
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.body = Hypernetwork(config)
        self.classes = nn.Sequential(
            nn.Linear(statistics, 4 * hidden),
            nn.ReLU(),
            nn.Linear(4 * hidden, 2 * hidden),
            nn.LayerNorm(2 * hidden),
        )
        self.state = nn.Linear(2 * hidden, hidden)
        rows = {part: _layer(self.body, name) for part, name in ROWS.items()}
        self.rows = nn.ModuleDict(
            {part: nn.Linear(2 * hidden, layer.in_features + 1) for part, layer in rows.items() if layer is not None}
        )

    def weights_for(self, statistics_KF: Tensor) -> dict[str, Tensor]:
        """Return the weights of the hypernetwork for a data set, by name, with gradients to those of this module.

        Args:
            statistics_KF: the statistics of its classes.
        """
        weights: dict[str, Tensor] = dict(self.body.named_parameters())
        embeddings_KE = self.classes(statistics_KF)
        weights[PRIMITIVES] = weights[PRIMITIVES] + self.state(embeddings_KE.mean(0))
        weights[CHANNELS] = channel_embeddings(weights[CHANNELS], self.config.num_classes, len(statistics_KF))
        for part, layer in self.rows.items():
            rows_KR = layer(embeddings_KE) / math.sqrt(embeddings_KE.shape[1])  # as large as rows of a linear layer
            weights[f"{ROWS[part]}.weight"], weights[f"{ROWS[part]}.bias"] = rows_KR[:, :-1], rows_KR[:, -1]
        return weights

    def for_statistics(self, statistics_KF: Tensor) -> Hypernetwork:
        """Return the hypernetwork for a data set as a view, whose weights are tensors with gradients to this module.

        Args:
            statistics_KF: the statistics of its classes.
        """
        with torch.device("meta"):
            view = Hypernetwork(replace(self.config, num_classes=len(statistics_KF)))
        for name, tensor in self.weights_for(statistics_KF).items():
            path, _, leaf = name.rpartition(".")
            layer = view.get_submodule(path)
            del layer._parameters[leaf]
            setattr(layer, leaf, tensor)
        return view

    @torch.no_grad()
    def specialised(self, statistics_KF: Tensor) -> Hypernetwork:
        """Return an ordinary hypernetwork for a data set, in evaluation mode, with weights of its own.

        Args:
            statistics_KF: the statistics of its classes.
        """
        weights = self.weights_for(statistics_KF)
        ghn = Hypernetwork(replace(self.config, num_classes=len(statistics_KF))).to(statistics_KF.device)
        ghn.load_state_dict(weights)
        return ghn.eval()


def _layer(ghn: Hypernetwork, name: str) -> nn.Linear | None:
    """Return a linear layer of a hypernetwork by its name; None if it has none."""
    found = dict(ghn.named_modules()).get(name)
    return found if isinstance(found, nn.Linear) else None
