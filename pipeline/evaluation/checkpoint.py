"""The trained hypernetwork that the evaluation reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from ghn.models.checkpoints import CheckpointError
from ghn.models.hypernetwork import Hypernetwork
from pipeline.errors import UserError
from pipeline.images.dataset import Images
from pipeline.results import CHECKPOINT

AnyHypernetwork = TypeVar("AnyHypernetwork", bound=Hypernetwork)


def trained_ghn(folder: Path = CHECKPOINT) -> tuple[Hypernetwork, str]:
    """Return the hypernetwork of a checkpoint folder, in evaluation mode, and a digest of the folder's files.

    Raises:
        UserError: a file is missing or damaged; the message names it.
    """
    return trained_as(Hypernetwork, folder)


def trained_as(kind: type[AnyHypernetwork], folder: Path = CHECKPOINT) -> tuple[AnyHypernetwork, str]:
    """Return what `trained_ghn` does, as a hypernetwork of a kind: a `GHN` predicts for any `nn.Module` too."""
    if not folder.is_dir():
        raise UserError(f"{folder} not found: stage train writes it, run `dvc repro train`")
    try:
        ghn = kind.from_pretrained(folder)
    except CheckpointError as error:
        raise UserError(f"{error}\n`dvc repro --force train` trains it again") from error
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return ghn, digest.hexdigest()


def require_fit(ghn: Hypernetwork, images: Images, image_size: int) -> None:
    """Check that the hypernetwork was trained for the images' classes and size.

    Raises:
        UserError: it was trained for another number of classes or another image size.
    """
    learned = (ghn.config.num_classes, ghn.config.image_size)
    wanted = (len(images.classes), image_size)
    if learned != wanted:
        raise UserError(
            f"{CHECKPOINT} was trained for {learned[0]} classes and image size {learned[1]},\n"
            f"dataset = {images.name} has {wanted[0]} classes at images.size = {wanted[1]}: must be the same"
        )
