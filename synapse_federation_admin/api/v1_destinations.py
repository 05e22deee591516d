# SPDX-License-Identifier: Apache-2.0
"""v1: the documented reading endpoints."""

import json
import re
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing
from enum import Enum
from typing import TypeVar

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked, invalid_param, unknown_destination
from synapse_federation_admin.api._render import encode_v1, render_v1
from synapse_federation_admin.api._stream import respond_in_chunks
from synapse_federation_admin.destinations.pagination import Listing, Page
from synapse_federation_admin.destinations.store import RoomList
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    DestinationOrder,
    DestinationRoom,
    Direction,
    Sort,
)

T = TypeVar("T")
P = TypeVar("P")
E = TypeVar("E", bound=Enum)

_DEFAULT_LIMIT = 100

# Longer numbers are valid and mean the same: more rows than any table has. Numbers of
# this many digits are within the 64 bits of both databases.
_MAX_DIGITS = 18

# Those that are documented.
_ORDERS = tuple(
    order for order in DestinationOrder if order is not DestinationOrder.NEXT_RETRY_TS
)


async def list_destinations_v1(asked: Asked) -> JsonDict | None:
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
    request = asked.request
    sort = Sort(
        order_by=_parse_choice(
            request, "order_by", default=DestinationOrder.DESTINATION, choices=_ORDERS
        ),
        direction=_parse_choice(request, "dir", default=Direction.FORWARDS),
    )
    wanted = DestinationFilter(name_contains=_parse_text(request, "destination") or "")
    listing = asked.services.reader.of(wanted, sort)
    return await _answer_page(
        asked, listing, "destinations", render_v1, _encode_destinations
    )


async def get_destination_v1(asked: Asked, destination: str) -> JsonDict:
    """Return one destination, by its exact name.

    GET /_synapse/admin/v1/federation/destinations/<destination>

    200 OK: one object as in the list.

    Errors: 404 `M_NOT_FOUND` if Synapse has no row for it, 401, 403.
    """
    row = await asked.services.destinations.get(destination)
    if row is None:
        raise unknown_destination()
    return render_v1(row)


async def list_rooms_v1(asked: Asked, destination: str) -> JsonDict | None:
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
    services = asked.services
    if await services.destinations.get(destination) is None:
        raise unknown_destination()
    direction = _parse_choice(asked.request, "dir", default=Direction.FORWARDS)
    rooms = RoomList(services.homeserver, destination, direction)
    return await _answer_page(asked, rooms, "rooms", _render_room, _encode_rooms)


async def _answer_page(
    asked: Asked,
    listing: Listing[T, P],
    key: str,
    render: Callable[[T], JsonDict],
    encode: Callable[[list[T]], str],
) -> JsonDict | None:
    """Answer with a page of a list, as `from` and `limit` say.

    A long page is written while it is read, and None is returned.

    Args:
        asked: Who asks for it.
        listing: The list.
        key: The key in the answer under which its rows are.
        render: Returns one row as JSON has it.
        encode: Returns the JSON of some rows, as it stands between the brackets.
    """
    offset = _parse_count(asked.request, "from", default=0)
    limit = _parse_count(asked.request, "limit", default=_DEFAULT_LIMIT)
    services = asked.services
    page = Page(services.cursors, listing, offset, limit, _client_of(asked))
    if limit <= limits.PLAIN_PAGE:
        rows = [row async for piece in page.pieces() for row in piece]
        return {
            key: [render(row) for row in rows],
            "total": page.total,
            **({"next_token": str(page.end)} if page.has_more else {}),
        }
    chunks = _chunks(page, key, encode)
    await respond_in_chunks(
        services.homeserver, asked.request, "application/json", chunks
    )
    return None


def _client_of(asked: Asked) -> Hashable:
    """Return who asks for a page, for what is remembered of their walk."""
    request, who = asked.request, asked.requester
    return (
        who.user.to_string(),
        who.access_token_id,
        who.device_id,
        getattr(request.getClientAddress(), "host", None),
        (request.getHeader("User-Agent") or "")[: limits.SOFTWARE],
    )


async def _chunks(
    page: Page[T, P], key: str, encode: Callable[[list[T]], str]
) -> AsyncGenerator[bytes, None]:
    """Yield the JSON of a long page in chunks."""
    before = f'{{"{key}":['
    async with aclosing(page.pieces()) as pieces:
        async for rows in pieces:
            yield (before + encode(rows)).encode("ascii")
            before = ","
    next_token = f',"next_token":"{page.end}"' if page.has_more else ""
    empty = before if before != "," else ""
    yield f'{empty}],"total":{page.total}{next_token}}}'.encode("ascii")


def _render_room(row: DestinationRoom) -> JsonDict:
    return {"room_id": row.room_id, "stream_ordering": row.stream_ordering}


def _encode_destinations(rows: list[Destination]) -> str:
    return ",".join(map(encode_v1, rows))


def _encode_rooms(rows: list[DestinationRoom]) -> str:
    return json.dumps(list(map(_render_room, rows)), separators=(",", ":"))[1:-1]


def _parse_text(request: SynapseRequest, name: str) -> str | None:
    """Parse a query parameter: the first one, where it is repeated; None if absent.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter, if it is not UTF-8.
    """
    values: Sequence[bytes] = (request.args or {}).get(name.encode(), ())
    for value in values:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise invalid_param(f"Query parameter '{name}' must be UTF-8") from None
    return None


def _parse_count(request: SynapseRequest, name: str, *, default: int) -> int:
    """Parse a query parameter that is a number of rows: 0 or more, without a limit.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    value = _parse_text(request, name)
    if value is None:
        return default
    # Only ASCII digits: int() also takes "1_000", " 7" and digits of other scripts.
    if not re.fullmatch("[0-9]+", value):
        raise invalid_param(f"Query parameter '{name}' must be a non-negative integer")
    digits = value.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _parse_choice(
    request: SynapseRequest, name: str, *, default: E, choices: Sequence[E] = ()
) -> E:
    """Parse a query parameter that is one of an Enum's values.

    Args:
        request: The request.
        name: The parameter.
        default: What stands for a parameter that is not there.
        choices: Which members are valid. Empty: all.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter and the values.
    """
    value = _parse_text(request, name)
    if value is None:
        return default
    valid = choices or tuple(type(default))
    for choice in valid:
        if value == choice.value:
            return choice
    names = ", ".join(f"'{choice.value}'" for choice in valid)
    raise invalid_param(f"Query parameter '{name}' must be one of {names}")
