# SPDX-License-Identifier: Apache-2.0
"""v2: destinations with their status, found by what matters."""

from collections.abc import Collection, Mapping

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked, Services, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api._render import render_row, render_v2
from synapse_federation_admin.api.schemas.destinations import (
    DestinationDetail,
    DestinationsPage,
    DestinationsQuery,
    Include,
    SortedFilter,
)
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.destinations.queued import not_yet_queued
from synapse_federation_admin.destinations.reader import DestinationList
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.values import Destination, Position
from synapse_federation_admin.destinations.waiting import WaitingList
from synapse_federation_admin.history.store import Availability, if_readable
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.storage.records import Recorded


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
    services, paging = asked.services, Paging(query)
    destinations = await destinations_of(services, query)
    after, total = None, None
    if paging.after is not None:
        value, name, total = paging.after
        after = Position(value, name)
    found = await destinations.read(after, paging.limit)
    if query.total and total is None:
        is_whole = after is None and len(found) < paging.limit
        total = len(found) if is_whole else await destinations.count()

    def says(last: Destination) -> list[object]:
        position = destinations.position_of(last)
        return [position.value, position.destination, total]

    rows, next_token = paging.cut(found, says)
    shown_rows = await render_rows(services, rows, query.include)
    answer: JsonDict = {"destinations": shown_rows}
    if query.total:
        answer["total"] = total
    if isinstance(destinations, WaitingList):
        waiting = destinations.found
        answer["as_of_ts"] = waiting and waiting.as_of_ts
        answer["is_complete"] = bool(waiting and waiting.has_all_waiting)
    elif Include.LOCAL_USERS in query.include:
        affected = await services.attention.found.get()
        answer["as_of_ts"] = affected and affected.as_of_ts
    return {**answer, **next_token}


async def destinations_of(
    services: Services, query: SortedFilter
) -> DestinationList | WaitingList:
    """Return the list that a query is for; no row is read yet."""
    destinations = services.reader.of(query.wanted, query.sort)
    if not query.has_backlog:
        return destinations
    services.features.require(Feature.SHARED_ROOMS, Feature.BACKLOG)
    return WaitingList(destinations, await services.attention.found.get())


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
    wait for it, if requests to it were recorded, or if it shares rooms with us. What
    belongs to a feature that is off is null.
    """
    services, is_on = asked.services, asked.services.features.is_on
    row = await require_known(services, destination)
    backlog = unsendable = shared = None
    if is_on(Feature.BACKLOG):
        backlog = (await services.backlog.of([destination]))[destination]
        unsendable = 0
        if backlog.rooms:
            unsendable = await services.backlog.unsendable(destination)
    recorded = (
        await if_readable(lambda: services.history.recorded(destination)) or Recorded()
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
        "last_failure": shown(recorded.failure),
        "availability": shown(availability[destination]) if availability else None,
        "failures": shown(recorded.failures),
        "last_success_ts": recorded.success_ts,
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
    recorded = await if_readable(lambda: services.history.recorded(destination))
    is_known = bool(recorded and (recorded.failures or recorded.success_ts))
    if not is_known and services.features.is_on(Feature.BACKLOG):
        is_known = not (await services.backlog.of([destination]))[destination].is_empty
    # This homeserver itself is in all of its rooms.
    is_other = destination != services.homeserver.server_name
    if not is_known and is_other and services.features.is_on(Feature.SHARED_ROOMS):
        is_known = (await services.shared_rooms.of(destination)).rooms > 0
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
    days: Mapping[str, Availability] = {}
    if Include.AVAILABILITY in includes:
        days = await services.history.availability(names)
        more["availability"] = dict(days)
    if Include.FAILURE in includes:
        failures = await services.history.failures(names)
        more["last_failure"] = {name: found[0] for name, found in failures.items()}
        # Where none failed, nothing depends on it.
        failed = [*failures, *(name for name in days if days[name].down_since_ts)]
        more["last_success_ts"] = dict(await services.history.last_successes(failed))
    if Include.LOCAL_USERS in includes:
        services.features.require(Feature.SHARED_ROOMS, Feature.BACKLOG)
        more["local_users"] = dict((await services.attention.local_users(rows))[1])
    now_ms, is_allowed = homeserver.now_ms(), homeserver.is_allowed
    rendered = [
        render_v2(row, now_ms, allowed=is_allowed(row.destination)) for row in rows
    ]
    if more:
        turn = homeserver.turn()
        for name, one in zip(names, rendered, strict=True):
            one.update({key: shown(found.get(name)) for key, found in more.items()})
            await turn.end_if_long()
    return rendered
