"""Stage `describe`: the page about the architectures."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from pipeline.architectures.store import ArchitectureStore
from pipeline.params import Params
from pipeline.reporting.page import git_state, versions


def provenance(params: Params, store: ArchitectureStore) -> dict[str, str]:
    """Where the page about the architectures comes from: code, seed, data, versions, date."""
    imported = ", ".join(f"{split} from {address}" for split, address in params.generate.imported.items())
    return {
        "code": git_state(),
        "DVC experiment": os.environ.get("DVC_EXP_NAME") or "none",
        "seed": str(params.seed),
        "imported": imported or "none",
        "architectures": f"digest {store.digest}",
        "versions": versions("pyarrow", "ray", "mlflow", "dvc"),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
