# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from http import HTTPStatus

from synapse_federation_admin.homeserver import JsonDict, SynapseRequest
from synapse_federation_admin.models import BacklogSummary, IndexState, Summary
from synapse_federation_admin.rest._base import AdminServlet
from synapse_federation_admin.rest._parameters import require_known

# The keys of `backlog` beside `as_of_ts`, which are named as in the model.
_TOTALS = (
    "rooms",
    "rooms_never_caught_up",
    "to_device_messages",
    "oldest_to_device_ts",
    "device_list_updates",
)


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

    `failing` is by how long they have been failing. A room counts in `backlog` once for
    each destination that has not got its newest event; `rooms_never_caught_up` are
    those that Synapse will not send by itself. `unlisted` are names for which something
    waits but which Synapse has no row for, so that they are in no list. In `indexes`,
    a state is `ready`, `building` or `missing`.

    `backlog` and `unlisted` are as of `backlog.as_of_ts`. Where it takes long to read
    what waits, this is older than the rest, or null while nothing is known yet: then so
    is all the rest of the two, but for `sample`, which is empty.

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
    counts = summary.counts
    return {
        "as_of_ts": counts.as_of_ts,
        "total": counts.total,
        "status": {status.value: count for status, count in counts.by_status.items()},
        "failing": {age.value: count for age, count in counts.failing_by_age.items()},
        **_render_backlog(summary.backlog),
    }


def _render_backlog(backlog: BacklogSummary | None) -> JsonDict:
    if backlog is None:
        return {
            "backlog": dict.fromkeys(["as_of_ts", *_TOTALS]),
            "unlisted": {"total": None, "sample": []},
        }
    return {
        "backlog": {
            "as_of_ts": backlog.as_of_ts,
            **{name: getattr(backlog.totals, name) for name in _TOTALS},
        },
        "unlisted": {
            "total": backlog.unlisted.total,
            "sample": list(backlog.unlisted.sample),
        },
    }
