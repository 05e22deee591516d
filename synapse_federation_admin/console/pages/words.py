# SPDX-License-Identifier: Apache-2.0
"""Words and shapes that the pages about servers share. Pure."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Protocol

import attr

from synapse_federation_admin.storage.audit_entry import (
    AUDIT_INTERRUPTED,
    AUDIT_PENDING,
    AuditAction,
)
from synapse_federation_admin.storage.outcomes import ReconnectOutcome, ResetOutcome
from synapse_federation_admin.storage.sql import MOMENT_MS


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


def is_unanswered(row: Any) -> bool:
    """Tell whether a server that is not in backoff has not answered since it failed.

    So it is after a reset, until a request gets through: its outage lasts.
    """
    if row.next_retry_ts is not None:
        return False
    has_outage = row.availability and row.availability.down_since_ts is not None
    return bool(has_outage) or (hasattr(row, "last_success_ts") and failed_last(row))


def cleared_ts(entries: Iterable[Any], server: Any) -> int | None:
    """Return when somebody cleared the backoff of a server that has not answered since.

    Args:
        entries: What was done to it, the newest first.
        server: The server.
    """
    last = server.last_failure
    failed_ts = last.last_ts if last else 0
    for entry in entries:
        done_ts: int = entry.ended_ts or entry.ts
        is_clearing = entry.action in _CLEARING and entry.outcome in _CLEARED
        if is_clearing and done_ts > failed_ts - MOMENT_MS:
            return done_ts
    return None


# What clears a backoff before anybody knows what comes of it.
_CLEARING = frozenset({AuditAction.RESET.value, AuditAction.RECONNECT.value})
_CLEARED = frozenset(
    {
        AUDIT_PENDING,
        AUDIT_INTERRUPTED,
        ResetOutcome.RESET.value,
        ReconnectOutcome.FORCED.value,
    }
)


class Day(Protocol):
    """A day of an availability."""

    date: str
    share: float | None


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


def strip(days: Sequence[Day]) -> Strip:
    """Return the strip of an availability: one path for each state."""
    lines = dict.fromkeys(_WORDS, "")
    counts = dict.fromkeys(_WORDS, 0)
    begin = 0
    for state, run in groupby(_state(day.share) for day in days):
        length = len(list(run))
        lines[state] += f"M{8 * begin} 9h{8 * length - 2}"
        counts[state] += length
        begin += length
    told = ", ".join(f"{n} {_WORDS[state]}" for state, n in counts.items() if n)
    return Strip(
        tuple((state, line) for state, line in lines.items() if line),
        f"Last {begin} days: {told}",
    )
