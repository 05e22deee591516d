# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations that a filter keeps, as a file."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import Enum

from synapse.module_api import SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, Services, parse_choice
from synapse_federation_admin.api._parameters import (
    FILTER_PARAMETERS,
    SORT_PARAMETERS,
    Include,
    parse_filter,
    parse_includes,
    parse_sort,
    require_known,
)
from synapse_federation_admin.api._render import (
    CSV_BACKLOG_COLUMNS,
    CSV_COLUMNS,
    csv_fields,
    csv_line,
    encode_v2,
    render_backlog,
)
from synapse_federation_admin.api._stream import respond_in_chunks
from synapse_federation_admin.api.v2_destinations import backlogs_of, render_rows
from synapse_federation_admin.destinations.values import Destination


class ExportFormat(Enum):
    """The formats of an export."""

    NDJSON = "ndjson"
    CSV = "csv"


# How many rows with their backlog are written at a time.
_BACKLOG_PIECE = 1000

_BACKLOG = frozenset({Include.BACKLOG})

_CONTENT_TYPES = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
}


class ExportServlet(AdminServlet):
    """Export all destinations that the filters keep, as a file.

    GET /_synapse/admin/v2/federation/destinations/export?format=csv&status=retry_due

    Query parameters, all optional; any other is an error:
        format: `ndjson`, one JSON object of the list a line, or `csv`, with a line of
            column names first (`ndjson`)
        status, destination, failing_for, failure, order_by, dir: as in the list
        include: `backlog`, as in the list

    200 OK: the file. It is written while it is read; a failure half-way cuts the
    connection.

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 401, 403.
    """

    PATH = "/v2/federation/destinations/export"

    async def on_GET(self, request: SynapseRequest) -> None:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(
            request, ("format", *FILTER_PARAMETERS, *SORT_PARAMETERS, "include")
        )
        format_ = parse_choice(request, "format", default=ExportFormat.NDJSON)
        includes_backlog = bool(parse_includes(request, (Include.BACKLOG,)))
        pieces = services.reader.pieces(
            parse_filter(request), parse_sort(request), after=None
        )
        encode = _csv_chunks if format_ is ExportFormat.CSV else _ndjson_chunks
        await respond_in_chunks(
            services.homeserver,
            request,
            _CONTENT_TYPES[format_],
            encode(services, pieces, includes_backlog),
            file_name=f"destinations.{format_.value}",
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
                    json.dumps(shown, separators=(",", ":"))
                    for shown in await render_rows(services, rows, _BACKLOG)
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
    backlog_columns = CSV_BACKLOG_COLUMNS if includes_backlog else ()
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
                    f"{line},{csv_fields([*render_backlog(backlogs[row[0]]).values()])}"
                    for row, line in zip(rows, lines, strict=True)
                ]
            yield ("\r\n".join(lines) + "\r\n").encode()


async def _cut(
    pieces: AsyncGenerator[list[Destination], None], includes_backlog: bool
) -> AsyncGenerator[list[Destination], None]:
    """Yield rows in smaller pieces where each takes longer to write."""
    async with aclosing(pieces):
        async for rows in pieces:
            size = _BACKLOG_PIECE if includes_backlog else len(rows)
            for begin in range(0, len(rows), size):
                yield rows[begin : begin + size]
