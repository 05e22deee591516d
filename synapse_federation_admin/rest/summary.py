# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from http import HTTPStatus

from synapse_federation_admin.homeserver import JsonDict, SynapseRequest
from synapse_federation_admin.models import IndexState, Summary
from synapse_federation_admin.rest._base import AdminServlet
from synapse_federation_admin.rest._parameters import require_known


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
            "backlog": {
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

    `failing` is by how long they have been failing. A room counts in `backlog` once for
    each destination that has not got its newest event; `rooms_never_caught_up` are
    those that Synapse will not send by itself. `unlisted` are names for which something
    waits but which Synapse has no row for, so that they are in no list. In `indexes`,
    a state is `ready`, `building` or `missing`.

    Errors: 400 `M_INVALID_PARAM` for any query parameter, 401, 403.
    """

    PATH = "/v2/federation/summary"

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        require_known(request, ())
        summary = await self._services.summary.get()
        indexes = self._services.indexes
        states = await indexes.states()
        return HTTPStatus.OK, {
            **_render(summary),
            "indexes": {
                "enabled": indexes.enabled,
                "ready": all(state is IndexState.READY for state in states.values()),
                "states": {name: state.value for name, state in states.items()},
                "errors": dict(indexes.errors),
            },
        }


def _render(summary: Summary) -> JsonDict:
    backlog = summary.backlog
    return {
        "as_of_ts": summary.as_of_ts,
        "total": summary.total,
        "status": {status.value: count for status, count in summary.by_status.items()},
        "failing": {age.value: count for age, count in summary.failing_by_age.items()},
        "backlog": {
            "rooms": backlog.rooms,
            "rooms_never_caught_up": backlog.rooms_never_caught_up,
            "to_device_messages": backlog.to_device_messages,
            "oldest_to_device_ts": backlog.oldest_to_device_ts,
            "device_list_updates": backlog.device_list_updates,
        },
        "unlisted": {
            "total": summary.unlisted.total,
            "sample": list(summary.unlisted.sample),
        },
    }
