# SPDX-License-Identifier: Apache-2.0
"""How amounts and texts of anybody are written. Pure."""

import re
from itertools import pairwise

SECOND_MS = 1000
_MINUTE = 60 * SECOND_MS
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (SECOND_MS, "s"))

# From when on a duration has its largest unit only.
_PLAIN_FROM = {"d": 3, "h": 6, "min": 10, "s": 0}

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


def cut(text: str, most: int = 160) -> str:
    """Return a text that is not endless."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def middle(name: str, most: int = 80) -> str:
    """Return a name that is not endless: with its end, which says whose it is."""
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


def count(number: int) -> str:
    """Return a number with its thousands apart: 1,418."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return how many there are of something: `1 event`, `1,418 events`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(ms: float) -> str:
    """Return a duration as a person says it: `39 d`, `2 h 5 min`, `0.13 s`."""
    if ms < SECOND_MS:
        return f"{max(ms, 0):.0f} ms"
    if ms < 10 * SECOND_MS:
        return f"{ms / SECOND_MS:.1f} s".replace(".0 s", " s")
    for (unit_ms, unit), (next_ms, next_unit) in pairwise((*_UNITS, (1, ""))):
        amount = int(ms // unit_ms)
        if amount:
            rest = int(ms % unit_ms // next_ms)
            if amount < _PLAIN_FROM[unit] and rest:
                return f"{amount} {unit} {rest} {next_unit}"
            return f"{amount} {unit}"
    return "0 s"
