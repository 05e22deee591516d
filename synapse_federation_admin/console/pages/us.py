# SPDX-License-Identifier: Apache-2.0
"""Us: whether it is this homeserver, its senders and processes, what works here."""

from synapse_federation_admin.console.pages.overview import WHERE_WHY
from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.wording.verdict import verdict_of


async def show_us(visit: Visit) -> Answered:
    """Show what is known of this homeserver itself.

    GET /_synapse/admin/federation/us
    """
    summary = await visit.ask_if_on("summarize")
    instances = await visit.ask_if_on("list_instances")
    status = await visit.ask("get_status")
    return Page(
        "us.html",
        {
            "title": "Us",
            "outlook": summary and summary["outlook"],
            "verdict": summary and verdict_of(summary, WHERE_WHY),
            "senders": (summary and summary["senders"]) or [],
            "not_yet_queued": summary and summary["not_yet_queued"],
            "indexes": summary and summary["indexes"],
            "instances": instances and instances["instances"],
            "status": status,
        },
    )
