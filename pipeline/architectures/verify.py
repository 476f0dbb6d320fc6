"""Verification of the stored architectures: the command `ghn verify`.

It reads every shard of the manifest and compares it with its checksum. It looks for networks that are stored twice, in
one split or in two. It samples and compiles some rows of each split again, operation by operation, and compares all
columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ghn.design_spaces import DESIGN_SPACES
from ghn.networks.network import ScalableNetwork
from ghn.networks.summary import summarise
from pipeline.architectures.shards import SCHEMAS, Row, architecture_of_row, row, table_of
from pipeline.architectures.store import ArchitectureStore
from pipeline.console import print_table
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.results import MANIFEST

COLUMNS = ("split", "rows", "repeated", "in other splits", "computed again", "that differ")


def verify(params: Params, manifest: str | Path = MANIFEST, recompute: int = 200, every_row: bool = False) -> None:
    """Print, for each split, how many networks are repeated, are in other splits, or differ from their row.

    Args:
        recompute: number of rows of each split, evenly spread, that are sampled and compiled again.
        every_row: whether all other rows are sampled again too, and counted from summaries of their blocks.

    Raises:
        UserError: a shard is missing or damaged, a network is stored twice, or a row differs from its network.
    """
    store = ArchitectureStore(params.storage, manifest)
    hashes = {name: split.columns("identity")["identity"].astype("S24") for name, split in store.splits.items()}
    table, faults = [], []
    for name, split in store.splits.items():
        repeated = len(split) - len(np.unique(hashes[name]))
        others = [other for other in hashes if other != name]
        shared = sum(len(np.intersect1d(hashes[name], hashes[other])) for other in others)
        computed, wrong = _compute_again(params, store, name, recompute, every_row)
        if repeated:
            faults.append(f"split {name}: rows that repeat another: {repeated}")
        if shared:
            faults.append(f"split {name}: networks that are in other splits: {shared}")
        if wrong:
            at = ", ".join(map(str, wrong[:3])) + ", …" * (len(wrong) > 3)
            faults.append(f"split {name}: rows that are not what they say: {len(wrong)} (at {at})")
        counts = (len(split), repeated, shared, computed, len(wrong))
        table.append(dict(zip(COLUMNS, (name, *(f"{count:,}" for count in counts)), strict=True)))
    print_table(f"{sum(map(len, store.splits.values())):,} architectures, all shards as in the manifest", table)
    if faults:
        raise UserError("\n".join(faults if len(faults) < 4 else [*faults[:2], f"… and {len(faults) - 2} more"]))


def _compute_again(
    params: Params, store: ArchitectureStore, name: str, count: int, every_row: bool
) -> tuple[int, list[int]]:
    """Return how many rows of a split were computed again, and the positions of those that differ."""
    split, columns = store[name], SCHEMAS[store.space].names
    compiled = np.linspace(0, len(split) - 1, min(count, len(split)), dtype=int).tolist()
    wrong: set[int] = set()
    for position in tqdm(compiled, desc=f"{name}, compiled", unit="row", leave=False, dynamic_ncols=True):
        stored = split.row(position, *columns)
        (record,) = stored.to_pylist()
        architecture = _expected(params, store, name, position, record)
        summary = summarise(architecture.compile(32, 10))
        parameters_large = architecture.compile(*DESIGN_SPACES[store.space].large).num_parameters
        computed = Row(position, architecture, summary, parameters_large, record["seed"], record["draw"])
        if not stored.equals(table_of([computed], store.space)):
            wrong.add(position)
    if not every_row:
        return len(set(compiled)), sorted(wrong)
    with tqdm(desc=f"{name}, counted", total=len(split), unit="row", leave=False, dynamic_ncols=True) as bar:
        first = 0
        for stored in split.tables(*columns):
            rows = []
            for position, record in enumerate(stored.to_pylist(), start=first):
                architecture = _expected(params, store, name, position, record)
                rows.append(row(position, architecture, record["seed"], record["draw"]))
                bar.update()
            computed = table_of(rows, store.space)
            if not stored.equals(computed):
                wrong |= {first + i for i in range(len(rows)) if not stored.slice(i, 1).equals(computed.slice(i, 1))}
            first += len(rows)
    return len(split), sorted(wrong)


def _expected(
    params: Params, store: ArchitectureStore, name: str, position: int, record: dict[str, Any]
) -> ScalableNetwork:
    """Return the architecture that a row must have, sampled or widened again; an imported one as it is stored."""
    if name == "wide":
        return store["test"].read(position).widened(params.images.size)
    if record["seed"] is None:
        return architecture_of_row(record, store.space)
    return DESIGN_SPACES[store.space].sample(params.seed, name, position, record["draw"])
