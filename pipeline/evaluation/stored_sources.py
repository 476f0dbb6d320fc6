"""The sources of nearest copies: training architectures that stage sgd has trained, whose parameters it keeps.

`results/sgd/sources.json` names them; their tensors lie in the storage, as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.results import SOURCES
from pipeline.storage.files import read_bytes
from pipeline.storage.paths import storage_url
from pipeline.storage.records import checksum_of, read_output, write_output
from pipeline.storage.tables import write_json

AGAIN = "`dvc repro --force sgd` trains it again"


@dataclass(frozen=True)
class StoredSource:
    """A trained network of split train.

    Attributes:
        index: in split train.
        network_hash: of the stored architecture.
        file: address of its tensors below the storage.
        checksum: SHA-256 of that file, hexadecimal.
        size: bytes of that file.
        top1: test accuracy, with the statistics of batches.
        train_seconds: seconds of its training.
        images_hash: settings hash of the images that it was trained on.
    """

    index: int
    network_hash: str
    file: str
    checksum: str
    size: int
    top1: float
    train_seconds: float
    images_hash: str


def write_tensors(storage: str, file: str, tensors: Mapping[str, Tensor], settings_hash: str) -> None:
    """Write the tensors of a network to an address below the storage, then a record of the file."""
    content = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_output(storage_url(storage, file), content, {"settings_hash": settings_hash})


def intact_size_and_checksum(storage: str, file: str, settings_hash: str) -> tuple[int, str] | None:
    """Return the size and the checksum of what `write_tensors` wrote; None if it is missing or damaged.

    Warns if it is damaged, because it will be made again.
    """
    found = read_output(storage_url(storage, file), {"settings_hash": settings_hash})
    return found and (found[1].size, found[1].checksum)


def write_sources(sources: Sequence[StoredSource], place: Path = SOURCES) -> None:
    """Write the list of sources."""
    write_json(place, [asdict(source) for source in sources])


def read_sources(place: Path = SOURCES) -> list[StoredSource]:
    """Return the list of sources, in increasing order of their indices.

    Raises:
        UserError: the list is missing or damaged.
    """
    try:
        return [StoredSource(**fields) for fields in json.loads(read_bytes(place))]
    except FileNotFoundError as error:
        raise UserError(f"{place} not found: stage sgd writes it, run `dvc repro sgd`") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is damaged: `dvc repro --force sgd` writes it again") from error


def read_tensors(source: StoredSource, storage: str) -> dict[str, Tensor]:
    """Return the parameters of a source, by name.

    Raises:
        UserError: their file is missing or damaged; the message names it.
    """
    place = storage_url(storage, source.file)
    name = f"{place}, the parameters of architecture {source.index} of split train,"
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"{name} is missing\n{AGAIN}") from error
    if len(content) != source.size or checksum_of(content) != source.checksum:
        raise UserError(f"{name} is damaged: its checksum is not that of {SOURCES}\n{AGAIN}")
    return safetensors.torch.load(content)
