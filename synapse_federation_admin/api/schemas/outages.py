# SPDX-License-Identifier: Apache-2.0
"""v2: when a server was failing."""

from pydantic import Field
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import (
    Answer,
    Input,
    Kind,
    NextToken,
    PageFrom,
    PageLimit,
)
from synapse_federation_admin.storage import outages
from synapse_federation_admin.storage.outage_ends import OutageEnd


class OutagesQuery(Input):
    """The query parameters."""

    limit: PageLimit = 100
    from_: PageFrom = None


class Outage(Answer):
    """A time for which a destination was failing."""

    start_ts: int = Field(description="When it began.")
    end_ts: int | None = Field(description="When it ended; null while it lasts.")
    duration_ms: int = Field(description="How long it lasted, or has lasted until now.")
    ended: str | None = Field(
        description="`recovered` by itself, `reset` by an admin, or `forgotten`; null "
        "while it lasts.",
        examples=[end.value for end in OutageEnd],
    )
    kinds: list[Kind] = Field(
        description="Every kind of failure seen in it; none if it is not known why it "
        "failed."
    )

    @classmethod
    def of(cls, outage: outages.Outage, now_ms: int) -> Self:
        """Show a value."""
        end_ts = now_ms if outage.end_ts is None else outage.end_ts
        return cls(
            start_ts=outage.start_ts,
            end_ts=outage.end_ts,
            duration_ms=max(0, end_ts - outage.start_ts),
            ended=outage.ended,
            kinds=list(outage.kinds),
        )


class OutagesPage(Answer):
    """A page of a destination's outages."""

    outages: list[Outage] = Field(description="The newest first.")
    recorded_since_ts: int | None = Field(
        description="Since when outages are recorded. What was failing then is "
        "recorded with its real beginning."
    )
    next_token: NextToken = None
