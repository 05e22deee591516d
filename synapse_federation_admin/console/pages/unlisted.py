# SPDX-License-Identifier: Apache-2.0
"""Names for which something waits, and which are in no list."""

from synapse_federation_admin.api.unlisted import list_unlisted
from synapse_federation_admin.console.visit import Answered, Page, Visit

# How many rows a page has.
_ROWS = 50


async def show_unlisted(visit: Visit) -> Answered:
    """List the names, in their order.

    GET /_synapse/admin/federation/unlisted?from=
    """
    start = visit.text("from")
    query = {"limit": _ROWS, **({"from": start} if start else {})}
    page = await visit.ask(list_unlisted, query)
    return Page(
        "unlisted.html",
        {"title": "Names not listed", "page": page, "is_first": not start},
    )
