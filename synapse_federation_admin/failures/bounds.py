# SPDX-License-Identifier: Apache-2.0
"""What comes from outside, as it may be read and told."""

import json
import re
from typing import Any

from synapse_federation_admin import limits

# Control characters, but for a tab and the end of a line; those that turn the
# direction of what follows; and those that are not seen.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def shown(text: str) -> str:
    """Return a text with its control characters shown, not obeyed."""
    if text.isprintable():
        return text
    return CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def bounded(text: str, most: int = limits.TEXT) -> str:
    """Return a text as one line of printable ASCII that is not endless."""
    found = ascii(text[:most])[1:-1]
    return found if len(found) <= most else found[: most - 3] + "..."


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
