# SPDX-License-Identifier: Apache-2.0
"""v1: the documented reading endpoints."""

from http import HTTPStatus

from synapse_federation_admin.homeserver import JsonDict, SynapseRequest
from synapse_federation_admin.models import (
    Destination,
    DestinationOrder,
    DestinationQuery,
    Direction,
)
from synapse_federation_admin.rest._base import (
    AdminServlet,
    parse_choice,
    parse_count,
    parse_text,
    unknown_destination,
)

_DEFAULT_LIMIT = 100


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

    PATH = "/v1/federation/destinations"

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        query = DestinationQuery(
            offset=parse_count(request, "from", default=0),
            limit=parse_count(request, "limit", default=_DEFAULT_LIMIT),
            order_by=parse_choice(
                request, "order_by", default=DestinationOrder.DESTINATION
            ),
            direction=parse_choice(request, "dir", default=Direction.FORWARDS),
            name_contains=parse_text(request, "destination"),
        )
        page = await self._services.destinations.list(query)
        return HTTPStatus.OK, {
            "destinations": [_render_destination(row) for row in page.rows],
            "total": page.total,
            **_next_token(query.offset, len(page.rows), page.total),
        }


class DestinationServlet(AdminServlet):
    """Return one destination, by its exact name.

    GET /_synapse/admin/v1/federation/destinations/<destination>

    200 OK: one object as in the list.

    Errors: 404 `M_NOT_FOUND` if Synapse has no row for it, 401, 403.
    """

    PATH = "/v1/federation/destinations/<destination>"

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        row = await self._services.destinations.get(destination)
        if row is None:
            raise unknown_destination()
        return HTTPStatus.OK, _render_destination(row)


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

    PATH = "/v1/federation/destinations/<destination>/rooms"

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        if await self._services.destinations.get(destination) is None:
            raise unknown_destination()
        offset = parse_count(request, "from", default=0)
        page = await self._services.destinations.list_rooms(
            destination,
            offset=offset,
            limit=parse_count(request, "limit", default=_DEFAULT_LIMIT),
            direction=parse_choice(request, "dir", default=Direction.FORWARDS),
        )
        return HTTPStatus.OK, {
            "rooms": [
                {"room_id": row.room_id, "stream_ordering": row.stream_ordering}
                for row in page.rows
            ],
            "total": page.total,
            **_next_token(offset, len(page.rows), page.total),
        }


def _render_destination(row: Destination) -> JsonDict:
    """Render the five documented keys; a client that others wrote refuses a sixth."""
    return {
        "destination": row.destination,
        "retry_last_ts": row.retry_last_ts or 0,
        "retry_interval": row.retry_interval or 0,
        "failure_ts": row.failure_ts,
        "last_successful_stream_ordering": row.last_successful_stream_ordering,
    }


def _next_token(offset: int, returned: int, total: int) -> JsonDict:
    """Render where the next page begins, if this one leads anywhere."""
    end = offset + returned
    return {"next_token": str(end)} if returned and end < total else {}
