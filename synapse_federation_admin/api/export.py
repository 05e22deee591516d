# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations that a filter keeps, as a file."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus

from synapse.module_api import JsonDict
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.api._base import Asked, Services
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import (
    CSV_COLUMNS,
    csv_fields,
    csv_line,
    encode_v2,
)
from synapse_federation_admin.api._stream import respond_in_chunks
from synapse_federation_admin.api.schemas.destinations import (
    ExportFormat,
    ExportQuery,
    ListedDestination,
)
from synapse_federation_admin.api.schemas.v1 import TOO_MANY
from synapse_federation_admin.api.schemas.values import keys_of, shown
from synapse_federation_admin.api.v2_destinations import destinations_of
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.destinations.waiting import WaitingList

# How many rows with their backlog are written at a time.
_BACKLOG_PIECE = 1000

_CONTENT_TYPES = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
}


@operation(
    ExportQuery,
    ListedDestination,
    media_types=tuple(_CONTENT_TYPES.values()),
    errors=TOO_MANY,
)
async def export_destinations(asked: Asked, query: ExportQuery) -> None:
    """Export all destinations that the filters keep, as a file.

    GET /_synapse/admin/v2/federation/destinations/export?format=csv&status=retry_due

    200 OK: the file. It is written while it is read; a failure half-way cuts the
    connection.
    """
    services = asked.services
    destinations = await destinations_of(services, query)
    if isinstance(destinations, WaitingList) and destinations.found is None:
        raise SynapseError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "It is being looked for what waits: ask again in a moment",
        )
    await respond_in_chunks(
        services.homeserver,
        asked.request,
        _CONTENT_TYPES[query.format],
        _chunks(services, query, destinations.pieces(None)),
        file_name=f"destinations.{query.format.value}",
    )


async def _chunks(
    services: Services,
    query: ExportQuery,
    pieces: AsyncGenerator[list[Destination], None],
) -> AsyncGenerator[bytes, None]:
    is_csv, includes_backlog = query.format is ExportFormat.CSV, bool(query.include)
    encode, end = (csv_line, "\r\n") if is_csv else (encode_v2, "\n")
    is_allowed = services.homeserver.is_allowed
    # Written with the first rows: what fails before is answered as an error.
    head = ""
    if is_csv:
        added = keys_of(Backlog) if includes_backlog else ()
        head = f"{csv_fields((*CSV_COLUMNS, *added))}{end}"
    async with aclosing(pieces):
        async for rows in pieces:
            # With their backlog, each takes longer to write.
            size = _BACKLOG_PIECE if includes_backlog else len(rows)
            for begin in range(0, len(rows), size):
                part = rows[begin : begin + size]
                now_ms = services.homeserver.now_ms()
                lines = [
                    encode(row, now_ms, allowed=is_allowed(row.destination))
                    for row in part
                ]
                if includes_backlog:
                    found = await services.backlog.of([row.destination for row in part])
                    lines = [
                        _with_backlog(line, shown(found[row.destination]), is_csv)
                        for line, row in zip(lines, part, strict=True)
                    ]
                yield f"{head}{end.join(lines)}{end}".encode()
                head = ""
    if head:
        yield head.encode()


def _with_backlog(line: str, backlog: JsonDict, is_csv: bool) -> str:
    if is_csv:
        return f"{line},{csv_fields(list(backlog.values()))}"
    return f'{line[:-1]},"backlog":{json.dumps(backlog, separators=(",", ":"))}}}'
