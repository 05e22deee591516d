# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from typing import Annotated

from pydantic import Field

from synapse_federation_admin.api.schemas.model import (
    MAX_INT,
    Answer,
    Lax,
    NextToken,
    Paged,
    Text,
)
from synapse_federation_admin.api.schemas.values import model_of
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage.audit_entry import (
    AuditAction,
    AuditEntry,
    AuditFilter,
)

Time = Annotated[int, Field(ge=0, le=MAX_INT)]


class AuditQuery(Paged):
    """Which entries, and in which order."""

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
    dir: Annotated[Direction, Lax] = Field(
        default=Direction.BACKWARDS,
        description="`b`: the newest first; `f`: the oldest first.",
    )

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

    entries: list[model_of(AuditEntry)] = Field(  # type: ignore[valid-type]
        description="The entries of the page."
    )
    next_token: NextToken = None
