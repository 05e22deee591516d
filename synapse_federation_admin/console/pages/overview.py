# SPDX-License-Identifier: Apache-2.0
"""The overview: is it us, who fails, who needs somebody; and all of what is us."""

from synapse.module_api import JsonDict

from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.wording import causes, outcomes
from synapse_federation_admin.wording.verdict import failing_of, how_many, verdict_of

# Where it is told why what requests meet is not recorded.
WHERE_WHY = "the foot of this page says why"

# So many of the last actions are shown; of the last runs, those under way.
_ACTIONS = 10
_RUNS = 5
_NEEDY = 10

# So many causes are seen at once, those of the most servers: else nobody gets to what
# is below them on a phone.
_CAUSES = 8

# After how many seconds what no change tells of is read anew: what is being read now,
# and what may be older than a change, for it is told to all for some seconds.
_SOON_S = 5
_LATER_S = 10


async def overview(visit: Visit) -> Answered:
    """Show whether it is us, what fails, what waits, and what is being done.

    GET /_synapse/admin/federation/
    """
    summary = await visit.ask("summarize")
    failing = failing_of(summary)
    runs = await visit.ask_if_on("list_runs", {"limit": _RUNS})
    audit = await visit.ask_if_on("read_audit", {"limit": _ACTIONS})
    needs = None
    if failing:
        needs = await visit.ask_if_on("needs_attention", {"limit": _NEEDY})
    table = summary["failing_by_kind_and_age"]
    later = await visit.ask_if_on("list_changes", {"since": summary["as_of_ts"]})
    pace = None
    if summary["backlog"]["as_of_ts"] is None or (needs and needs["as_of_ts"] is None):
        pace = _SOON_S
    elif (needs and not needs["destinations"]) or (
        later and (later["came_back"] or later["audit"])
    ):
        pace = _LATER_S
    return Page(
        "overview.html",
        {
            "title": "Overview",
            "summary": summary,
            "failing": failing,
            "how_many": how_many,
            "verdict": verdict_of(summary, WHERE_WHY),
            "table": None if table is None else causes.heat_table(table),
            "most_causes": _CAUSES,
            "waits": waits(summary),
            "runs": runs and outcomes.under_way(runs["runs"]),
            "needs": needs,
            "pace": pace,
            "advice": causes.advice,
            "entries": audit and audit["entries"],
        },
    )


def waits(summary: JsonDict) -> bool:
    """Tell whether anything waits, or may wait."""
    keys = ("rooms", "to_device_messages", "device_list_updates")
    numbers = [*map(summary["backlog"].get, keys), summary["unlisted"]["total"]]
    return any(number is None or number for number in numbers) or bool(
        summary["not_yet_queued"]
    )


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
