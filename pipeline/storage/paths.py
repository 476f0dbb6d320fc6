"""Every address below the storage."""

from __future__ import annotations

from pathlib import Path

from pipeline.workspace import workspace


def storage_url(storage: str, path: str) -> str:
    """The place of `path` below a storage: a local path or an address that fsspec knows.

    A relative storage is meant from the workspace, which a DVC experiment in a temporary copy shares.
    """
    place = storage if "://" in storage else str(workspace() / Path(storage).expanduser())
    return f"{place.rstrip('/')}/{path}"


def image_cache(storage: str) -> Path | str:
    """Where decoded images are kept: a folder in a local storage, or an address in a bucket."""
    place = storage_url(storage, "images")
    return place if "://" in storage else Path(place)
