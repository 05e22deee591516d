# SPDX-License-Identifier: Apache-2.0
"""v2: destinations with their status, found by what matters."""

from collections.abc import AsyncGenerator, Collection

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked, Services, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api._render import render_row
from synapse_federation_admin.api.schemas.destinations import (
    DestinationDetail,
    DestinationsPage,
    DestinationsQuery,
    Include,
    SortedFilter,
)
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.destinations.attention import Attention
from synapse_federation_admin.destinations.queued import not_yet_queued
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.values import Destination, Position
from synapse_federation_admin.history.store import if_readable
from synapse_federation_admin.homeserver.features import Feature


@operation(DestinationsQuery, DestinationsPage)
async def list_destinations(asked: Asked, query: DestinationsQuery) -> JsonDict:
    """List destinations, with their status, by page.

    GET /_synapse/admin/v2/federation/destinations?status=retry_due&failing_for=7d

    200 OK

        {
            "destinations": [
                {
                    "destination": "matrix.org",
                    "retry_last_ts": 1557332397936,
                    "retry_interval": 3000000,
                    "failure_ts": 1557332397936,
                    "last_successful_stream_ordering": null,
                    "status": "backing_off",
                    "next_retry_ts": 1557335397936,
                    "allowed": true
                }
            ],
            "total": 10,
            "next_token": "xBp0..."
        }

    A key of a destination that `include` adds is null where nothing is recorded.
    """
    services = asked.services
    if query.has_backlog:
        return await _list_waiting(services, query)
    paging, sort = Paging(query), query.sort
    destinations = services.reader.of(query.wanted, sort)
    after, total = None, None
    if paging.after is not None:
        value, name, total = paging.after
        after = Position(value, name)
    found = await destinations.read(after, paging.limit)
    if query.total and total is None:
        is_whole = after is None and len(found) < paging.limit
        total = len(found) if is_whole else await destinations.count()

    def says(last: Destination) -> list[object]:
        position = sort.position_of(last)
        return [position.value, position.destination, total]

    rows, next_token = paging.cut(found, says)
    return {
        "destinations": await render_rows(services, rows, query.include),
        **({"total": total} if query.total else {}),
        **await _as_of(services, query),
        **next_token,
    }


async def _as_of(services: Services, query: DestinationsQuery) -> JsonDict:
    if Include.LOCAL_USERS not in query.include:
        return {}
    found = await services.attention.get()
    return {"as_of_ts": found.as_of_ts if found else None}


async def _list_waiting(services: Services, query: DestinationsQuery) -> JsonDict:
    """List those for which something waited when that was last looked for."""
    services.features.require(Feature.SHARED_ROOMS, Feature.BACKLOG)
    paging = Paging(query)
    waiting = await services.attention.get()
    rows: list[tuple[int, Destination]] = []
    after = tuple(paging.after) if paging.after else None
    async for piece in waiting_pieces(services, query, waiting, after):
        rows += piece
        if len(rows) >= paging.limit:
            break
    shown_rows, next_token = paging.cut(
        rows[: paging.limit], lambda last: [last[0], last[1].destination]
    )
    total = {}
    if query.total:
        total = {"total": await _count_waiting(services, query, waiting)}
    return {
        "destinations": await render_rows(
            services, [row for _, row in shown_rows], query.include
        ),
        **total,
        "as_of_ts": waiting.as_of_ts if waiting else None,
        "is_complete": bool(waiting and waiting.has_all_waiting),
        **next_token,
    }


async def _count_waiting(
    services: Services, query: SortedFilter, waiting: Attention | None
) -> int:
    """Count those that the filters keep, once for what was found."""
    if waiting is None:
        return 0
    total = waiting.totals.get(query.wanted)
    if total is None:
        total = 0
        async for piece in waiting_pieces(services, query, waiting):
            total += len(piece)
        waiting.totals[query.wanted] = total
    return total


async def waiting_pieces(
    services: Services,
    query: SortedFilter,
    waiting: Attention | None,
    after: tuple[int, str] | None = None,
) -> AsyncGenerator[list[tuple[int, Destination]], None]:
    """Read those that fail and that the filters keep, where most waits first.

    Args:
        services: The services.
        query: The filters.
        waiting: For what something waits; None: that is not known.
        after: Behind which place to begin.

    Yields:
        How much waited for each, and its row; never an empty list.
    """
    left = waiting.behind(after) if waiting else ()
    destinations = services.reader.of(query.wanted, query.sort)
    for begin in range(0, len(left), _LOOKED_FOR):
        some = left[begin : begin + _LOOKED_FOR]
        found = await destinations.among([name for _, name in some])
        if found:
            yield [(count, found[name]) for count, name in some if name in found]


# Among how many of them rows are looked for at a time.
_LOOKED_FOR = 500


