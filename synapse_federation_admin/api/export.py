# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations that a filter keeps, as a file."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

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
    Include,
    ListedDestination,
)
from synapse_federation_admin.api.schemas.values import model_of
from synapse_federation_admin.api.v2_destinations import render_rows
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination

# How many rows with their backlog are written at a time.
_BACKLOG_PIECE = 1000

_CONTENT_TYPES = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
}
_ENDS = {ExportFormat.NDJSON: "\n", ExportFormat.CSV: "\r\n"}


@operation(ExportQuery, ListedDestination, media_types=tuple(_CONTENT_TYPES.values()))
async def export_destinations(asked: Asked, query: ExportQuery) -> None:
    """Export all destinations that the filters keep, as a file.

    GET /_synapse/admin/v2/federation/destinations/export?format=csv&status=retry_due

    200 OK: the file. It is written while it is read; a failure half-way cuts the
    connection.
    """
    await respond_in_chunks(
        asked.services.homeserver,
        asked.request,
        _CONTENT_TYPES[query.format],
        _chunks(asked.services, query),
        file_name=f"destinations.{query.format.value}",
    )


async def _chunks(
    services: Services, query: ExportQuery
) -> AsyncGenerator[bytes, None]:
    includes_backlog = bool(query.include)
    end = _ENDS[query.format]
    if query.format is ExportFormat.CSV:
        added = model_of(Backlog).model_fields if includes_backlog else ()
        yield f"{csv_fields((*CSV_COLUMNS, *added))}{end}".encode("ascii")
    pieces = services.reader.of(query.wanted, query.sort).pieces(None)
    async with aclosing(pieces):
        async for rows in pieces:
            # With their backlog, each takes longer to write.
            size = _BACKLOG_PIECE if includes_backlog else len(rows)
            for begin in range(0, len(rows), size):
                part = rows[begin : begin + size]
                lines = (
                    await _lines_with_backlog(services, part, query.format)
                    if includes_backlog
                    else _lines(services, part, query.format)
                )
                yield f"{end.join(lines)}{end}".encode()


def _lines(
    services: Services, rows: list[Destination], format_: ExportFormat
) -> list[str]:
    encode = csv_line if format_ is ExportFormat.CSV else encode_v2
    now_ms = services.homeserver.now_ms()
    is_allowed = services.homeserver.is_allowed
    return [encode(row, now_ms, allowed=is_allowed(row.destination)) for row in rows]


async def _lines_with_backlog(
    services: Services, rows: list[Destination], format_: ExportFormat
) -> list[str]:
    found = await render_rows(services, rows, (Include.BACKLOG,))
    if format_ is ExportFormat.NDJSON:
        return [json.dumps(row, separators=(",", ":")) for row in found]
    return [
        f"{line},{csv_fields(list(row['backlog'].values()))}"
        for line, row in zip(_lines(services, rows, format_), found, strict=True)
    ]
