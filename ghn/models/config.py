"""The configuration of a hypernetwork: its parts by name, their sizes, and the published choices of parts.

To add a graph neural network or a weight decoder, write a subclass of `ghn.models.gnn.GNN` or of
`ghn.models.weight_decoder.WeightDecoder` and name it in `GNNS` or `WEIGHT_DECODERS`.

PyTorch is imported when a part is built, because the pipeline checks its settings in processes that do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ghn.models.gnn import GNN
    from ghn.models.weight_decoder import WeightDecoder


LONGEST_DISTANCE = 254
"""The longest distance, in edges, that the transformer has an embedding for."""

DEFAULT_LOW_RANK_CHANNELS = 2048
"""The most channels of the low-rank decoder, as published."""


class Composition(NamedTuple):
    """The parts of a hypernetwork."""

    gnn: str
    """Graph neural network, a name in `GNNS`."""
    decoder: str
    """Weight decoder, a name in `WEIGHT_DECODERS`."""
    normalise: bool
    """Whether weights are scaled by their fan-in, and the parameters of norms and biases bounded."""
    layer_norm: bool
    """Whether the states of the graph neural network go through a layer norm."""
    dirac: bool = False
    """Whether convolutions are predicted as a change of ones that pass features on: see `ghn.models.dirac`."""
    layers: int = 1
    """Rounds of a gated GNN, which share their weights, or layers of a transformer, each with its own."""
    heads: int = 1
    """Heads of each layer of a transformer."""
    channels: int | None = None
    """The most out and in channels that are decoded before they repeat; None: 2H, or 2,048 of a low-rank decoder."""
    rank: int = 32
    """Columns of the factors that a low-rank or an implicit decoder multiplies."""
    extent: int | None = None
    """Rows of these factors: the most out channels times kernel height, and in channels times kernel width, that are
    decoded before channels repeat; None: twice `channels`."""
    small_start: bool = False
    """Whether embeddings begin with variance 1/H, and the last layers of the decoders with a fifth of their size."""


VARIANTS = {
    "ghn2": Composition(gnn="gated_virtual", decoder="conv", normalise=True, layer_norm=True),
    "ghn1": Composition(gnn="gated", decoder="conv", normalise=False, layer_norm=False),
    "mlp": Composition(gnn="mlp", decoder="conv", normalise=True, layer_norm=True),
    "ghn3": Composition("transformer", "conv_central", True, True, layers=3, heads=8, small_start=True),
    "logah": Composition("transformer", "low_rank", True, True, layers=3, heads=8, small_start=True),
}
"""Presets: the published hypernetworks by name.

