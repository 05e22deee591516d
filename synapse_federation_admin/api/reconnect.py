# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect one destination, and be told what came of it."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, actor, unknown_destination
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.schemas import reconnect as shown
from synapse_federation_admin.api.schemas.destinations import Destination
from synapse_federation_admin.api.schemas.reconnect import ReconnectBody, Reconnected
from synapse_federation_admin.storage.outcomes import Contact


class ReconnectServlet(AdminServlet):
    """Contact a destination, and if it answers have Synapse send to it again.

    POST /_synapse/admin/v2/federation/destinations/<destination>/reconnect

    Body, all keys optional:

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
            "told": ["main", "federation_sender1"],
            "not_told": [],
            "not_told_error": null
        }
    """

    POST = Operation(
        ReconnectBody,
        Reconnected,
        errors={
            404: "Synapse knows nothing of the destination.",
            500: "The database failed; the retry timings are as they were "
            "(`M_UNKNOWN`).",
        },
    )

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        asked_ts = services.homeserver.now_ms()
        requester = await services.homeserver.require_admin(request)
        body = self.POST.parse(request)
        found = await services.reconnect.reconnect(
            destination,
            actor(requester),
            asked_ts=asked_ts,
            timeout_ms=body.timeout_ms,
            force=body.force,
            reason=body.reason or None,
        )
        if found is None:
            raise unknown_destination()
        now_ms = services.homeserver.now_ms()
        allowed = services.homeserver.is_allowed(destination)

        contact = found.contact or Contact(now_ms - asked_ts)
        answer = Reconnected(
            outcome=found.outcome,
            before=Destination.of(found.before, now_ms, allowed=allowed),
            after=Destination.of(found.after, now_ms, allowed=allowed),
            contact=shown.Contact.of(contact),
            told=list(found.told.names),
            not_told=list(found.told.others),
            not_told_error=found.told.error,
        )
        return HTTPStatus.OK, answer.rendered()