@operation(
    Nothing, DestinationDetail, errors={404: "Nothing is known of the destination."}
)
async def get_destination(asked: Asked, _: Nothing, destination: str) -> JsonDict:
    """Tell everything that is known of one server.

    GET /_synapse/admin/v2/federation/destinations/<destination>

    200 OK: the object of the list with all that may be included, and

        {
            "unsendable": 0,
            "never_delivered": 0,
            "failures": [
                {
                    "kind": "tls_expired",
                    "message": "Its certificate, or one in the chain, has expired: ...",
                    "first_ts": 1557332397936,
                    "last_ts": 1557335397936,
                    "count": 7,
                    "instance": "federation_sender1"
                }
            ],
            "last_success_ts": 1557332397936,
            "shared_rooms": 12,
            "local_users": 40,
            "sender": {
                "instance": "federation_sender1",
                "state": "running",
                "seen_ts": 1557332397936,
                "position": 4711,
                "behind_events": 0,
                "behind_ms": 0,
                "ahead_events": 0
            },
            "not_yet_queued": 0,
            "inbound": {"last_transaction_ts": 1557332397936}
        }

    A name without a row is found, too, if to-device messages or device list updates
    wait for it, or requests to it were recorded. What belongs to a feature that is off
    is null.
    """
    services, is_on = asked.services, asked.services.features.is_on
    row = await require_known(services, destination)
    backlog = unsendable = shared = None
    if is_on(Feature.BACKLOG):
        backlog = (await services.backlog.of([destination]))[destination]
        unsendable = 0
        if backlog.rooms:
            unsendable = await services.backlog.unsendable(destination)
    read = await if_readable(lambda: services.history.failures([destination]))
    failures = (read or {}).get(destination, [])
    last_success_ts = await if_readable(
        lambda: services.history.last_success_ts(destination)
    )
    if is_on(Feature.SHARED_ROOMS):
        shared = await services.shared_rooms.of(destination)
    last_ts = await services.destinations.last_inbound_ts(destination)
    availability = await if_readable(
        lambda: services.history.availability([destination])
    )
    sender = await if_readable(lambda: services.senders.of(destination))
    not_yet_queued = await if_readable(
        lambda: _not_yet_queued(services, sender, destination)
    )
    return {
        **render_row(services.homeserver, row),
        "backlog": shown(backlog),
        "unsendable": unsendable,
        "never_delivered": backlog and backlog.never_delivered(unsendable or 0),
        "last_failure": shown(failures[0]) if failures else None,
        "availability": shown(availability[destination]) if availability else None,
        "failures": shown(failures),
        "last_success_ts": last_success_ts,
        "shared_rooms": shared.rooms if shared else None,
        "local_users": shared.local_users if shared else None,
        "sender": shown(sender),
        "not_yet_queued": not_yet_queued,
        "inbound": {"last_transaction_ts": last_ts},
    }


async def _not_yet_queued(
    services: Services, sender: Sender | None, destination: str
) -> int | None:
    """Count our events for a destination to which its sender has not come.

    None if that is not known.
    """
    if sender is None or sender.behind_events is None:
        return None
    if not sender.behind_events:
        return 0
    rooms = (await services.shared_rooms.of(destination)).theirs
    return await not_yet_queued(services.homeserver, [sender], rooms)


async def require_known(services: Services, destination: str) -> Destination:
    """Return a destination of which anything is known; its row may be empty.

    Every operation on one destination takes the same names.

    Raises:
        SynapseError: 404 `M_NOT_FOUND`: nothing is.
    """
    row = await services.destinations.get(destination)
    if row is not None:
        return row
    failures = await if_readable(lambda: services.history.failures([destination]))
    last_ts = await if_readable(lambda: services.history.last_success_ts(destination))
    is_known = bool(failures or last_ts)
    if not is_known and services.features.is_on(Feature.BACKLOG):
        is_known = not (await services.backlog.of([destination]))[destination].is_empty
    if not is_known:
        raise unknown_destination()
    return Destination(destination, None, None, None, None)


async def render_rows(
    services: Services, rows: list[Destination], includes: Collection[Include]
) -> list[JsonDict]:
    """Render the rows of a page, each a `ListedDestination`."""
    homeserver = services.homeserver
    names = [row.destination for row in rows]
    more: dict[str, dict[str, object]] = {}
    if Include.BACKLOG in includes:
        more["backlog"] = dict(await services.backlog.of(names))
    if Include.FAILURE in includes:
        failures = await services.history.failures(names)
        more["last_failure"] = {name: found[0] for name, found in failures.items()}
    if Include.AVAILABILITY in includes:
        more["availability"] = dict(await services.history.availability(names))
    if Include.LOCAL_USERS in includes:
        services.features.require(Feature.SHARED_ROOMS, Feature.BACKLOG)
        more["local_users"] = dict((await services.attention.local_users(rows))[1])
    turn = homeserver.turn()
    rendered = []
    for row in rows:
        more_of_row = {
            key: shown(found.get(row.destination)) for key, found in more.items()
        }
        rendered.append({**render_row(homeserver, row), **more_of_row})
        await turn.end_if_long()
    return rendered
