# SPDX-License-Identifier: Apache-2.0
"""v2: when a server was failing, and how that ended."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    unknown_destination,
)
from synapse_federation_admin.api._page_token import Seal
from synapse_federation_admin.api._parameters import parse_limit, require_known
from synapse_federation_admin.storage.outages import Outage

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000


class OutagesServlet(AdminServlet):
    """List the outages of a server, the newest first, by page.

    GET /_synapse/admin/v2/federation/destinations/<destination>/outages

    Query parameters, all optional; any other is an error:
        limit: the most outages to return, from 1 to 1000 (100)
        from: the `next_token` of the page before

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

    `ended`: `recovered` by itself, `reset` by an admin, `forgotten`; it and `end_ts`
    are null while the outage lasts, and `duration_ms` is then that until now.
    `next_token` is absent on the last page.

    Errors: 404 `M_NOT_FOUND` if nothing is known of it, 400 `M_INVALID_PARAM` for a bad
    parameter, 401, 403.
    """

    PATH = "/v2/federation/destinations/<destination>/outages"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._seal = Seal(services.homeserver.secret_for("outages token"))

    async def on_GET(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ("limit", "from"))
        limit = parse_limit(request, default=_DEFAULT_LIMIT, highest=_MAX_LIMIT)
        listing = [destination]
        after = self._seal.position(listing, request)
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
        answer: JsonDict = {
            "outages": [_render(outage, now_ms) for outage in found[:limit]],
            "recorded_since_ts": await history.recorded_since_ts(),
        }
        if len(found) > limit:
            answer["next_token"] = self._seal.make(listing, [found[limit - 1].start_ts])
        return HTTPStatus.OK, answer


def _render(outage: Outage, now_ms: int) -> JsonDict:
    end_ts = now_ms if outage.end_ts is None else outage.end_ts
    return {
        "start_ts": outage.start_ts,
        "end_ts": outage.end_ts,
        "duration_ms": max(0, end_ts - outage.start_ts),
        "ended": outage.ended.value if outage.ended else None,
        "kinds": list(outage.kinds),
    }
