"""Reading of settings files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.params.settings import Params, validated


def load_params(path: str | Path = "params.yaml") -> Params:
    """Return the validated settings of a file.

    Raises:
        UserError: the file is missing or is not YAML, a key is unknown or missing, a value is impossible.
    """
    return validated(read_values(path), path)


def read_values(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a settings file, not validated.

    Raises:
        UserError: the file is missing, is not YAML or holds no keys.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found: run from the project's folder, or give the file with --params")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: must be `key: value` lines, as in params.yaml")
    return values
