# SPDX-License-Identifier: Apache-2.0
"""v1: the documented reading endpoints."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Generic, TypeVar

import attr
from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    client_of,
    parse_choice,
    parse_count,
    parse_text,
    unknown_destination,
)
from synapse_federation_admin.api._render import encode_v1, render_v1
from synapse_federation_admin.api._stream import respond_in_chunks
from synapse_federation_admin.destinations.pagination import Listing, Page
from synapse_federation_admin.destinations.rooms import RoomList
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationOrder,
    DestinationRoom,
    Direction,
    Sort,
)
from synapse_federation_admin.homeserver.servlets import Requester

T = TypeVar("T")
P = TypeVar("P")

_DEFAULT_LIMIT = 100

# Above this, a page is written while it is read.
_MAX_PLAIN_LIMIT = 1000

# Those that are documented.
_ORDERS = tuple(
    order for order in DestinationOrder if order is not DestinationOrder.NEXT_RETRY_TS
)


class DestinationsServlet(AdminServlet):
    """List the destinations that Synapse knows, with their retry timings.

    GET /_synapse/admin/v1/federation/destinations?from=0&limit=100

    Query parameters, all optional:
        from: how many rows to leave out at the start (0)
        limit: the most rows to return, without an upper bound (100)
        order_by: `destination`, `retry_last_ts`, `retry_interval`, `failure_ts` or
            `last_successful_stream_ordering` (`destination`)
        dir: `f` or `b` (`f`)
        destination: keep names that contain this text, in any case

    200 OK

        {
            "destinations": [
                {
                    "destination": "matrix.org",
                    "retry_last_ts": 1557332397936,
                    "retry_interval": 3000000,
                    "failure_ts": 1557332397936,
                    "last_successful_stream_ordering": null
                }
            ],
            "total": 10,
            "next_token": "1"
        }

    `total` counts what the filter keeps; `next_token`, the next page's `from`, is
    absent on the last page.

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 401, 403.
    """

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict] | None:
        """Answer GET."""
        requester = await self._services.homeserver.require_admin(request)
        sort = Sort(
            order_by=parse_choice(
                request,
                "order_by",
                default=DestinationOrder.DESTINATION,
                choices=_ORDERS,
            ),
            direction=parse_choice(request, "dir", default=Direction.FORWARDS),
        )
        wanted = DestinationFilter(name_contains=parse_text(request, "destination"))
        return await _answer_page(
            self._services,
            request,
            requester,
            self._services.reader.of(wanted, sort),
            _DESTINATIONS,
        )


class DestinationServlet(AdminServlet):
    """Return one destination, by its exact name.

    GET /_synapse/admin/v1/federation/destinations/<destination>

    200 OK: one object as in the list.

    Errors: 404 `M_NOT_FOUND` if Synapse has no row for it, 401, 403.
    """

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        row = await self._services.destinations.get(destination)
        if row is None:
            raise unknown_destination()
        return HTTPStatus.OK, render_v1(row)


class DestinationRoomsServlet(AdminServlet):
    """List the rooms in which an event was ever queued for a destination.

    GET /_synapse/admin/v1/federation/destinations/<destination>/rooms?from=0&limit=100

    Query parameters, all optional:
        from: how many rows to leave out at the start (0)
        limit: the most rows to return, without an upper bound (100)
        dir: `f` or `b`, by room ID (`f`)

    Others are ignored: two admin UIs always send `order_by=id`.

    200 OK

        {
            "rooms": [
                {"room_id": "!OGEhHVWSdvArJzumhm:matrix.org", "stream_ordering": 8326}
            ],
            "total": 10,
            "next_token": "1"
        }

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 404 `M_NOT_FOUND` for an unknown
    destination, 401, 403.
    """

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict] | None:
        """Answer GET."""
        requester = await self._services.homeserver.require_admin(request)
        if await self._services.destinations.get(destination) is None:
            raise unknown_destination()
        direction = parse_choice(request, "dir", default=Direction.FORWARDS)
        return await _answer_page(
            self._services,
            request,
            requester,
            RoomList(self._services.homeserver, destination, direction),
            _ROOMS,
        )


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Kind(Generic[T]):
    """How a list is written.

    Attributes:
        key: The key in the answer under which its rows are.
        render: Returns one row as JSON has it.
        encode: Returns the JSON of some rows, as it stands between the brackets.
    """

    key: str
    render: Callable[[T], JsonDict]
    encode: Callable[[list[T]], str]


async def _answer_page(
    services: Services,
    request: SynapseRequest,
    requester: Requester,
    listing: Listing[T, P],
    kind: _Kind[T],
) -> tuple[int, JsonDict] | None:
    """Answer with a page of a list, as `from` and `limit` say.

    A long page is written while it is read, and None is returned.
    """
    offset = parse_count(request, "from", default=0)
    limit = parse_count(request, "limit", default=_DEFAULT_LIMIT)
    client = client_of(request, requester)
    page = Page(services.cursors, listing, offset, limit, client)
    if limit <= _MAX_PLAIN_LIMIT:
        rows = [row async for piece in page.pieces() for row in piece]
        return HTTPStatus.OK, {
            kind.key: [kind.render(row) for row in rows],
            "total": page.total,
            **({"next_token": str(page.end)} if page.has_more else {}),
        }
    await respond_in_chunks(
        services.homeserver, request, "application/json", _encode(page, kind)
    )
    return None


async def _encode(page: Page[T, P], kind: _Kind[T]) -> AsyncGenerator[bytes, None]:
    """Yield the JSON of a long page in chunks."""
    before = f'{{"{kind.key}":['
    async with aclosing(page.pieces()) as pieces:
        async for rows in pieces:
            yield (before + kind.encode(rows)).encode("ascii")
            before = ","
    next_token = f',"next_token":"{page.end}"' if page.has_more else ""
    empty = before if before != "," else ""
    yield f'{empty}],"total":{page.total}{next_token}}}'.encode("ascii")


def _render_room(row: DestinationRoom) -> JsonDict:
    return {"room_id": row.room_id, "stream_ordering": row.stream_ordering}


def _encode_rooms(rows: list[DestinationRoom]) -> str:
    return json.dumps(list(map(_render_room, rows)), separators=(",", ":"))[1:-1]


_DESTINATIONS = _Kind(
    "destinations", render_v1, lambda rows: ",".join(map(encode_v1, rows))
)
_ROOMS = _Kind("rooms", _render_room, _encode_rooms)
