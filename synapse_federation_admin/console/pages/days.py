# SPDX-License-Identifier: Apache-2.0
"""The last days of a server, as a drawing and in words. Pure."""

from collections.abc import Sequence
from itertools import groupby

import attr
from synapse.module_api import JsonDict


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Strip:
    """The last days of a server, as lines of a drawing of 8 units for each day.

    The style sheet parts a line into days, and has each state as high as it is told.

    Attributes:
        paths: For each state that occurs, its class and its line.
        told: The same in words.
    """

    paths: tuple[tuple[str, str], ...]
    told: str


_UP, _PART, _DOWN, _NONE = "up", "part", "down", "none"
_WORDS = {_DOWN: "down", _PART: "in part down", _UP: "up", _NONE: "not recorded"}


def _state(share: float | None) -> str:
    if share is None:
        return _NONE
    return _UP if share == 1 else _PART if share else _DOWN


def strip(days: Sequence[JsonDict]) -> Strip:
    """Return the strip of an availability: one path for each state."""
    lines = dict.fromkeys(_WORDS, "")
    counts = dict.fromkeys(_WORDS, 0)
    begin = 0
    for state, run in groupby(_state(day["share"]) for day in days):
        length = len(list(run))
        lines[state] += f"M{8 * begin} 9h{8 * length - 2}"
        counts[state] += length
        begin += length
    told = ", ".join(f"{n} {_WORDS[state]}" for state, n in counts.items() if n)
    return Strip(
        tuple((state, line) for state, line in lines.items() if line),
        f"Last {begin} days: {told}",
    )