Sources: Zhang, Ren, Urtasun, "Graph HyperNetworks for Neural Architecture Search", ICLR 2019 (GHN-1); Knyazev,
Drozdzal, Taylor, Romero-Soriano, "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021 (GHN-2, MLP);
Knyazev, Hwang, Lacoste-Julien, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?", ICML
2023 (GHN-3); Zhou et al., "LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100
Parameters", 2024 (LoGAH).
"""

LATER_PARTS = ("layers", "heads", "channels", "rank", "extent", "small_start")
"""Parts that came with GHN-3. In the variants before it they have their defaults."""

GHN3_SIZES = {
    "ghn3_t": {"hidden": 64, "layers": 3, "heads": 8, "channels": 64},
    "ghn3_s": {"hidden": 128, "layers": 5, "heads": 16, "channels": 128},
    "ghn3_l": {"hidden": 256, "layers": 12, "heads": 16, "channels": 256},
    "ghn3_xl": {"hidden": 384, "layers": 24, "heads": 16, "channels": 384},
}
"""Sizes of the published GHN-3 by name: `GHNConfig(1000, 224, "ghn3", kernel=16, **GHN3_SIZES["ghn3_t"])`."""

SIZES = ("num_classes", "image_size", "hidden", "kernel", "virtual_edges", "layers", "heads", "rank")
OPTIONAL_SIZES = ("channels", "extent")


@dataclass(frozen=True)
class GHNConfig:
    """The configuration of a hypernetwork.

    `variant` names a preset. Each part of `Composition` that is None takes the preset's value.

    Attributes:
        num_classes: classes that its class layers are trained for.
        image_size: side of the images that it is trained on, in pixels.
        hidden: width H of node states, a multiple of 8.
        kernel: S, the largest predicted kernel or position encoding, in positions: 11 for small images, 16 for 224.
        virtual_edges: s_max, the longest virtual edge, in edges. A GNN without virtual edges ignores it.
        gnn, decoder, normalise, layer_norm, dirac, layers, heads, channels, rank, extent, small_start: see
            `Composition`.

    Raises:
        ValueError: a value is impossible; the message names it and what is possible.
    """

    num_classes: int
    image_size: int
    variant: str = "ghn2"
    hidden: int = 32
    kernel: int = 11
    virtual_edges: int = 50
    gnn: str | None = None
    decoder: str | None = None
    normalise: bool | None = None
    layer_norm: bool | None = None
    dirac: bool | None = None
    layers: int | None = None
    heads: int | None = None
    channels: int | None = None
    rank: int | None = None
    extent: int | None = None
    small_start: bool | None = None

    def __post_init__(self) -> None:
        self._check_name("variant", VARIANTS)
        for part, value in VARIANTS[self.variant]._asdict().items():
            if getattr(self, part) is None:
                object.__setattr__(self, part, value)  # the dataclass is frozen
        self._check_name("gnn", GNNS)
        self._check_name("decoder", WEIGHT_DECODERS)
        for name in ("normalise", "layer_norm", "dirac", "small_start"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be true or false")
        for name in (*SIZES, *(size for size in OPTIONAL_SIZES if getattr(self, size) is not None)):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be an integer, at least 1")
        if self.extent == 1:
            raise ValueError("extent = 1: must be at least 2, because a vector has two halves")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden = {self.hidden}: must be a multiple of 8, at least 8")
        if self.gnn == "transformer":
            if self.hidden % self.composition.heads:
                raise ValueError(f"heads = {self.heads}: must be a divisor of hidden = {self.hidden}")
            if self.virtual_edges > LONGEST_DISTANCE:
                message = f"must be at most {LONGEST_DISTANCE} for gnn = transformer"
                raise ValueError(f"virtual_edges = {self.virtual_edges}: {message}")

    def _check_name(self, field: str, known: Collection[str]) -> None:
        value = getattr(self, field)
        if not isinstance(value, str) or value not in known:
            names = " or ".join(", ".join(known).rsplit(", ", 1))
            raise ValueError(f"{field} = {value!r}: must be {names}")

    @property
    def composition(self) -> Composition:
        """The parts, each given or the variant's."""
        return Composition(*(getattr(self, part) for part in Composition._fields))

    @property
    def most_channels(self) -> int:
        """The most out and in channels that are decoded before they repeat: `channels`, or its default."""
        default = DEFAULT_LOW_RANK_CHANNELS if self.decoder == "low_rank" else 2 * self.hidden
        return default if self.channels is None else self.channels

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values, without the parts that the variant implies.

        So `GHNConfig(**{**config.to_dict(), "variant": other})` is the same hypernetwork in another variant. `asdict`
        gives all fields.
        """
        implied = VARIANTS[self.variant]._asdict()
        return {name: value for name, value in asdict(self).items() if name not in implied or value != implied[name]}

    def to_file(self) -> dict[str, Any]:
        """Return the fields that a checkpoint holds: all, so that it means the same should a variant ever change.

        `LATER_PARTS` are left out where they have their defaults: files of GHN-2 are what they were before those parts.
        """
        implied, defaults = VARIANTS[self.variant]._asdict(), Composition._field_defaults
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in LATER_PARTS or not value == implied[name] == defaults[name]
        }


def _gated(config: GHNConfig) -> GNN:
    from ghn.models.gated_gnn import GatedGNN

    return GatedGNN(config.hidden, rounds=config.composition.layers)


def _gated_with_virtual_edges(config: GHNConfig) -> GNN:
    from ghn.models.gated_gnn import GatedGNN

    return GatedGNN(config.hidden, config.virtual_edges, config.composition.layers)


def _mlp(config: GHNConfig) -> GNN:
    from ghn.models.nodewise_mlp import NodewiseMLP

    return NodewiseMLP(config.hidden)


def _transformer(config: GHNConfig) -> GNN:
    from ghn.models.graph_transformer import GraphTransformer

    parts = config.composition
    return GraphTransformer(config.hidden, parts.layers, parts.heads, config.virtual_edges)


def _conv(config: GHNConfig, central: bool = False) -> WeightDecoder:
    from ghn.models.conv_decoder import ConvDecoder

    return ConvDecoder(config.hidden, config.kernel, config.num_classes, config.channels, central)


def _conv_central(config: GHNConfig) -> WeightDecoder:
    return _conv(config, central=True)


def _low_rank(config: GHNConfig) -> WeightDecoder:
    from ghn.models.low_rank_decoder import LowRankDecoder

    return LowRankDecoder(config.hidden, config.composition.rank, config.most_channels, config.kernel, config.extent)


def _implicit(config: GHNConfig) -> WeightDecoder:
    from ghn.models.implicit_decoder import ImplicitDecoder

    return ImplicitDecoder(config.hidden, config.composition.rank)


def _grown(config: GHNConfig) -> WeightDecoder:
    from ghn.models.grown_decoder import GrownDecoder

    return GrownDecoder(config.hidden, config.kernel, config.num_classes, config.channels)


GNNS: dict[str, Callable[[GHNConfig], GNN]] = {
    "gated": _gated,
    "gated_virtual": _gated_with_virtual_edges,
    "mlp": _mlp,
    "transformer": _transformer,
}
"""Graph neural networks by name, each as a function that builds it."""

WEIGHT_DECODERS: dict[str, Callable[[GHNConfig], WeightDecoder]] = {
    "conv": _conv,
    "conv_central": _conv_central,
    "low_rank": _low_rank,
    "implicit": _implicit,
    "grown": _grown,
}
"""Weight decoders by name, each as a function that builds it."""
