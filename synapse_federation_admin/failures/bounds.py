# SPDX-License-Identifier: Apache-2.0
"""What comes from outside, as it may be read and told."""

import json
from typing import Any

from synapse_federation_admin import limits


def bounded(text: str, most: int = limits.TEXT) -> str:
    """Return a text as one line of printable ASCII that is not endless."""
    shown = ascii(text[:most])[1:-1]
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def word(value: object, most: int = limits.WORD) -> str | None:
    """Return a text from outside as it may be told; None if it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return bounded(value, most) if isinstance(value, str) else None


def json_object(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object that something is, as Synapse reads it; None if none."""
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> None:
    """Refuse NaN and the like."""
    raise ValueError(constant)
