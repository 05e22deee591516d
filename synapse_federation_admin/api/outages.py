# SPDX-License-Identifier: Apache-2.0
"""v2: when a server was failing, and how that ended."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.model import Answer, NextToken, Paged
from synapse_federation_admin.api.schemas.values import model_of, shown
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.storage import outages


class Outage(model_of(outages.Outage)):  # type: ignore[misc]
    """A time for which a destination was failing."""

    duration_ms: int = Field(description="How long it lasted, or has lasted until now.")


class OutagesPage(Answer):
    """A page of a destination's outages."""

    outages: list[Outage] = Field(description="The newest first.")
    recorded_since_ts: int | None = Field(
        description="Since when outages are recorded. What was failing then is "
        "recorded with its real beginning."
    )
    next_token: NextToken = None


@operation(Paged, OutagesPage, errors={404: "Nothing is known of the destination."})
async def list_outages(asked: Asked, query: Paged, destination: str) -> JsonDict:
    """List the outages of a server, the newest first, by page.

    GET /_synapse/admin/v2/federation/destinations/<destination>/outages

    200 OK

        {
            "outages": [
                {
                    "start_ts": 1557332397936,
                    "end_ts": 1557335397936,
                    "duration_ms": 3000000,
                    "up_ms": 0,
                    "ended": "recovered",
                    "kinds": ["connection_refused", "tls_expired"]
                }
            ],
            "recorded_since_ts": 1557000000000,
            "next_token": "xBp0..."
        }
    """
    services, history = asked.services, asked.services.history
    paging = Paging(query, "outages", destination)
    found = await history.outages(destination, paging.after, paging.limit)
    if not found and paging.after is None:
        await require_known(services, destination)
    now_ms = services.homeserver.now_ms()

    def shown_outage(outage: outages.Outage) -> JsonDict:
        end_ts = now_ms if outage.end_ts is None else outage.end_ts
        return {**shown(outage), "duration_ms": max(0, end_ts - outage.start_ts)}

    some, next_token = paging.cut(found, lambda last: last.start_ts)
    return {
        "outages": [shown_outage(outage) for outage in some],
        "recorded_since_ts": await history.recorded_since_ts(),
        **next_token,
    }
