# SPDX-License-Identifier: Apache-2.0
"""Destinations as the API shows them.

`render_*` returns what goes through Synapse's JSON encoder; `encode_*` returns the same
as text, many times faster, for long lists.
"""

import csv
import io
import re
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as json_text

from synapse.module_api import JsonDict

from synapse_federation_admin.destinations.values import Destination, DestinationStatus
from synapse_federation_admin.failures.bounds import shown
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import is_server_name

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
    name, retry_last_ts, retry_interval, failure_ts, stream_ordering = row
    return (
        f'{{"destination":{json_text(name)},'
        f'"retry_last_ts":{retry_last_ts or 0},'
        f'"retry_interval":{retry_interval or 0},'
        f'"failure_ts":{"null" if failure_ts is None else failure_ts},'
        '"last_successful_stream_ordering":'
        f"{'null' if stream_ordering is None else stream_ordering}}}"
    )


def render_row(homeserver: Homeserver, row: Destination) -> JsonDict:
    """Render the keys of v1, and those of v2 that the row itself tells now."""
    allowed = homeserver.is_allowed(row.destination)
    return render_v2(row, homeserver.now_ms(), allowed=allowed)


def render_v2(row: Destination, now_ms: int, *, allowed: bool) -> JsonDict:
    """Render the keys of v1, and those of v2 that the row itself tells at a time."""
    found = render_v1(row)
    found["status"], found["next_retry_ts"] = _added(row, now_ms)
    found["allowed"] = allowed
    return found


def encode_v2(row: Destination, now_ms: int, *, allowed: bool) -> str:
    """Return the JSON of `render_v2`."""
    status, next_retry_ts = _added(row, now_ms)
    return (
        f'{encode_v1(row)[:-1]},"status":"{status}",'
        f'"next_retry_ts":{"null" if next_retry_ts is None else next_retry_ts},'
        f'"allowed":{"true" if allowed else "false"}}}'
    )


def csv_line(row: Destination, now_ms: int, *, allowed: bool) -> str:
    """Return the fields of `CSV_COLUMNS` as CSV, without an end of line."""
    name, retry_last_ts, retry_interval, failure_ts, stream_ordering = row
    status, next_retry_ts = _added(row, now_ms)
    return (
        f"{name if _IS_PLAIN(name) else csv_fields([name])},"
        f"{retry_last_ts or 0},{retry_interval or 0},"
        f"{'' if failure_ts is None else failure_ts},"
        f"{'' if stream_ordering is None else stream_ordering},"
        f"{status},{'' if next_retry_ts is None else next_retry_ts},"
        f"{'true' if allowed else 'false'}"
    )


def _added(row: Destination, now_ms: int) -> tuple[str, int | None]:
    """Return the status and when the next retry is."""
    # Most rows do not fail: for them, it is known.
    if row.retry_last_ts or not is_server_name(row.destination):
        return row.status(now_ms).value, row.next_retry_ts
    return _UNKNOWN if row.last_successful_stream_ordering is None else _ONLINE, None


_UNKNOWN = DestinationStatus.UNKNOWN.value
_ONLINE = DestinationStatus.ONLINE.value

# Names that CSV need not quote: those of servers are such.
_IS_PLAIN = re.compile(r"(?!-)[\w.:\[\]-]+", re.ASCII).fullmatch

# With what a spreadsheet takes a text for a formula, also after the quote.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def csv_fields(fields: Sequence[object]) -> str:
    """Return fields as CSV (RFC 4180), without an end of line; None is an empty one.

    Anybody can make a destination's name up. CSV is read by people: a text that a
    spreadsheet would take for a formula gets a `'` before it, and what a terminal would
    obey is shown.
    """
    text = io.StringIO()
    fields = [_harmless(f) if isinstance(f, str) else f for f in fields]
    # It quotes such ends of lines only as it writes itself.
    csv.writer(text, lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n")


def _harmless(field: str) -> str:
    return f"'{shown(field)}" if field.startswith(_BEGINS_FORMULA) else shown(field)
