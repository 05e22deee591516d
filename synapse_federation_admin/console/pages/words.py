# SPDX-License-Identifier: Apache-2.0
"""Words and shapes that the pages about servers share. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attr

from synapse_federation_admin.destinations.summary import FailureAge
from synapse_federation_admin.failures.kinds import UNKNOWN_KIND, Failure, FailureKind
from synapse_federation_admin.failures.text import advice_of
from synapse_federation_admin.storage.sql import MOMENT_MS

_KINDS = {kind.value: kind for kind in FailureKind}

CAUSES = {
    **{value: kind.headline for value, kind in _KINDS.items()},
    UNKNOWN_KIND: "Not known: none has failed since the module was installed",
}
"""What is told of each kind, in a few words."""


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AgeColumn:
    """A column of the table of what fails, and the filter that leads to its servers.

    Attributes:
        age: The key in the summary.
        label: Its head.
        failing_for: For how long at least; None: any time.
        failing_under: For less than how long; None: any time.
    """

    age: FailureAge
    label: str
    failing_for: str | None
    failing_under: str | None


AGES = (
    AgeColumn(FailureAge.UNDER_1H, "< 1 h", None, "1h"),
    AgeColumn(FailureAge.UNDER_1D, "< 1 d", "1h", "1d"),
    AgeColumn(FailureAge.UNDER_7D, "< 7 d", "1d", "7d"),
    AgeColumn(FailureAge.UNDER_30D, "< 30 d", "7d", "30d"),
    AgeColumn(FailureAge.FROM_30D, "older", "30d", None),
)


def cause(kind: str) -> str:
    """Return a kind in a few words; what a later release has written, as it is."""
    return CAUSES.get(kind, kind)


def advice(kind: str) -> str:
    """Return what is to be done about a kind; "" if it is not known here."""
    found = _KINDS.get(kind)
    return advice_of(Failure(found)) if found else ""


def is_why(server: Any) -> bool:
    """Tell whether the last failure of a server is why it fails.

    What was met before it began to fail is not.
    """
    last = server.last_failure
    since_ts = server.failure_ts or server.retry_last_ts or 0
    return bool(last) and last.last_ts >= since_ts - MOMENT_MS


def failed_last(server: Any) -> bool:
    """Tell whether a failure is recorded, and no success since.

    So it is after a reset, until a request is answered.
    """
    last = server.last_failure
    return bool(last) and last.last_ts > (server.last_success_ts or 0)


class Day(Protocol):
    """A day of an availability."""

    date: str
    share: float | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Strip:
    """The last days of a server, as shapes of a drawing of 8 units for each day.

    Attributes:
        paths: For each state that occurs, its class and its shape.
        told: The same in words.
    """

    paths: tuple[tuple[str, str], ...]
    told: str


_UP, _PART, _DOWN, _NONE = "up", "part", "down", "none"
_WORDS = {_DOWN: "down", _PART: "in part down", _UP: "up", _NONE: "not recorded"}

# Where a bar of each state begins, and how high it is: told by shape, too.
_BARS = {_UP: (4, 10), _PART: (2, 14), _DOWN: (0, 18), _NONE: (8, 2)}


def _state(share: float | None) -> str:
    if share is None:
        return _NONE
    return _UP if share == 1 else _PART if share else _DOWN


def strip(days: Sequence[Day]) -> Strip:
    """Return the strip of an availability: one shape for each state."""
    states = [_state(day.share) for day in days]
    paths, told = [], []
    for state, word in _WORDS.items():
        at = [day for day, is_so in enumerate(states) if is_so == state]
        if at:
            top, height = _BARS[state]
            bars = (f"M{8 * day} {top}h6v{height}h-6z" for day in at)
            paths.append((state, "".join(bars)))
            told.append(f"{len(at)} {word}")
    return Strip(tuple(paths), f"Last {len(states)} days: {', '.join(told)}")


def heat(count: int, most: int) -> int:
    """Return how strong a number among others is shown: 0 if it is 0, at most 9."""
    return 0 if not count else 1 + 8 * count.bit_length() // max(most.bit_length(), 1)


def ordered(counts: Iterable[tuple[str, int]]) -> list[str]:
    """Return the keys, that of the largest number first."""
    return [key for key, _ in sorted(counts, key=lambda item: (-item[1], item[0]))]
