# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from collections.abc import Sequence
from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api._page_token import make_token, parse_token
from synapse_federation_admin.api.schemas.audit import (
    AuditEntry,
    AuditPage,
    AuditQuery,
)
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage.audit_entry import AuditFilter


class AuditServlet(AdminServlet):
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

    GET = Operation(AuditQuery, AuditPage)

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        await self._services.homeserver.require_admin(request)
        query = self.GET.parse(request)
        wanted, direction, limit = query.wanted, query.dir, query.limit
        listing = _listing(wanted, direction)
        after = parse_token(listing, query.from_)
        found = await self._services.audit.read(
            wanted,
            (after[0], after[1]) if after else None,
            limit + 1,
            oldest_first=direction is Direction.FORWARDS,
        )
        next_token = None
        if len(found) > limit:
            last = found[limit - 1]
            next_token = make_token(listing, [last.ts, last.entry_id])
        page = AuditPage(
            entries=[AuditEntry.of(entry) for entry in found[:limit]],
            next_token=next_token,
        )
        return HTTPStatus.OK, page.rendered()


def _listing(wanted: AuditFilter, direction: Direction) -> Sequence[object]:
    return [
        "audit",
        wanted.destination,
        wanted.user_id,
        sorted(action.value for action in wanted.actions),
        wanted.outcome,
        wanted.run_id,
        wanted.since_ts,
        wanted.until_ts,
        direction.value,
    ]
