"""Settings as texts: in a flat table, and as a hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def flat_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `section.key` -> text: strings as they are, all else as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def settings_hash(settings: Any, length: int = 12) -> str:
    """Return hexadecimal digits that change whenever the settings do.

    Args:
        settings: any JSON-serialisable value; the order of its keys does not count.
        length: number of digits, at most 64.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]
