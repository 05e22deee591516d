# SPDX-License-Identifier: Apache-2.0
"""A message to the admins of another server, which says what we see of it.

Only what was seen, and when: not what they should do. Plain text, ready to be sent.
"""

from collections.abc import Sequence
from datetime import datetime, timezone

import attr

from synapse_federation_admin.failures.text import shown_duration


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SeenFailure:
    """Failures of one kind of real requests.

    Attributes:
        message: What the last of them met.
        first_ts: When the first failed.
        last_ts: When the last failed.
        count: How many failed.
    """

    message: str
    first_ts: int
    last_ts: int
    count: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SeenDiagnosis:
    """What a diagnosis has found.

    Attributes:
        checked_ts: When it was made.
        explanation: What it has found.
        addresses: Of each address that was connected to: what it is, and what came of
            it.
    """

    checked_ts: int
    explanation: str
    addresses: Sequence[tuple[str, str]] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Evidence:
    """What we see of another server.

    Attributes:
        our_name: Our server name.
        destination: Theirs.
        now_ts: The time.
        failing_since_ts: Since when it fails; None if it does not.
        last_tried_ts: When Synapse last tried in vain; None if it does not fail.
        next_retry_ts: When it tries again at the earliest.
        last_success_ts: When a request last succeeded; None if not known.
        failures: Why requests failed, the last kind first.
        diagnosis: The last diagnosis; None if there is none.
    """

    our_name: str
    destination: str
    now_ts: int
    failing_since_ts: int | None = None
    last_tried_ts: int | None = None
    next_retry_ts: int | None = None
    last_success_ts: int | None = None
    failures: Sequence[SeenFailure] = ()
    diagnosis: SeenDiagnosis | None = None


def subject_of(seen: Evidence) -> str:
    """Return what the message is about."""
    return f"Matrix federation from {seen.our_name} to {seen.destination}"


def message_to_admins(seen: Evidence) -> str:
    """Return the message, as plain text of several lines."""
    name, ours = seen.destination, seen.our_name
    parts = ["Hello,"]
    if seen.failing_since_ts is None:
        parts.append(
            f"this is about requests from our Matrix homeserver {ours} to yours, "
            f"{name}. They do not fail just now."
        )
    else:
        since_ms = max(0, seen.now_ts - seen.failing_since_ts)
        parts.append(
            f"our Matrix homeserver {ours} cannot deliver messages to yours, {name}. "
            f"Requests have been failing since {_time(seen.failing_since_ts)}, for "
            f"{shown_duration(since_ms)}."
        )
    lines = []
    for label, ts in (
        ("Last attempt that failed", seen.last_tried_ts),
        ("Next attempt, at the earliest", seen.next_retry_ts),
        ("Last request that succeeded", seen.last_success_ts),
    ):
        if ts is not None:
            lines.append(f"- {label}: {_time(ts)}")
    if lines:
        parts.append("\n".join(lines))
    if seen.failures:
        told = [
            f"- {each.message} ({each.count} times, {_time(each.first_ts)} to "
            f"{_time(each.last_ts)})"
            for each in seen.failures
        ]
        parts.append("\n".join(["What our requests met, the last first:", *told]))
    if seen.diagnosis is not None:
        found = [
            f"A check at {_time(seen.diagnosis.checked_ts)} found: "
            f"{seen.diagnosis.explanation}"
        ]
        found += [f"- {where}: {what}" for where, what in seen.diagnosis.addresses]
        parts.append("\n".join(found))
    parts.append(
        f"Could you have a look? All times are UTC. This is what {ours} sees; from "
        "other places it may look different."
    )
    return "\n\n".join(parts) + "\n"


def _time(ts: int) -> str:
    """Return a time for people; what no calendar has is a number."""
    try:
        return f"{datetime.fromtimestamp(ts / 1000, timezone.utc):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return str(ts)
