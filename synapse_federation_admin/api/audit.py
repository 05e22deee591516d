# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.audit import AuditPage, AuditQuery
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.destinations.values import Direction


@operation(AuditQuery, AuditPage)
async def read_audit(asked: Asked, query: AuditQuery) -> JsonDict:
    """Read who did what, when, why, and what came of it.

    GET /_synapse/admin/v2/federation/audit?destination=matrix.example.org

    200 OK

        {
            "entries": [
                {
                    "entry_id": "f2a4c3f19a2b77e0",
                    "ts": 1795475024352,
                    "ended_ts": 1795475024397,
                    "action": "reconnect",
                    "destination": "matrix.example.org",
                    "user_id": "@admin:example.com",
                    "puppeted_by": null,
                    "instance": "main",
                    "reason": "They told us that they are back",
                    "outcome": "connected",
                    "run_id": null,
                    "details": {...}
                }
            ],
            "next_token": "xBp0..."
        }
    """
    paging = Paging(query)
    found = await asked.services.audit.read(
        query.wanted,
        paging.after and tuple(paging.after),
        paging.limit,
        oldest_first=query.dir is Direction.FORWARDS,
    )
    entries, next_token = paging.cut(found, lambda last: [last.ts, last.entry_id])
    return {"entries": shown(entries), **next_token}
