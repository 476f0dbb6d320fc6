"""Whether the stored architectures are what they should be: `ghn verify`.

Reads every shard that the manifest names and compares it with its checksum, looks for networks that are there twice,
in one split or in two, and compiles some rows of each split again, operation by operation, to compare all columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ghn.outlines import summarise
from ghn.sampling import sample_architecture
from pipeline.architecture_store import SCHEMA, ArchitectureStore, Row, Split, architecture_of, table_of
from pipeline.errors import UserError
from pipeline.results import MANIFEST, print_table


def verify(storage: str, manifest: str | Path = MANIFEST, recompute: int = 200) -> None:
    """Prints, for each split, how many of its networks are distinct, are in other splits too, or are not as stored.

    Args:
        recompute: rows of each split, spread evenly, that are compiled again.

    Raises:
        UserError: a shard is missing or damaged, a network is there twice, or a row is not what its columns say.
    """
    store = ArchitectureStore(storage, manifest)
    identities = {name: split.columns("identity")["identity"].astype("S24") for name, split in store.splits.items()}
    table, faults = [], []
    for name, split in store.splits.items():
        repeated = len(split) - len(np.unique(identities[name]))
        others = [other for other in identities if other != name]
        shared = sum(len(np.intersect1d(identities[name], identities[other])) for other in others)
        wrong, looked_at = _wrong_rows(split, recompute)
        faults += [f"split {name} holds {repeated} networks twice"] * bool(repeated)
        faults += [f"split {name} shares {shared} networks with other splits"] * bool(shared)
        at = ", ".join(map(str, wrong[:3])) + ", …" * (len(wrong) > 3)
        faults += [f"split {name} has {len(wrong)} rows that are not what they say: at {at}"] * bool(wrong)
        counts = {"rows": len(split), "repeated": repeated, "in other splits": shared}
        counts |= {"compiled again": looked_at, "that differ": len(wrong)}
        table.append({"split": name} | {key: f"{count:,}" for key, count in counts.items()})
    print_table(f"{sum(map(len, store.splits.values())):,} architectures, all shards as in the manifest", table)
    if faults:
        more = [f"… and {len(faults) - 2} more"] if len(faults) > 3 else []
        raise UserError("\n".join(faults[:2] + (more or faults[2:])))


def _wrong_rows(split: Split, count: int) -> tuple[list[int], int]:
    """Positions of rows that differ from what their architecture gives, and how many were looked at."""
    if not len(split) or not count:
        return [], 0
    positions = np.unique(np.linspace(0, len(split) - 1, min(count, len(split)), dtype=int)).tolist()
    wrong = []
    for position in tqdm(positions, desc=split.name, unit="row", leave=False):
        stored = split.row(position, *SCHEMA.names)
        if not stored.equals(_computed(split, position, stored.to_pylist()[0])):
            wrong.append(position)
    return wrong, len(positions)


def _computed(split: Split, position: int, stored: dict[str, Any]) -> Any:
    """What a row should be, as a table, by compiling its programs, and by drawing it again if it was drawn."""
    architecture, seed, draw = architecture_of(stored), stored["seed"], stored["draw"]
    if seed is not None:
        drawn_from = "test" if split.name == "wide" else split.name
        drawn = sample_architecture(seed, drawn_from, position, draw)
        architecture = drawn.with_width(architecture.C) if split.name == "wide" else drawn
    summary = summarise(architecture.compile(32, 10))
    parameters_large = architecture.compile(224, 1000).num_parameters
    return table_of([Row(position, architecture, summary, parameters_large, seed, draw)])
