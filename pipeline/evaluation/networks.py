"""The networks that are evaluated: at which width, with which parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from ghn.networks.program import LARGE_IMAGE
from pipeline.errors import UserError
from pipeline.images.dataset import Images
from pipeline.params import EvaluateSettings, settings_hash
from pipeline.results import CHECKPOINT

if TYPE_CHECKING:
    from ghn.models.hypernetwork import Hypernetwork


@dataclass(frozen=True)
class Candidate:
    """A network to measure, already at the width at which it is; `network_hash` is that of its record."""

    split: str
    index: int
    name: str
    network_hash: str
    network: Network

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from all other candidates, of other sets of architectures too."""
        return self.split, self.index, self.network_hash


def require_fit(ghn: Hypernetwork, images: Images, image_size: int) -> None:
    """Raises UserError if the hypernetwork was trained for another number of classes or image size."""
    trained = (ghn.config.num_classes, ghn.config.image_size)
    wanted = (len(images.classes), image_size)
    if trained != wanted:
        raise UserError(
            f"{CHECKPOINT} was trained for {trained[0]} classes and image size {trained[1]},\n"
            f"dataset = {images.name} has {wanted[0]} classes at images.size = {wanted[1]}: must be the same"
        )


def candidates_of(
    split: str, networks: Sequence[Network], settings: EvaluateSettings, image_size: int
) -> list[Candidate]:
    """The networks of a split as they are evaluated; predefined ones keep their width."""
    names = list(PREDEFINED) if split == "predefined" else [""] * len(networks)
    return [
        Candidate(
            split,
            index,
            name,
            network.network_hash,
            network if name else at_width(network, settings, image_size, wide=split == "wide"),
        )
        for index, (name, network) in enumerate(zip(names, networks, strict=True))
    ]


def at_width(
    architecture: Architecture, settings: EvaluateSettings, image_size: int, wide: bool = False
) -> Architecture:
    """The architecture with the evaluation's width: 4 times that if wide, twice for large images."""
    factor = (2 if image_size >= LARGE_IMAGE else 4) if wide else 1
    return architecture.with_width(factor * settings.width, settings.head_width)


def fresh_module(network: Network, image_size: int, classes: int, seed: int) -> torch.nn.Module:
    """The network in PyTorch's default initialisation, which is a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.module(image_size, classes)


def seed_of(*key: int | str) -> int:
    """A seed (60 bits) that is a function of the key alone."""
    return int(settings_hash(key, 15), 16)


def trained_ghn(folder: str | Path = CHECKPOINT) -> tuple[Hypernetwork, str]:
    """The hypernetwork of a checkpoint folder, in evaluation mode, and a digest of its files.

    Raises UserError, naming the file, if one is missing or damaged.
    """
    from ghn.models.checkpoints import CheckpointError
    from ghn.models.hypernetwork import Hypernetwork

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} not found: stage train writes it, run `dvc repro train`")
    try:
        ghn = Hypernetwork.from_pretrained(folder)
    except CheckpointError as error:
        raise UserError(f"{error}\n`dvc repro --force train` trains it again") from error
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return ghn, digest.hexdigest()
