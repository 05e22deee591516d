# SPDX-License-Identifier: Apache-2.0
"""The keys that the console knows."""

from synapse_federation_admin.console.visit import Answered, Page, Visit


async def show_keys(_: Visit) -> Answered:
    """List the keys."""
    return Page("keys.html", {"title": "Keys"})
