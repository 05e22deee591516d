# SPDX-License-Identifier: Apache-2.0
"""v2: when a server was failing."""

from pydantic import Field

from synapse_federation_admin.api.schemas.model import Answer, NextToken
from synapse_federation_admin.api.schemas.values import model_of
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
