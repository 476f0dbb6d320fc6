"""Hypernetworks: GHN-1, the MLP baseline and GHN-2.

Sources: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural Architecture Search", ICLR 2019 (GHN-1); Knyazev,
Drozdzal, Taylor, Romero-Soriano, "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021 (GHN-2, MLP).

`Hypernetwork` reads graphs, and networks that compile to one. `ghn.models.ghn.GHN` reads any `nn.Module` too; it alone
needs the tracer, so training and evaluation do not depend on it.

Dimensions: N nodes, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from ghn.models.checkpoints import WEIGHTS, CheckpointError, read_checkpoint, read_weights, write_checkpoint
from ghn.models.config import GHNConfig
from ghn.models.gated_gnn import GatedGNN
from ghn.models.node_encoder import NodeEncoder
from ghn.models.parameter_decoder import ParameterDecoder
from ghn.models.ppuda_checkpoints import read_ppuda_checkpoint, write_ppuda_checkpoint
from ghn.networks.graph import Graph
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.network import Network


class Hypernetwork(nn.Module):
    """Predicts all parameters of networks from their graphs, in one forward pass."""

    def __init__(self, config: GHNConfig):
        super().__init__()
        self.config = config
        H = config.hidden
        self.encoder = NodeEncoder(H, config.kernel, config.num_classes)
        if config.variant == "mlp":
            self.gnn = nn.Sequential(nn.Linear(H, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU())
        else:
            self.gnn = GatedGNN(H, virtual_edges=config.variant == "ghn2")
        self.norm = nn.Identity() if config.variant == "ghn1" else nn.LayerNorm(H)
        self.decoder = ParameterDecoder(H, config.kernel, config.num_classes, normalise=config.variant != "ghn1")

    def forward(self, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """Return for each graph its predicted parameters by name: tensors that carry gradients to the hypernetwork."""
        return self.decoder(self.embed(batch), batch)

    def embed(self, batch: GraphBatch) -> Tensor:
        """The states (N, H) of all nodes after message passing, in the batch's order."""
        h_NH = self.encoder(batch)
        h_NH = self.gnn(h_NH) if self.config.variant == "mlp" else self.gnn(h_NH, batch)
        return self.norm(h_NH)

    def batch(self, graphs: Sequence[Graph]) -> GraphBatch:
        """The graphs laid out for this hypernetwork."""
        return GraphBatch.of(graphs, self.config.longest_edge)

    def predict_parameters(
        self,
        networks: Sequence[Network | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return for each network its predicted parameters by name: tensors that carry gradients to the hypernetwork.

        Args:
            networks: architectures and all else that compiles to a program, or graphs.
            image_size: of the target networks, in pixels; by default what the hypernetwork was trained with.
            num_classes: of the target networks; by default what the hypernetwork was trained with.
        """
        if not networks:
            return []
        return Hypernetwork.forward(self, self.batch([self.graph_of(n, image_size, num_classes) for n in networks]))

    def graph_of(self, network: Network | Graph, image_size: int | None, num_classes: int | None) -> Graph:
        """Return the graph that is read of a network; the sizes are by default those of training."""
        if isinstance(network, Graph):
            return network
        size = self.config.image_size if image_size is None else image_size
        return network.graph(size, self.config.num_classes if num_classes is None else num_classes)

    def save(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` reads: weights in safetensors, the configuration in JSON.

        Raises:
            CheckpointError: the folder is there and holds something else, which would be lost.
        """
        write_checkpoint(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Return the hypernetwork of a checkpoint folder, in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit.
        """
        config, weights = read_checkpoint(folder)
        return cls(config)._with_weights(weights, Path(folder) / WEIGHTS)

    def load_weights(self, folder: str | Path) -> Self:
        """Take the weights of a checkpoint folder, in this hypernetwork's own precision; sets evaluation mode.

        Raises:
            CheckpointError: the file is damaged or does not fit.
        """
        return self._with_weights(read_weights(folder), Path(folder) / WEIGHTS)

    @classmethod
    def from_public_checkpoint(cls, path: str | Path) -> Self:
        """Return the hypernetwork of a file in the published format, in evaluation mode; no code of it is executed.

        Raises:
            CheckpointError: the file is missing, damaged or does not fit.
        """
        config, weights = read_ppuda_checkpoint(path)
        try:
            ghn = cls(config)
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
        return ghn._with_weights(weights, Path(path))

    def to_public_checkpoint(self, path: str | Path, epoch: int = 0) -> None:
        """Write a file in the published format, which `from_public_checkpoint` reads.

        Raises:
            CheckpointError: the format has no place for `config.virtual_edges`.
        """
        write_ppuda_checkpoint(path, self.config, self.state_dict(), epoch)

    def _with_weights(self, weights: dict[str, Tensor], path: Path) -> Self:
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} does not fit its configuration: {reason}") from error
        return self.eval()
