# SPDX-License-Identifier: Apache-2.0
"""A message to the admins of another server, which says what we see of it.

Only what was seen, and when: not what they should do. Plain text, ready to be sent.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.findings import Connection, ConnectionsFindings
from synapse_federation_admin.diagnosis.stages import Diagnosis
from synapse_federation_admin.failures.text import message_of, shown_duration
from synapse_federation_admin.storage.records import RecordedFailure


def subject_for_admins(our_name: str, row: Destination) -> str:
    """Return what the message is about."""
    return f"Matrix federation from {our_name} to {row.destination}"


def message_to_admins(
    our_name: str,
    row: Destination,
    now_ts: int,
    *,
    last_success_ts: int | None = None,
    failures: Sequence[RecordedFailure] = (),
    diagnosis: Diagnosis | None = None,
) -> str:
    """Return the message, as plain text of several lines.

    Args:
        our_name: Our server name.
        row: The other server, and since when it fails.
        now_ts: The time.
        last_success_ts: When a request last succeeded; None if not known.
        failures: Why requests failed, the last kind first.
        diagnosis: The last diagnosis; None if there is none.
    """
    name = row.destination
    since_ts = (row.failure_ts or row.retry_last_ts) if row.is_failing else None
    parts = ["Hello,"]
    if since_ts is None:
        parts.append(
            f"this is about requests from our Matrix homeserver {our_name} to yours, "
            f"{name}. It is not in backoff here just now."
        )
    else:
        parts.append(
            f"our Matrix homeserver {our_name} cannot deliver messages to yours, "
            f"{name}. Requests have been failing since {_time(since_ts)}, for "
            f"{shown_duration(max(0, now_ts - since_ts))}."
        )
    lines = [
        f"- {label}: {_time(ts)}"
        for label, ts in (
            ("Last attempt that failed", row.retry_last_ts),
            ("Next attempt, at the earliest", row.next_retry_ts),
            ("Last request that succeeded", last_success_ts),
        )
        if ts
    ]
    if lines:
        parts.append("\n".join(lines))
    if failures:
        told = ["What our requests met, the last first:"]
        for each in failures:
            when = _time(each.last_ts)
            if each.count > 1:
                when = f"{each.count} times, {_time(each.first_ts)} to {when}"
            told.append(f"- {each.message} ({when})")
        parts.append("\n".join(told))
    if diagnosis is not None:
        found = [
            f"A check at {_time(diagnosis.checked_ts)} found: "
            f"{diagnosis.situation.explanation}"
        ]
        found += [
            f"- {_where(connection)}: {_what(connection)}"
            for connection in _connections(diagnosis)
        ]
        parts.append("\n".join(found))
    parts.append(
        f"Could you have a look? All times are UTC. This is what {our_name} sees; from "
        "other places it may look different."
    )
    return "\n\n".join(parts) + "\n"


def _connections(diagnosis: Diagnosis) -> Iterator[Connection]:
    for stage in diagnosis.stages:
        if isinstance(stage.findings, ConnectionsFindings):
            yield from stage.findings.connections


def _where(connection: Connection) -> str:
    place = f"{connection.host}, port {connection.port}"
    return f"{place}, {connection.address}" if connection.address else place


def _what(connection: Connection) -> str:
    if connection.error is not None:
        return message_of(connection.error)
    version = connection.version
    if version is not None and version.error is not None:
        return message_of(version.error)
    if version is not None and version.status is not None:
        return f"answered, HTTP status {version.status}"
    return "connected"


def _time(ts: int) -> str:
    """Return a time for people; what no calendar has is a number."""
    try:
        return f"{datetime.fromtimestamp(ts / 1000, timezone.utc):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return str(ts)
