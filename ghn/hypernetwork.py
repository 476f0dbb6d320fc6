"""Graph hypernetworks: GHN-1, the MLP baseline and GHN-2.

Sources: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural Architecture Search", ICLR 2019 (GHN-1); Knyazev,
Drozdzal, Taylor, Romero-Soriano, "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021 (GHN-2, MLP).

Dimensions: N nodes, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from ghn.architectures import Network
from ghn.decoders import ParameterDecoder
from ghn.gnn import GatedGNN
from ghn.graphs import PRIMITIVES, Graph, GraphBatch
from ghn.prediction import PredictionReport, predict
from ghn.tracing import IMAGES, trace

Variant = Literal["ghn2", "ghn1", "mlp"]


@dataclass(frozen=True)
class GHNConfig:
    """What a hypernetwork is made of.

    `kernel` is S, the largest predicted kernel or position encoding: 11 for small images, 16 for 224.
    """

    num_classes: int
    image_size: int
    variant: Variant = "ghn2"
    hidden: int = 32
    kernel: int = 11
    virtual_edges: int = 50

    def __post_init__(self) -> None:
        if self.variant not in ("ghn2", "ghn1", "mlp"):
            raise ValueError(f"variant = {self.variant!r}: must be ghn2, ghn1 or mlp")
        for name in ("num_classes", "image_size", "hidden", "kernel", "virtual_edges"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be an integer, at least 1")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden = {self.hidden}: must be a multiple of 8, at least 8")

    @property
    def longest_edge(self) -> int:
        """The longest distance that becomes an edge; 1 if the variant has no virtual edges."""
        return self.virtual_edges if self.variant == "ghn2" else 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class NodeEncoder(nn.Module):
    """The input of each node: x = E_op[primitive] + [E_ch[out] ; E_ch[in] ; E_sp[kh] ; E_sp[kw]].

    Channels and spatial sizes outside their vocabularies take the nearest entry; the last entry of each stands
    for "no shape".
    """

    def __init__(self, hidden: int, kernel: int, num_classes: int):
        super().__init__()
        channels = channel_vocabulary(num_classes)
        spatial = spatial_vocabulary(kernel)
        self._channel_entry, self._spatial_entry = nearest_entries(channels), nearest_entries(spatial)
        self._absent = (len(channels), len(spatial))
        self.primitives = nn.Embedding(len(PRIMITIVES), hidden)
        self.channels = nn.Embedding(len(channels) + 1, hidden // 4)
        self.spatial = nn.Embedding(len(spatial) + 1, hidden // 4)

    def forward(self, batch: GraphBatch) -> Tensor:
        """The states (N, H) before message passing."""
        device = self.primitives.weight.device
        primitives = torch.tensor([_PRIMITIVE_ENTRY[node.primitive] for node in batch.nodes], device=device)
        entries = torch.tensor([self._entries(node.shape) for node in batch.nodes], device=device)
        parts = torch.cat([self.channels(entries[:, :2]).flatten(1), self.spatial(entries[:, 2:]).flatten(1)], 1)
        return self.primitives(primitives) + parts

    def _entries(self, shape: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
        if shape is None:
            return (self._absent[0], self._absent[0], self._absent[1], self._absent[1])
        channel, spatial = self._channel_entry, self._spatial_entry
        out, inputs, kh, kw = shape
        last = len(channel) - 1
        return (
            channel[min(out, last)],
            channel[min(inputs, last)],
            spatial[min(kh, len(spatial) - 1)],
            spatial[min(kw, len(spatial) - 1)],
        )


_PRIMITIVE_ENTRY = {name: entry for entry, name in enumerate(PRIMITIVES)}


def channel_vocabulary(num_classes: int) -> list[int]:
    """The numbers of channels that have an embedding of their own, sorted."""
    return sorted({1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)})


def spatial_vocabulary(kernel: int) -> list[int]:
    """The kernel sizes that have an embedding of their own, sorted."""
    return sorted({*range(1, max(11, kernel - 1) + 1, 2), 14, 16})


def nearest_entries(vocabulary: list[int]) -> list[int]:
    """For each value from 0 to the largest, the entry that stands for it: the nearest one, the smaller on a tie.

    As published, 2 takes 3 and channels 4 to 7 take 8.
    """
    values = np.arange(vocabulary[-1] + 1)
    entries = np.abs(values[:, None] - np.array(vocabulary)).argmin(1)
    exceptions = {2: 3} | ({value: 8 for value in range(4, 8)} if 8 in vocabulary else {})
    for value, stand_in in exceptions.items():
        if value not in vocabulary:
            entries[value] = vocabulary.index(stand_in)
    return entries.tolist()


class GHN(nn.Module):
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

    @overload
    def forward(self, networks: GraphBatch) -> list[dict[str, Tensor]]: ...

    @overload
    def forward(self, networks: nn.Module) -> nn.Module: ...

    def forward(self, networks: GraphBatch | nn.Module) -> list[dict[str, Tensor]] | nn.Module:
        """For each graph of a batch its predicted parameters by name: tensors that carry gradients to the GHN.

        A network is filled with predicted parameters in place (see `predict`) and returned.
        """
        if isinstance(networks, nn.Module):
            self.predict(networks)
            return networks
        return self.decoder(self.embed(networks), networks)

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
        networks: Sequence[Network | nn.Module | Graph],
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """For each network its predicted parameters by name: tensors that carry gradients to the GHN.

        Args:
            networks: architectures and whatever else compiles to a program, modules, or graphs.
            image_size: of the target networks, in pixels; by default what the hypernetwork was trained with (a
                module: what it takes).
            num_classes: of the target networks; by default what the hypernetwork was trained with (a module: what
                it has).

        Raises:
            TracingError: a module cannot be traced.
        """

        def graph_of(network: Network | nn.Module | Graph) -> Graph:
            if isinstance(network, Graph):
                return network
            if isinstance(network, nn.Module):
                return self._fitting(trace(network, image_size=image_size))
            size = self.config.image_size if image_size is None else image_size
            return network.graph(size, self.config.num_classes if num_classes is None else num_classes)

        if not networks:
            return []
        return self(self.batch([graph_of(network) for network in networks]))

    def graph(
        self, model: nn.Module, inputs: Tensor | Sequence[Tensor] | None = None, image_size: int | None = None
    ) -> Graph:
        """What the hypernetwork sees of any network: see `ghn.tracing.trace`."""
        return trace(model, inputs, image_size)

    def predict(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor] | None = None,
        image_size: int | None = None,
        predict_class_layers: bool = True,
        calibration_images: Tensor | Iterable | None = None,
    ) -> PredictionReport:
        """Fills any network with predicted parameters, in place.

        Each parameter is predicted or named in the report with the reason. Norm layers that keep running statistics
        use those of each batch from then on, as published, unless there are images to estimate new ones from.

        Args:
            inputs, image_size: what the network is traced with (see `ghn.tracing.trace`), in case it does not say.
            predict_class_layers: whether to predict the layers that give the logits (B, classes) too; not, if the
                classes are others than those that the hypernetwork was trained on. A layer with another number of
                classes never is.
            calibration_images: (N, C, S, S), or batches of them, normalised as the network is to have them: the
                running statistics are estimated from them.

        Raises:
            TracingError: the network cannot be traced.
        """
        if inputs is None and image_size is None and isinstance(calibration_images, Tensor):
            inputs = calibration_images[:IMAGES].to(next(model.parameters()).dtype)
        graph = trace(model, inputs, image_size)
        if predict_class_layers:
            graph = self._fitting(graph)
        else:
            graph = graph.without_class_layers("classification layer (predict_class_layers=False)")
        return predict(self, model, graph, calibration_images)

    def _fitting(self, graph: Graph) -> Graph:
        """A traced graph without the classification layers that have another number of classes."""
        classes = self.config.num_classes
        reason = f"classification layer of {{classes}} classes, this hypernetwork predicts {classes}"
        return graph.without_class_layers(reason, of_other_than=classes)

    def save(self, folder: str | Path) -> None:
        """Writes the folder that `from_pretrained` reads: weights in safetensors, the configuration in JSON."""
        from ghn.checkpoints import save_checkpoint

        save_checkpoint(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GHN:
        """The hypernetwork of a checkpoint folder, in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit.
        """
        from ghn.checkpoints import load_checkpoint

        return load_checkpoint(folder)

    @classmethod
    def from_public_checkpoint(cls, path: str | Path) -> GHN:
        """The hypernetwork of a file in the published format, in evaluation mode; no code of it is executed.

        Raises:
            CheckpointError: the file is missing, damaged or does not fit.
        """
        from ghn.public_checkpoints import load_public_checkpoint

        return load_public_checkpoint(path)

    def to_public_checkpoint(self, path: str | Path, epoch: int = 0) -> None:
        """Writes a file in the published format, which `from_public_checkpoint` reads.

        Raises:
            CheckpointError: the format has no place for `config.virtual_edges`.
        """
        from ghn.public_checkpoints import save_public_checkpoint

        save_public_checkpoint(self, path, epoch)
