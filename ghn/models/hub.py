"""Hypernetworks on the Hugging Face hub: `hf://owner/name`, a checkpoint folder, or `hf://owner/name/file`.

Files are kept in the cache of huggingface_hub, where they are links to the hub's checksums. Each file is compared with
its checksum when it is downloaded and whenever it is read again; not where the file system has no links.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghn.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from ghn.models.config import GHNConfig

PREFIX = "hf://"

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?")

CARD_FILE = "README.md"

CHUNK = 1 << 20
"""Bytes that are read at a time."""


def is_on_hub(address: object) -> bool:
    """Return whether an address is one of the hub."""
    return isinstance(address, str) and address.startswith(PREFIX)


def download(address: str) -> Path:
    """Return a local copy of what is at an address: a checkpoint folder, or a file if the address names one.

    Args:
        address: `hf://owner/name`, `hf://owner/name@revision`, and either with `/` and a file after it. A revision is a
            branch, tag or commit without a slash.

    Raises:
        CheckpointError: the address is none, huggingface_hub is not installed, nothing is there, the hub does not
            answer and there is no earlier download, or the checksum of a file is wrong.
    """
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise CheckpointError(f"{address} is no address of the hub: must be hf://owner/name, or hf://owner/name/file")
    repository, revision, file = parts["repository"], parts["revision"], parts["file"]
    hub = _hub(address)
    names = [CONFIG_FILE, WEIGHTS_FILE] if file is None else [file]
    paths: list[Path] = []
    for name in names:
        with _as_checkpoint_error(address):
            paths.append(Path(hub.hf_hub_download(repository, name, revision=revision)))
        revision = paths[0].parent.name if file is None else revision  # all files are those of one commit
    for path in paths:
        _require_checksum(path)
    return paths[0].parent if file is None else paths[0]


def upload(folder: Path, repository: str, card: str, private: bool = False) -> str:
    """Upload a checkpoint folder and a model card, and return the address of the repository, which is made if needed.

    Args:
        folder: of the checkpoint.
        repository: `owner/name`.
        card: the text of the card, Markdown with a YAML header.
        private: whether a new repository is private.

    Raises:
        CheckpointError: the name is none, huggingface_hub is not installed, there is no token, or the hub refuses or
            does not answer.
    """
    if REPOSITORY.fullmatch(repository) is None:
        raise CheckpointError(f"{repository} is no repository: must be owner/name")
    hub = _hub(repository)
    with _as_checkpoint_error(repository):
        api = hub.HfApi()
        url: str = str(api.create_repo(repository, private=private, exist_ok=True))
        operations = [
            hub.CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=card.encode()),
            *(hub.CommitOperationAdd(name, str(folder / name)) for name in (CONFIG_FILE, WEIGHTS_FILE)),
        ]
        api.create_commit(repository, operations, commit_message="Upload a graph hypernetwork")
    return url


def model_card(config: GHNConfig, repository: str, sections: str = "") -> str:
    """Return a model card: what the hypernetwork is, how it is used, its settings, and further sections.

    Args:
        repository: `owner/name`.
        sections: Markdown.
    """
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.to_dict().items())
    return f"""---
library_name: graph-hypernetworks
tags: [graph-hypernetwork, parameter-prediction]
---
# Graph hypernetwork {config.variant}

It predicts all parameters of networks that it has never seen, for {config.num_classes} classes and inputs of
size {config.image_size}: the side of images in pixels, or the length of texts in tokens.

```python
from ghn import GHN

ghn = GHN.from_pretrained("hf://{repository}")
ghn.predict(network)  # any nn.Module, in place
```

| setting | value |
| --- | --- |
{settings}
{sections}"""


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"{what} needs huggingface_hub: pip install 'graph-hypernetworks[hub]'") from error
    return huggingface_hub


@contextmanager
def _as_checkpoint_error(what: str) -> Iterator[None]:
    """Raise errors of the hub and of the network as CheckpointError, with what can be done."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too, so it comes first
        raise CheckpointError(f"{what}: the hub does not answer, and there is no earlier download") from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(f"{what}: {_first_line(error)}") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{what}: no such repository, or `hf auth login` first if it is private") from error
    except (errors.HTTPError, errors.LocalTokenNotFoundError, errors.HFValidationError, OSError) as error:
        raise CheckpointError(f"{what}: the hub refuses or does not answer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _require_checksum(path: Path) -> None:
    """Check a file of the cache against the name that it is linked to: its SHA-256, or git's SHA-1 if it is small.

    Raises:
        CheckpointError: they differ.
    """
    if not path.is_symlink():
        return
    checksum = path.readlink().name
    if re.fullmatch(r"[0-9a-f]{64}", checksum):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", checksum):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    else:
        raise CheckpointError(f"{path}: {checksum} is no checksum that is known")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != checksum:
        raise CheckpointError(f"{path} is damaged, its checksum is not that of the hub: delete {path.resolve()}")
