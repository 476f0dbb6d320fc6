"""The splits that are imported, not sampled: the setting `generate.imported` names a manifest for each."""

from __future__ import annotations

from pipeline.architectures.shards import ArchitectureShard
from pipeline.architectures.store import read_manifest
from pipeline.errors import UserError
from pipeline.params import SAMPLED_SPLITS, Params
from pipeline.storage.files import file_sizes
from pipeline.storage.paths import storage_url

IMPORT_HINT = "`ghn import-deepnets` writes it, to the storage that it is given, and prints the address for params.yaml"


def find_imported_splits(params: Params) -> dict[str, tuple[str, list[ArchitectureShard]]]:
    """Return, for each imported split, the address of its folder and its shards.

    Raises:
        UserError: a manifest is missing, damaged or of other splits, a shard is missing or incomplete, or a split has
            fewer architectures than other settings need.
    """
    addresses = params.generate.imported
    imported = [split for split in SAMPLED_SPLITS if split in addresses]
    splits = {split: _find_split(params.storage, split, addresses[split]) for split in imported}
    needs = [
        ("test", "generate.wide", params.generate.wide),
        ("test", "finetune.architectures", params.finetune.architectures),
        ("test", "adapt.architectures", params.adapt.architectures),
        ("test", "condition.architectures", params.condition.architectures),
        ("train", "sgd.sources", params.sgd.sources),
        *((split, f"sgd.architectures.{split}", count) for split, count in params.sgd.architectures.items()),
    ]
    for split, setting, needed in needs:
        rows = sum(shard.rows for shard in splits[split][1]) if split in splits else needed
        if needed > rows:
            raise UserError(
                f"{setting} = {needed}: must be at most {rows}, as split {split} is imported with that many"
            )
    return splits


def _find_split(storage: str, split: str, address: str) -> tuple[str, list[ArchitectureShard]]:
    setting = f"generate.imported.{split} = {address}"
    place = storage_url(storage, address)
    try:
        manifest = read_manifest(place)
        entry = manifest["splits"].get(split)
        if entry is None:
            raise UserError(f"{setting}: its splits are {', '.join(manifest['splits'])}; must be an import of {split}")
        folder, shards = entry["folder"], [ArchitectureShard(**shard) for shard in entry["shards"]]
    except FileNotFoundError as error:
        raise UserError(f"{setting}: there is no {place}\n{IMPORT_HINT}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{setting} is damaged\n{IMPORT_HINT}") from error
    _require_shards(storage_url(storage, folder), shards)
    return folder, shards


def _require_shards(folder: str, shards: list[ArchitectureShard]) -> None:
    """Raise UserError if a file is missing or of another size; `Split` compares the contents when it reads them."""
    sizes = file_sizes(folder)
    for shard in shards:
        if sizes.get(shard.file) != shard.bytes:
            raise UserError(f"shard {folder}/{shard.file} of an import is missing or not whole\n{IMPORT_HINT}")
