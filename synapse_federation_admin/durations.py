# SPDX-License-Identifier: Apache-2.0
"""Durations as people write them, in the configuration and elsewhere."""

import re

# As `parse_duration` takes it.
DURATION = re.compile(r"([0-9]{1,9})([smhdw])")

_UNIT_MS = {
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}


def parse_duration(text: str) -> int | None:
    """Return the ms of a duration such as `7d`; None if it is none."""
    match = DURATION.fullmatch(text)
    return int(match[1]) * _UNIT_MS[match[2]] if match else None
