# SPDX-License-Identifier: Apache-2.0
"""Destinations as the API shows them.

`render_*` returns what goes through Synapse's JSON encoder; `encode_*` returns the same
as text, many times faster, for long lists.
"""

import csv
import io
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as json_text

from synapse_federation_admin.homeserver import JsonDict
from synapse_federation_admin.models import Backlog, Destination

__all__ = [
    "CSV_COLUMNS",
    "encode_csv",
    "encode_v1",
    "encode_v2",
    "json_text",
    "render_backlog",
    "render_v1",
    "render_v2",
]

CSV_COLUMNS = (
    "destination",
    "retry_last_ts",
    "retry_interval",
    "failure_ts",
    "last_successful_stream_ordering",
    "status",
    "next_retry_ts",
    "allowed",
)

CSV_BACKLOG_COLUMNS = (
    "rooms",
    "oldest_stream_ordering",
    "catch_up",
    "to_device_messages",
    "oldest_to_device_ts",
    "device_list_updates",
)


def render_v1(row: Destination) -> JsonDict:
    """Render the five documented keys; a client that others wrote refuses a sixth."""
    return {
        "destination": row.destination,
        "retry_last_ts": row.retry_last_ts or 0,
        "retry_interval": row.retry_interval or 0,
        "failure_ts": row.failure_ts,
        "last_successful_stream_ordering": row.last_successful_stream_ordering,
    }


def encode_v1(row: Destination) -> str:
    """Return the JSON of `render_v1`."""
    failure_ts = row.failure_ts
    ordering = row.last_successful_stream_ordering
    return (
        f'{{"destination":{json_text(row.destination)},'
        f'"retry_last_ts":{row.retry_last_ts or 0},'
        f'"retry_interval":{row.retry_interval or 0},'
        f'"failure_ts":{"null" if failure_ts is None else failure_ts},'
        '"last_successful_stream_ordering":'
        f"{'null' if ordering is None else ordering}}}"
    )


def render_v2(row: Destination, now_ms: int, *, allowed: bool) -> JsonDict:
    """Render the keys of v1, and those of v2 that the row itself tells."""
    return {
        **render_v1(row),
        "status": row.status(now_ms).value,
        "next_retry_ts": row.next_retry_ts,
        "allowed": allowed,
    }


def encode_v2(row: Destination, now_ms: int, *, allowed: bool) -> str:
    """Return the JSON of `render_v2`."""
    next_retry_ts = row.next_retry_ts
    return (
        f'{encode_v1(row)[:-1]},"status":"{row.status(now_ms).value}",'
        f'"next_retry_ts":{"null" if next_retry_ts is None else next_retry_ts},'
        f'"allowed":{"true" if allowed else "false"}}}'
    )


def render_backlog(backlog: Backlog) -> JsonDict:
    """Render what waits for a destination."""
    return {
        "rooms": backlog.rooms,
        "oldest_stream_ordering": backlog.oldest_stream_ordering,
        "catch_up": "possible" if backlog.can_catch_up else "impossible",
        "to_device_messages": backlog.to_device_messages,
        "oldest_to_device_ts": backlog.oldest_to_device_ts,
        "device_list_updates": backlog.device_list_updates,
    }


def encode_csv(lines: Sequence[Sequence[object]]) -> bytes:
    """Return lines of CSV (RFC 4180), in UTF-8; None is an empty field."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()
