# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations that a filter keeps, as a file."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from synapse.module_api import SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, Services
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api._render import (
    CSV_COLUMNS,
    csv_fields,
    csv_line,
    encode_v2,
)
from synapse_federation_admin.api._stream import respond_in_chunks
from synapse_federation_admin.api.schemas.destinations import (
    Backlog,
    ExportFormat,
    ExportQuery,
    Include,
    ListedDestination,
)
from synapse_federation_admin.api.v2_destinations import backlogs_of, render_rows
from synapse_federation_admin.destinations.backlog import Backlog as BacklogValue
from synapse_federation_admin.destinations.values import Destination

# How many rows with their backlog are written at a time.
_BACKLOG_PIECE = 1000

_BACKLOG = (Include.BACKLOG,)

_CONTENT_TYPES = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
}


class ExportServlet(AdminServlet):
    """Export all destinations that the filters keep, as a file.

    GET /_synapse/admin/v2/federation/destinations/export?format=csv&status=retry_due

    200 OK: the file. It is written while it is read; a failure half-way cuts the
    connection.
    """

    GET = Operation(
        ExportQuery, ListedDestination, media_types=tuple(_CONTENT_TYPES.values())
    )

    async def on_GET(self, request: SynapseRequest) -> None:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        query = self.GET.parse(request)
        includes_backlog = bool(query.include)
        pieces = services.reader.of(query.wanted, query.sort).pieces(None)
        encode = _csv_chunks if query.format is ExportFormat.CSV else _ndjson_chunks
        await respond_in_chunks(
            services.homeserver,
            request,
            _CONTENT_TYPES[query.format],
            encode(services, pieces, includes_backlog),
            file_name=f"destinations.{query.format.value}",
        )


async def _ndjson_chunks(
    services: Services,
    pieces: AsyncGenerator[list[Destination], None],
    includes_backlog: bool,
) -> AsyncGenerator[bytes, None]:
    is_allowed = services.homeserver.is_allowed
    async with aclosing(_cut(pieces, includes_backlog)) as parts:
        async for rows in parts:
            if includes_backlog:
                lines = [
                    json.dumps(row, separators=(",", ":"))
                    for row in await render_rows(services, rows, _BACKLOG)
                ]
            else:
                now_ms = services.homeserver.now_ms()
                lines = [
                    encode_v2(row, now_ms, allowed=is_allowed(row.destination))
                    for row in rows
                ]
            yield ("\n".join(lines) + "\n").encode("ascii")


async def _csv_chunks(
    services: Services,
    pieces: AsyncGenerator[list[Destination], None],
    includes_backlog: bool,
) -> AsyncGenerator[bytes, None]:
    backlog_columns = tuple(Backlog.model_fields) if includes_backlog else ()
    yield f"{csv_fields((*CSV_COLUMNS, *backlog_columns))}\r\n".encode("ascii")
    is_allowed = services.homeserver.is_allowed
    async with aclosing(_cut(pieces, includes_backlog)) as parts:
        async for rows in parts:
            backlogs = await backlogs_of(services, rows, includes_backlog)
            now_ms = services.homeserver.now_ms()
            lines = [
                csv_line(row, now_ms, allowed=is_allowed(row.destination))
                for row in rows
            ]
            if includes_backlog:
                lines = [
                    f"{line},{csv_fields(_backlog_fields(backlogs[row[0]]))}"
                    for row, line in zip(rows, lines, strict=True)
                ]
            yield ("\r\n".join(lines) + "\r\n").encode()


def _backlog_fields(backlog: BacklogValue) -> list[object]:
    return list(Backlog.of(backlog).rendered().values())


async def _cut(
    pieces: AsyncGenerator[list[Destination], None], includes_backlog: bool
) -> AsyncGenerator[list[Destination], None]:
    """Yield rows in smaller pieces where each takes longer to write."""
    async with aclosing(pieces):
        async for rows in pieces:
            size = _BACKLOG_PIECE if includes_backlog else len(rows)
            for begin in range(0, len(rows), size):
                yield rows[begin : begin + size]
