# SPDX-License-Identifier: Apache-2.0
"""v2: one destination is reconnected."""

from typing import Annotated

from pydantic import Field

from synapse_federation_admin.api.schemas.destinations import Destination
from synapse_federation_admin.api.schemas.model import Answer, Input, Reason
from synapse_federation_admin.api.schemas.values import model_of
from synapse_federation_admin.storage.outcomes import Contact, ReconnectOutcome


class ReconnectBody(Input):
    """How to reconnect a destination."""

    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        default=10_000, description="How long to wait for the outcome."
    )
    force: bool = Field(
        default=False, description="Clear and wake even if it does not answer."
    )
    reason: Reason = ""


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
    contact: model_of(Contact) = Field(  # type: ignore[valid-type]
        description="What came of the contact."
    )
    told: list[str] = Field(description="The processes that were told to send.")
    not_told: list[str] = Field(
        description="Those that could not be told: they find out when they next look."
    )
    not_told_error: str | None = Field(
        description="Why, for people; null if all were told."
    )
