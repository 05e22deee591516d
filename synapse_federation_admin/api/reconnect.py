# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect one destination, and be told what came of it."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, actor, unknown_destination
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.api._render import render_v2
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.repair.contact import shown_contact

_DEFAULT_TIMEOUT_MS = 10_000
_MAX_TIMEOUT_MS = 60_000


class ReconnectServlet(AdminServlet):
    """Contact a destination, and if it answers have Synapse send to it again.

    POST /_synapse/admin/v2/federation/destinations/<destination>/reconnect

    Body, all keys optional, any other is an error:

        {
            "timeout_ms": 10000,
            "force": false,
            "reason": "They told us that they are back"
        }

    200 OK

        {
            "outcome": "connected",
            "before": {...},
            "after": {...},
            "contact": {
                "duration_ms": 45,
                "server": {"name": "Synapse", "version": "1.163.2"},
                "error": null
            },
            "told": ["main", "federation_sender1"]
        }

    `outcome`: `connected` (its retry timings are cleared, everybody has been woken),
    `still_failing` (nothing has changed; `contact.error` says why), `pending` (it has
    not answered within `timeout_ms`, from 1 to 60000; the attempt goes on, and the
    audit has its outcome), or `forced` (it does not answer, and with `force` its
    timings are cleared all the same). `before` and `after` are as in the list of
    destinations. `told` are the processes that were told; a text that says why, if
    others could not be.

    Errors: 400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 404 `M_NOT_FOUND` if
    Synapse knows nothing of it, 401, 403, 500 `M_UNKNOWN` if the database fails (its
    timings are then as they were).
    """

    PATH = "/v2/federation/destinations/<destination>/reconnect"

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        asked_ts = services.homeserver.now_ms()
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, ("timeout_ms", "force", "reason"))
        timeout_ms = body.integer(
            "timeout_ms", default=_DEFAULT_TIMEOUT_MS, least=1, most=_MAX_TIMEOUT_MS
        )
        found = await services.reconnect.reconnect(
            destination,
            actor(requester),
            asked_ts=asked_ts,
            timeout_ms=timeout_ms,
            force=body.flag("force"),
            reason=body.reason(),
        )
        if found is None:
            raise unknown_destination()
        now_ms = services.homeserver.now_ms()
        allowed = services.homeserver.is_allowed(destination)

        def render(row: Destination) -> JsonDict:
            return render_v2(row, now_ms, allowed=allowed)

        return HTTPStatus.OK, {
            "outcome": found.outcome.value,
            "before": render(found.before),
            "after": render(found.after),
            "contact": shown_contact(found.contact)
            if found.contact
            else {"duration_ms": now_ms - asked_ts, "server": None, "error": None},
            "told": found.told.error or list(found.told.names),
        }
