# SPDX-License-Identifier: Apache-2.0
"""v2: one destination is reconnected."""

from typing import Annotated

from pydantic import Field
from typing_extensions import Self

from synapse_federation_admin.api.schemas.destinations import Destination
from synapse_federation_admin.api.schemas.failure import Failure
from synapse_federation_admin.api.schemas.model import Answer, Input, Reason
from synapse_federation_admin.storage import outcomes
from synapse_federation_admin.storage.outcomes import ReconnectOutcome


class ReconnectBody(Input):
    """How to reconnect a destination."""

    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        default=10_000, description="How long to wait for the outcome."
    )
    force: bool = Field(
        default=False, description="Clear and wake even if it does not answer."
    )
    reason: Reason = ""


class Server(Answer):
    """What a server says of itself."""

    name: str | None = Field(description="Its software; null if it does not say.")
    version: str | None = Field(description="Its version; null if it does not say.")


class Contact(Answer):
    """What came of one request to a destination."""

    duration_ms: int = Field(description="How long it took.")
    server: Server | None = Field(
        description="What the server says of itself; null if it did not answer well."
    )
    error: Failure | None = Field(description="Why it failed; null if it did not.")

    @classmethod
    def of(cls, contact: outcomes.Contact) -> Self:
        """Show a value."""
        failure = contact.failure
        return cls(
            duration_ms=contact.duration_ms,
            server=None
            if failure
            else Server(name=contact.server_name, version=contact.server_version),
            error=Failure.of(failure) if failure else None,
        )


class Reconnected(Answer):
    """What came of a reconnect."""

    outcome: ReconnectOutcome = Field(
        description="`connected`: it has answered, and is not failing any more; "
        "`still_failing`: it has not, and nothing has changed; `pending`: it has not "
        "answered within `timeout_ms`, the attempt goes on, and the audit has its "
        "outcome then; `forced`: it has not answered, and is cleared even so; "
        "`internal`: this module has failed, and nothing has changed."
    )
    before: Destination = Field(description="The destination before.")
    after: Destination = Field(description="The destination after.")
    contact: Contact = Field(description="What came of the contact.")
    told: list[str] = Field(description="The processes that were told to send.")
    not_told: list[str] = Field(
        description="Those that could not be told: they find out when they next look."
    )
    not_told_error: str | None = Field(
        description="Why, for people; null if all were told."
    )
