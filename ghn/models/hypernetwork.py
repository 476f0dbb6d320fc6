"""Hypernetworks, composed of a node encoder, a graph neural network and decoders as `GHNConfig` says.

`Hypernetwork` reads graphs, and networks that compile to one. `ghn.models.ghn.GHN` reads any `nn.Module` too. It alone
needs the tracer, so that training and evaluation do not depend on it.

Dimensions: B networks, N nodes, H hidden.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from ghn.models.checkpoints import (
    WEIGHTS_FILE,
    CheckpointError,
    read_checkpoint,
    read_weights,
    require_checkpoint_folder,
    write_checkpoint,
)
from ghn.models.config import GNNS, WEIGHT_DECODERS, GHNConfig
from ghn.models.hub import download, is_on_hub, model_card, upload
from ghn.models.node_encoder import NodeEncoder
from ghn.models.parameter_decoder import ParameterDecoder
from ghn.models.public_checkpoints import read_public_checkpoint, write_public_checkpoint
from ghn.models.small_start import start_small
from ghn.models.vector_decoder import VectorDecoder
from ghn.networks.graph import Graph
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.network import Network


class Hypernetwork(nn.Module):
    """A network that predicts all parameters of networks from their graphs, in one forward pass."""

    def __init__(self, config: GHNConfig):
        super().__init__()
        self.config = config
        parts = config.composition
        self.encoder = NodeEncoder(config.hidden, config.kernel, config.num_classes)
        self.gnn = GNNS[parts.gnn](config)
        self.norm = nn.LayerNorm(config.hidden) if parts.layer_norm else nn.Identity()
        weights = WEIGHT_DECODERS[parts.decoder](config)
        vectors = None
        if not weights.decodes_vectors:
            vectors = VectorDecoder(config.hidden, config.num_classes, config.channels)
        self.decoder = ParameterDecoder(weights, vectors, parts.normalise, parts.dirac)
        if parts.small_start:
            start_small(self.encoder, self.gnn, self.decoder)

    def forward(self, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """Return for each graph its predicted parameters by name: tensors that carry gradients to the hypernetwork."""
        predicted: list[dict[str, Tensor]] = self.decoder(self.embed(batch), batch)
        return predicted

    def embed(self, batch: GraphBatch) -> Tensor:
        """Return the states (N, H) of all nodes after message passing, in the order of `batch.nodes`."""
        h_NH: Tensor = self.norm(self.gnn(self.encoder(batch), batch))
        return h_NH

    def mean_embeddings(
        self,
        networks: Sequence[Network | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> Tensor:
        """Return the mean state (B, H) of each network's nodes after message passing, which describes the network.

        Networks with similar embeddings get similar parameters; properties of networks are a function of them
        (Knyazev et al., NeurIPS 2021, section 5). Arguments and errors are those of `predict_parameters`.
        """
        batch = self.batch([self.graph_of(network, image_size, num_classes) for network in networks])
        h_NH = self.embed(batch)
        graph_N = torch.as_tensor(batch.graph_of, device=h_NH.device)
        sums_BH = h_NH.new_zeros(batch.num_graphs, h_NH.shape[1]).index_add(0, graph_N, h_NH)
        return sums_BH / torch.bincount(graph_N, minlength=batch.num_graphs)[:, None]

    def batch(self, graphs: Sequence[Graph]) -> GraphBatch:
        """Return the graphs as one, with the edges that this hypernetwork's GNN reads, and prepared for it."""
        batch = GraphBatch.of(graphs, self.gnn.longest_edge)
        self.gnn.prepare(batch)
        return batch

    def predict_parameters(
        self,
        networks: Sequence[Network | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return for each network its predicted parameters by name: tensors that carry gradients to the hypernetwork.

        Args:
            networks: graphs, or architectures and all else that compiles to a program.
            image_size: of the target networks, in pixels; by default that of the hypernetwork's training.
            num_classes: of the target networks; by default that of the hypernetwork's training.

        Raises:
            ValueError: a size is impossible.
        """
        if not networks:
            return []
        batch = self.batch([self.graph_of(network, image_size, num_classes) for network in networks])
        predicted: list[dict[str, Tensor]] = self(batch)
        return predicted

    def graph_of(self, network: Network | Graph, image_size: int | None, num_classes: int | None) -> Graph:
        """Return the graph of a network; sizes that are None are those of the hypernetwork's training.

        Raises:
            ValueError: a size is impossible.
        """
        if isinstance(network, Graph):
            return network
        size = self.config.image_size if image_size is None else image_size
        return network.graph(size, self.config.num_classes if num_classes is None else num_classes)

    def repeated_weights(self, graph: Graph) -> tuple[str, ...]:
        """Return the names of the weights of a graph whose channels repeat: it has more than are decoded."""
        return tuple(node.parameters[0].name for node in graph.nodes if self.decoder.repeats(node))

    @property
    def most_rank(self) -> int | None:
        """The highest rank of predicted weights as matrices (out, in · kernel); None: any."""
        return None if self.decoder.dirac else self.decoder.weights.most_rank

    def save(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` reads: weights in safetensors, the configuration in JSON.

        Raises:
            CheckpointError: the folder exists and holds something else, which would be lost.
        """
        write_checkpoint(folder, self.config, self.state_dict())

    @staticmethod
    def require_free(folder: str | Path) -> None:
        """Check that `save` may write a folder, before something takes long that is to be saved there.

        Raises:
            CheckpointError: the folder exists and holds something else, which would be lost.
        """
        require_checkpoint_folder(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Return the hypernetwork of a checkpoint folder, in evaluation mode.

        Args:
            folder: or an address of the Hugging Face hub: `hf://owner/name` for a folder, `hf://owner/name/file` for a
                file in a published format, either with `@revision` after the name.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit, or the hub does not answer.
        """
        if isinstance(folder, str) and is_on_hub(folder):
            folder = download(folder)
            if folder.is_file():
                return cls.from_public_checkpoint(folder)
        config, weights = read_checkpoint(folder)
        return cls(config)._with_weights(weights, Path(folder) / WEIGHTS_FILE)

    def push_to_hub(self, repository: str, card_sections: str = "", private: bool = False) -> str:
        """Upload the checkpoint folder to the Hugging Face hub, for `from_pretrained("hf://owner/name")`.

        Args:
            repository: `owner/name`; it is made if needed.
            card_sections: of the model card, Markdown, after how it is used and the settings.
            private: whether a new repository is private.

        Returns:
            The address of the repository.

        Raises:
            CheckpointError: huggingface_hub is not installed, or the hub refuses or does not answer.
        """
        with tempfile.TemporaryDirectory() as scratch:
            self.save(Path(scratch) / "checkpoint")
            card = model_card(self.config, repository, card_sections)
            return upload(Path(scratch) / "checkpoint", repository, card, private)

    def load_weights(self, folder: str | Path) -> Self:
        """Load the weights of a checkpoint folder, in this hypernetwork's own precision, and set evaluation mode.

        Raises:
            CheckpointError: the file is damaged or does not fit.
        """
        return self._with_weights(read_weights(folder), Path(folder) / WEIGHTS_FILE)

    @classmethod
    def from_public_checkpoint(cls, path: str | Path) -> Self:
        """Return the hypernetwork of a file in a published format, in evaluation mode; no code of it is executed.

        Raises:
            CheckpointError: the file is missing, damaged or does not fit.
        """
        config, weights = read_public_checkpoint(path)
        try:
            with torch.device("meta"):  # sizes that a file makes up take no memory
                expected = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
        except RuntimeError as error:
            raise CheckpointError(f"{path} has a configuration that cannot be read: {error!r}") from error
        found = {name: tensor.shape for name, tensor in weights.items()}
        if found != expected:
            wrong = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
            raise CheckpointError(f"{path} does not fit its configuration: {', '.join(wrong[:3])}")
        return cls(config)._with_weights(weights, Path(path))

    def to_public_checkpoint(self, path: str | Path, epoch: int = 0) -> None:
        """Write a file in the published format, which `from_public_checkpoint` reads.

        Raises:
            CheckpointError: no published format can describe the hypernetwork.
        """
        write_public_checkpoint(path, self.config, self.state_dict(), epoch)

    def _with_weights(self, weights: dict[str, Tensor], path: Path) -> Self:
        """Load weights that were read from a file and return the hypernetwork, in evaluation mode."""
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} does not fit its configuration: {reason}") from error
        return self.eval()
