# SPDX-License-Identifier: Apache-2.0
"""The overview: is it us, who fails, who needs somebody."""

from synapse_federation_admin.api.summary import summarize
from synapse_federation_admin.console.visit import Answered, Page, Visit


async def overview(visit: Visit) -> Answered:
    """Show how this homeserver federates."""
    summary = await visit.ask(summarize)
    return Page("overview.html", {"title": "Overview", "summary": summary})
