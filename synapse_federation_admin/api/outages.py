# SPDX-License-Identifier: Apache-2.0
"""v2: when a server was failing, and how that ended."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import (
    AdminServlet,
    unknown_destination,
)
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api._page_token import make_token, parse_token
from synapse_federation_admin.api.schemas.outages import (
    Outage,
    OutagesPage,
    OutagesQuery,
)


class OutagesServlet(AdminServlet):
    """List the outages of a server, the newest first, by page.

    GET /_synapse/admin/v2/federation/destinations/<destination>/outages

    200 OK

        {
            "outages": [
                {
                    "start_ts": 1557332397936,
                    "end_ts": 1557335397936,
                    "duration_ms": 3000000,
                    "ended": "recovered",
                    "kinds": ["connection_refused", "tls_expired"]
                }
            ],
            "recorded_since_ts": 1557000000000,
            "next_token": "xBp0..."
        }
    """

    GET = Operation(
        OutagesQuery, OutagesPage, errors={404: "Nothing is known of the destination."}
    )

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        query = self.GET.parse(request)
        limit = query.limit
        listing = ["outages", destination]
        after = parse_token(listing, query.from_)
        history = services.history
        found = await history.outages(
            destination, after[0] if after else None, limit + 1
        )
        if (
            not found
            and after is None
            and await services.destinations.get(destination) is None
            and (await services.backlog.of([destination]))[destination].is_empty
            and not await history.failures([destination])
            and await history.last_success_ts(destination) is None
        ):
            raise unknown_destination()
        now_ms = services.homeserver.now_ms()
        next_token = None
        if len(found) > limit:
            next_token = make_token(listing, [found[limit - 1].start_ts])
        page = OutagesPage(
            outages=[Outage.of(outage, now_ms) for outage in found[:limit]],
            recorded_since_ts=await history.recorded_since_ts(),
            next_token=next_token,
        )
        return HTTPStatus.OK, page.rendered()
