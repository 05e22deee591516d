# SPDX-License-Identifier: Apache-2.0
"""v2: who did what through this module."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import (
    MAX_INT,
    Answer,
    Input,
    Lax,
    NextToken,
    PageFrom,
    PageLimit,
    Text,
)
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage import audit_entry
from synapse_federation_admin.storage.audit_entry import AuditAction, AuditFilter

Time = Annotated[int, Field(ge=0, le=MAX_INT)]


class AuditQuery(Input):
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
    limit: PageLimit = 100
    from_: PageFrom = None

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


class AuditEntry(Answer):
    """One thing that was done through this module."""

    entry_id: str = Field(description="The entry's ID.")
    ts: int = Field(description="When it began, in ms since the epoch.")
    ended_ts: int | None = Field(description="When it ended; null if it has not.")
    action: str = Field(
        description="What was done.",
        examples=[action.value for action in AuditAction],
    )
    destination: str | None = Field(
        description="The destination; null if it was done to many."
    )
    user_id: str = Field(description="The user whose access token it was.")
    puppeted_by: str | None = Field(
        description="Who acts as that user with a token from Synapse's admin API; null "
        "if nobody does."
    )
    instance: str = Field(description="The process; the main process is `main`.")
    reason: str | None = Field(description="Why, as the admin said; null if not said.")
    outcome: str = Field(
        description="What came of it; `pending` while it goes on, `interrupted` if its "
        "process ended before, `failed` if the database failed at its end."
    )
    run_id: str | None = Field(
        description="The run that it belongs to, or is; null if there is none."
    )
    details: dict[str, Any] = Field(
        description="What else there is to know, depending on the action."
    )

    @classmethod
    def of(cls, entry: audit_entry.AuditEntry) -> Self:
        """Show a value."""
        return cls(
            entry_id=entry.entry_id,
            ts=entry.ts,
            ended_ts=entry.ended_ts,
            action=entry.action,
            destination=entry.destination,
            user_id=entry.actor.user_id,
            puppeted_by=entry.actor.puppeted_by,
            instance=entry.instance,
            reason=entry.reason,
            outcome=entry.outcome,
            run_id=entry.run_id,
            details=dict(entry.details),
        )


class AuditPage(Answer):
    """A page of the audit."""

    entries: list[AuditEntry] = Field(description="The entries of the page.")
    next_token: NextToken = None
