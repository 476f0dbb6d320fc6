"""Command `preset`: write ready settings, such as params/cifar10.yaml, into params.yaml.

A preset holds only what differs from the defaults. Keys that it does not name keep their values, and so do comments and
the order of keys.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError
from pipeline.params import Keys, leaves, read_values, set_leaf, validated, with_changes
from pipeline.storage.files import write_bytes

PRESETS = Path("params")
"""Folder of the presets that have a name."""


def apply_preset(preset: str, file: Path) -> None:
    """Write the values of a preset into a settings file, and print those that changed.

    Args:
        preset: name of a file in `params/`, without suffix, or path of a file.
        file: settings to change; they are validated without and with the new values before anything is written.

    Raises:
        UserError: there is no such preset or file, or the settings are not valid.
    """
    source = find_preset(preset)
    settings, preset_values = read_values(file), read_values(source)
    validated(settings, file)
    validated(with_changes(settings, preset_values), f"{file} with {source}")
    before = dict(leaves(settings))
    changed = {keys: value for keys, value in leaves(preset_values) if before[keys] != value}
    if changed:
        write_bytes(file, _edited(file, changed).encode())
    for keys, value in changed.items():
        print(f"{'.'.join(keys)}: {json.dumps(before[keys])} → {json.dumps(value)}")
    print(f"{file} has the values of {source}")


def find_preset(preset: str) -> Path:
    """Return the file of a preset, given its name or its path.

    Raises:
        UserError: there is neither.
    """
    for place in (PRESETS / f"{preset}.yaml", Path(preset)):
        if place.is_file():
            return place
    names = ", ".join(sorted(place.stem for place in PRESETS.glob("*.yaml"))) or "none"
    raise UserError(f"no preset {preset}: must be a file, or one of those in {PRESETS}/: {names}")


def _edited(file: Path, changed: Mapping[Keys, Any]) -> str:
    """Return the text of a settings file with other values, its comments kept."""
    yaml = YAML()
    yaml.width = 10_000  # lines are never broken
    yaml.preserve_quotes = True
    yaml.default_flow_style = True  # of lists that are new
    yaml.representer.add_representer(type(None), _represent_null)
    try:
        document = yaml.load(file.read_text())
    except YAMLError as error:  # such as a key that is there twice
        raise UserError(f"{file} cannot be edited: {' '.join(str(error).split())}") from error
    for keys, value in changed.items():
        set_leaf(document, keys, value)
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
