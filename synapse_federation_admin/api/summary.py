# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.summary import Indexes, Summary
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.history.store import by_every_kind, if_readable


class SummaryServlet(AdminServlet):
    """Count destinations by what matters, and all that waits for them.

    GET /_synapse/admin/v2/federation/summary

    200 OK

        {
            "as_of_ts": 1557332397936,
            "total": 1000000,
            "status": {
                "online": 800000,
                "unknown": 140000,
                "backing_off": 40000,
                "retry_due": 20000
            },
            "failing": {"<1h": 100, "<1d": 900, "<7d": 9000, ">=7d": 50000},
            "failing_by_kind": {"dns_not_found": 40000, "unknown": 20000},
            "outlook": {
                "verdict": "us",
                "explanation": "92 % of servers tried in the last 15 minutes ...",
                "last_hour": {
                    "tried": 500,
                    "failing": 300,
                    "began": 280,
                    "share": 0.6,
                    "shared": [
                        {
                            "type": "kind",
                            "value": "dns_failed",
                            "destinations": 290,
                            "began": 280
                        }
                    ]
                },
                "last_15_minutes": {...}
            },
            "backlog": {
                "as_of_ts": 1557332397936,
                "rooms": 1200,
                "rooms_never_caught_up": 30,
                "to_device_messages": 5000,
                "oldest_to_device_ts": 1557332397936,
                "device_list_updates": 7000
            },
            "unlisted": {"total": 1, "sample": ["new.example"]},
            "indexes": {
                "enabled": true,
                "ready": false,
                "states": {"federation_admin_failing": "building"},
                "errors": {}
            }
        }

    `backlog` and `unlisted` are as of `backlog.as_of_ts`. Where it takes long to read
    what waits, this is older than the rest, or null while nothing is known yet: then so
    is all the rest of the two, but for `sample`, which is empty.
    """

    GET = Operation(Nothing, Summary)

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        self.GET.parse(request)
        summary = await services.summary.get()
        known = await if_readable(lambda: services.history.failing_by_kind())
        kinds = None
        if known is not None:
            every = by_every_kind(summary.failing, known)
            kinds = {kind: count for kind, count in every.items() if count}
        outlook = await if_readable(lambda: services.recent_attempts.correlation())
        states = await services.indexes.states()
        indexes = Indexes(
            enabled=services.indexes.enabled,
            ready=all(state is IndexState.READY for state in states.values()),
            states=states,
            errors=dict(services.indexes.errors),
        )
        return HTTPStatus.OK, Summary.of(summary, kinds, outlook, indexes).rendered()
