"""The networks that are evaluated: at which width, with which parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.models.checkpoints import CheckpointError
from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from ghn.networks.program import LARGE_IMAGE
from pipeline.errors import UserError
from pipeline.images.dataset import Images
from pipeline.params import EvaluateSettings, settings_hash
from pipeline.results import CHECKPOINT

GPU_SHARE = 0.25
"""Share of a GPU that a task gets, where there are GPUs: a single small network leaves most of a GPU idle."""


@dataclass(frozen=True)
class Candidate:
    """A network to measure, at the width at which it is measured; `network_hash` is that of its stored record."""

    split: str
    index: int
    name: str
    network_hash: str
    network: Network

    @property
    def key(self) -> tuple[str, int, str]:
        """Split, index and network hash, which no other candidate has, not even one of other stored architectures."""
        return self.split, self.index, self.network_hash


def require_fit(ghn: Hypernetwork, images: Images, image_size: int) -> None:
    """Check that the hypernetwork was trained for the images' classes and size.

    Raises:
        UserError: it was trained for another number of classes or another image size.
    """
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
    """Return the networks of a split at the width at which they are evaluated; predefined ones keep their own."""
    if split == "predefined":
        named = zip(PREDEFINED, networks, strict=True)
        return [Candidate(split, i, name, network.network_hash, network) for i, (name, network) in enumerate(named)]
    return [
        Candidate(split, i, "", network.network_hash, at_width(network, settings, image_size, wide=split == "wide"))
        for i, network in enumerate(networks)
    ]


def at_width(network: Network, settings: EvaluateSettings, image_size: int, wide: bool = False) -> Architecture:
    """Return a stored architecture at the evaluation's width: 4 times that if `wide`, twice for large images.

    Raises:
        TypeError: the network has no width.
    """
    if not isinstance(network, Architecture):
        raise TypeError(f"{type(network).__name__} has no width: must be an Architecture")
    factor = (2 if image_size >= LARGE_IMAGE else 4) if wide else 1
    return network.with_width(factor * settings.width, settings.head_width)


def fresh_module(network: Network, image_size: int, classes: int, seed: int) -> nn.Module:
    """Return the network in PyTorch's default initialisation, which is a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.module(image_size, classes)


def seed_of(*key: int | str) -> int:
    """Return a seed of 60 bits that is a function of the key alone."""
    return int(settings_hash(key, 15), 16)


def trained_ghn(folder: str | Path = CHECKPOINT) -> tuple[Hypernetwork, str]:
    """Return the hypernetwork of a checkpoint folder, in evaluation mode, and a digest of the folder's files.

    Raises:
        UserError: a file is missing or damaged; the message names it.
    """
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
