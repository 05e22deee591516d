# SPDX-License-Identifier: Apache-2.0
"""v2: destinations with their status, found by what matters."""

from collections.abc import Collection
from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    unknown_destination,
)
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api._page_token import PageToken
from synapse_federation_admin.api._render import render_v2
from synapse_federation_admin.api.schemas.destinations import (
    Availability,
    Backlog,
    DestinationDetail,
    DestinationsPage,
    DestinationsQuery,
    Inbound,
    Include,
    RecordedFailure,
)
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.destinations.backlog import Backlog as BacklogValue
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.history.store import if_readable


class DestinationsV2Servlet(AdminServlet):
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

    GET = Operation(DestinationsQuery, DestinationsPage)

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        query = self.GET.parse(request)
        wanted, sort, limit = query.wanted, query.sort, query.limit
        begin = PageToken.parse(query.from_, wanted, sort)

        after = begin.after if begin else None
        destinations = services.reader.of(wanted, sort)
        found = await destinations.read(after, limit + 1)
        rows, has_more = found[:limit], len(found) > limit
        total = begin.total if begin else None
        if query.total and total is None:
            is_whole = begin is None and not has_more
            total = len(rows) if is_whole else await destinations.count()
        answer: JsonDict = {
            "destinations": await render_rows(services, rows, query.include)
        }
        if query.total:
            answer["total"] = total
        if has_more:
            token = PageToken(sort.position_of(rows[-1]), total)
            answer["next_token"] = token.text(wanted, sort)
        return HTTPStatus.OK, answer


class DestinationV2Servlet(AdminServlet):
    """Tell everything that is known of one server.

    GET /_synapse/admin/v2/federation/destinations/<destination>

    200 OK: the object of the list with all that may be included, and

        {
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
            "sender": "federation_sender1",
            "inbound": {"last_transaction_ts": 1557332397936}
        }

    A name without a row is found, too, if to-device messages or device list updates
    wait for it, or requests to it were recorded.
    """

    GET = Operation(
        Nothing, DestinationDetail, errors={404: "Nothing is known of the destination."}
    )

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        self.GET.parse(request)
        row = await services.destinations.get(destination)
        backlog = (await services.backlog.of([destination]))[destination]
        failures = await if_readable(lambda: services.history.failures([destination]))
        found = failures.get(destination, []) if failures else []
        last_success_ts = await if_readable(
            lambda: services.history.last_success_ts(destination)
        )
        if row is None:
            if backlog.is_empty and not found and last_success_ts is None:
                raise unknown_destination()
            row = Destination(destination, None, None, None, None)
        shared = await services.shared_rooms.of(destination)
        last_ts = await services.destinations.last_inbound_ts(destination)
        availability = await if_readable(
            lambda: services.history.availability([destination])
        )
        homeserver = services.homeserver
        detail = DestinationDetail.of(
            row,
            homeserver.now_ms(),
            allowed=homeserver.is_allowed(destination),
            backlog=Backlog.of(backlog),
            last_failure=RecordedFailure.last_of(found),
            availability=(
                Availability.of(availability[destination]) if availability else None
            ),
            failures=[RecordedFailure.of(failure) for failure in found],
            last_success_ts=last_success_ts,
            shared_rooms=shared.rooms,
            local_users=shared.local_users,
            sender=homeserver.sender_of(destination),
            inbound=Inbound(last_transaction_ts=last_ts),
        )
        return HTTPStatus.OK, detail.rendered()


async def render_rows(
    services: Services, rows: list[Destination], includes: Collection[Include]
) -> list[JsonDict]:
    """Render the rows of a page, each a `ListedDestination`.

    Not by way of its model: that takes twice the time of all the rest.
    """
    homeserver = services.homeserver
    names = [row.destination for row in rows]
    backlogs = await backlogs_of(services, rows, Include.BACKLOG in includes)
    failures, availability = {}, {}
    if Include.FAILURE in includes:
        failures = await services.history.failures(names)
    if Include.AVAILABILITY in includes:
        availability = await services.history.availability(names)
    now_ms = homeserver.now_ms()
    rendered = []
    for row in rows:
        name = row.destination
        shown = render_v2(row, now_ms, allowed=homeserver.is_allowed(name))
        if Include.BACKLOG in includes:
            shown["backlog"] = Backlog.of(backlogs[name]).rendered()
        if Include.FAILURE in includes:
            last = RecordedFailure.last_of(failures.get(name, ()))
            shown["last_failure"] = last and last.rendered()
        if Include.AVAILABILITY in includes:
            shown["availability"] = Availability.of(availability[name]).rendered()
        rendered.append(shown)
    return rendered


async def backlogs_of(
    services: Services, rows: list[Destination], wanted: bool
) -> dict[str, BacklogValue]:
    """Return what waits for each row's destination, if that is wanted."""
    if not wanted:
        return {}
    return await services.backlog.of([row.destination for row in rows])
