# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from typing import Annotated

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.model import (
    Answer,
    Lax,
    NextToken,
    Paged,
    Text,
    Time,
)
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.storage.values import AuditAction, AuditEntry, AuditFilter


class AuditQuery(Paged):
    """Which entries."""

    destination: Text | None = Field(default=None, description="The exact name.")
    user: Text | None = Field(
        default=None,
        description="The user who did it, or the admin who acted as that user.",
    )
    action: list[Annotated[AuditAction, Lax]] = Field(
        default=[], description="Keep what has one of these actions."
    )
    outcome: Text | None = Field(default=None, description="The outcome.")
    run_id: Text | None = Field(default=None, description="What belongs to a run.")
    since_ts: Time | None = Field(
        default=None, description="Keep what began then or later."
    )
    until_ts: Time | None = Field(default=None, description="Keep what began before.")

    @property
    def wanted(self) -> AuditFilter:
        """The filter as a value."""
        return AuditFilter(
            destination=self.destination,
            user_id=self.user,
            actions=frozenset(self.action),
            outcome=self.outcome,
            run_id=self.run_id,
            since_ts=self.since_ts,
            until_ts=self.until_ts,
        )


class AuditPage(Answer):
    """A page of the audit."""

    entries: list[Shown[AuditEntry]] = Field(description="The entries of the page.")
    next_token: NextToken = None


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
    audit = asked.services.audit
    found = await audit.read(query.wanted, paging.after, paging.limit)
    entries, next_token = paging.cut(found, lambda last: [last.ts, last.entry_id])
    return {"entries": shown(entries), **next_token}
