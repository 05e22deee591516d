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
from synapse_federation_admin.api._page_token import PageToken, PageTokens
from synapse_federation_admin.api._parameters import (
    FILTER_PARAMETERS,
    SORT_PARAMETERS,
    Include,
    parse_filter,
    parse_flag,
    parse_includes,
    parse_limit,
    parse_sort,
    require_known,
)
from synapse_federation_admin.api._render import (
    render_availability,
    render_backlog,
    render_failure,
    render_last_failure,
    render_v2,
)
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.history.store import if_readable

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000


class DestinationsV2Servlet(AdminServlet):
    """List destinations, with their status, by page.

    GET /_synapse/admin/v2/federation/destinations?status=retry_due&failing_for=7d

    Query parameters, all optional; any other is an error:
        status: `online`, `unknown`, `backing_off` or `retry_due`; may be repeated
        destination: a part of the name, or, with `*` or `?`, a pattern for all of it
        failing_for: keep what has been failing for at least so long: `90s`, `7d`
        failure: keep what is failing, and with this kind: `tls_expired`; `unknown` is
            for what has not failed since the module was installed; may be repeated
        order_by: as v1, or `next_retry_ts` (`destination`)
        dir: `f` or `b` (`f`)
        limit: the most rows to return, from 1 to 1000 (100)
        from: the `next_token` of the page before, with the same filters and order
        include: `backlog` adds what waits for each destination, `failure` the last
            failure of a real request, `availability` how much of the last 14 days it
            was not failing; may be repeated
        total: `true` adds the number of all rows that the filters keep

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

    `next_token` is absent on the last page.

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 401, 403.
    """

    PATH = "/v2/federation/destinations"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._tokens = PageTokens(services.homeserver.secret_for("page token"))

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(
            request,
            (*FILTER_PARAMETERS, *SORT_PARAMETERS, "limit", "from", "include", "total"),
        )
        wanted, sort = parse_filter(request), parse_sort(request)
        limit = parse_limit(request, default=_DEFAULT_LIMIT, highest=_MAX_LIMIT)
        includes = parse_includes(request)
        includes_total = parse_flag(request, "total")
        begin = self._tokens.parse_from(request, wanted, sort)

        after = begin.after if begin else None
        found = await services.reader.read(wanted, sort, after, limit + 1)
        rows, has_more = found[:limit], len(found) > limit
        total = begin.total if begin else None
        if includes_total and total is None:
            is_whole = begin is None and not has_more
            total = len(rows) if is_whole else await services.reader.count(wanted)
        answer: JsonDict = {"destinations": await render_rows(services, rows, includes)}
        if includes_total:
            answer["total"] = total
        if has_more:
            token = PageToken(sort.position_of(rows[-1]), total)
            answer["next_token"] = self._tokens.make(wanted, sort, token)
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

    `failures` are those of real requests, one for each kind, the last first; it is
    `last_failure`. `last_success_ts` is when it last answered well, to within five
    minutes; null if it has not since the module was installed.

    `shared_rooms` are rooms in which users of that server and of ours are now, and
    `local_users` ours in them; `sender` is the instance that sends to it, null if none
    does; `last_transaction_ts` is when it last reached us, null if it has not within
    the last day, which is what Synapse remembers.

    A name without a row is found, too, if to-device messages or device list updates
    wait for it, or requests to it were recorded.

    Errors: 404 `M_NOT_FOUND` if nothing is known of it, 400 `M_INVALID_PARAM` for
    any query parameter, 401, 403.
    """

    PATH = "/v2/federation/destinations/<destination>"

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ())
        row = await services.destinations.get(destination)
        backlog = (await services.backlog.of([destination]))[destination]
        history = services.history
        failures = await if_readable(history.failures([destination]), {})
        found = failures.get(destination, [])
        last_success_ts = await if_readable(history.last_success_ts(destination), None)
        if row is None:
            if backlog.is_empty and not found and last_success_ts is None:
                raise unknown_destination()
            row = Destination(destination, None, None, None, None)
        shared = await services.shared_rooms.of(destination)
        last_ts = await services.destinations.last_inbound_ts(destination)
        availability = await if_readable(history.availability([destination]), {})
        homeserver = services.homeserver
        allowed = homeserver.is_allowed(destination)
        return HTTPStatus.OK, {
            **render_v2(row, homeserver.now_ms(), allowed=allowed),
            "backlog": render_backlog(backlog),
            "last_failure": render_last_failure(found),
            "availability": (
                render_availability(availability[destination]) if availability else None
            ),
            "failures": [render_failure(failure) for failure in found],
            "last_success_ts": last_success_ts,
            "shared_rooms": shared.rooms,
            "local_users": shared.local_users,
            "sender": homeserver.sender_of(destination),
            "inbound": {"last_transaction_ts": last_ts},
        }


async def render_rows(
    services: Services, rows: list[Destination], includes: Collection[Include]
) -> list[JsonDict]:
    """Render the rows of a page."""
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
            shown["backlog"] = render_backlog(backlogs[name])
        if Include.FAILURE in includes:
            shown["last_failure"] = render_last_failure(failures.get(name, ()))
        if Include.AVAILABILITY in includes:
            shown["availability"] = render_availability(availability[name])
        rendered.append(shown)
    return rendered


async def backlogs_of(
    services: Services, rows: list[Destination], wanted: bool
) -> dict[str, Backlog]:
    """Return what waits for each row's destination, if that is wanted."""
    if not wanted:
        return {}
    return await services.backlog.of([row.destination for row in rows])
