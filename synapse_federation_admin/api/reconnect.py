# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect one destination, and be told what came of it."""

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import render_v2
from synapse_federation_admin.api.schemas.reconnect import ReconnectBody, Reconnected
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.storage.outcomes import Contact


@operation(
    ReconnectBody,
    Reconnected,
    errors={
        404: "Synapse knows nothing of the destination.",
        500: "The database failed; the retry timings are as they were (`M_UNKNOWN`).",
    },
)
async def reconnect(asked: Asked, body: ReconnectBody, destination: str) -> JsonDict:
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
    services, homeserver = asked.services, asked.services.homeserver
    asked_ts = homeserver.now_ms()
    found = await services.reconnect.reconnect(
        destination,
        asked.actor,
        asked_ts=asked_ts,
        timeout_ms=body.timeout_ms,
        force=body.force,
        reason=body.reason or None,
    )
    if found is None:
        raise unknown_destination()
    now_ms, allowed = homeserver.now_ms(), homeserver.is_allowed(destination)
    return {
        "outcome": found.outcome.value,
        "before": render_v2(found.before, now_ms, allowed=allowed),
        "after": render_v2(found.after, now_ms, allowed=allowed),
        "contact": shown(found.contact or Contact(now_ms - asked_ts)),
        "told": list(found.told.names),
        "not_told": list(found.told.others),
        "not_told_error": found.told.error,
    }
