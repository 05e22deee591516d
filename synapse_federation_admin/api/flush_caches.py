# SPDX-License-Identifier: Apache-2.0
"""v2: have processes forget what they keep in memory of a server."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.reconnect import Telling, told_to
from synapse_federation_admin.api.schemas.model import Input, Reason
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.history.store import if_readable


class FlushBody(Input):
    """Why the caches are flushed."""

    reason: Reason = ""


class FlushedCaches(Telling):
    """What came of it."""

    destination: str = Field(description="The server name.")


@operation(
    FlushBody,
    FlushedCaches,
    errors={404: "Nothing is known of the destination."},
)
async def flush_caches(asked: Asked, body: FlushBody, destination: str) -> JsonDict:
    """Have every process forget what it keeps in memory of a server.

    POST /_synapse/admin/v2/federation/destinations/<destination>/flush_caches

    Body, optional:

        {"reason": "They have moved"}

    200 OK

        {
            "destination": "matrix.org",
            "told": ["main", "federation_sender1"],
            "not_told": [],
            "not_told_error": null,
            "not_running": []
        }

    That is what its well-known file says, or that there is none, which Synapse keeps
    for up to two days; its SRV records; and what Synapse's caches say of its backoff,
    which is read anew from the table. Nothing is deleted from tables: signing keys
    stay, and one that is not known is asked for anyway. Nothing is contacted, and no
    retry timing is changed: see `reconnect`.
    """
    services = asked.services
    await require_known(services, destination)
    told = await services.flush_caches.flush(
        destination, asked.actor, body.reason or None
    )
    return {
        "destination": destination,
        **told_to(told, await if_readable(lambda: services.senders.read())),
    }
