# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.summary import Summary, TotalBacklog
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.destinations.values import IndexState
from synapse_federation_admin.history.store import by_every_kind, if_readable


@operation(Nothing, Summary)
async def summarize(asked: Asked, _: Nothing) -> JsonDict:
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
    services = asked.services
    summary = await services.summary.get()
    known = await if_readable(lambda: services.history.failing_by_kind())
    kinds = None if known is None else by_every_kind(summary.failing, known)
    states = await services.indexes.states()
    # None where nothing is known yet.
    waiting = summary.backlog
    return {
        "as_of_ts": summary.as_of_ts,
        "total": summary.total,
        "status": shown(summary.by_status),
        "failing": shown(summary.failing_by_age),
        "failing_by_kind": kinds and {kind: n for kind, n in kinds.items() if n},
        "outlook": shown(
            await if_readable(lambda: services.recent_attempts.correlation())
        ),
        "backlog": {
            key: getattr(waiting, key, None) for key in TotalBacklog.model_fields
        },
        "unlisted": {
            "total": waiting.unlisted if waiting else None,
            "sample": list(waiting.unlisted_sample) if waiting else [],
        },
        "indexes": {
            "enabled": services.indexes.enabled,
            "ready": all(state is IndexState.READY for state in states.values()),
            "states": shown(states),
            "errors": dict(services.indexes.errors),
        },
    }
