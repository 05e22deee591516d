# SPDX-License-Identifier: Apache-2.0
"""The overview: is it us, who fails, who needs somebody."""

from typing import Any

from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.storage.run_values import RunStatus
from synapse_federation_admin.wording import causes
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

_UNDER_WAY = {
    RunStatus.SCHEDULED.value,
    RunStatus.PREPARING.value,
    RunStatus.RUNNING.value,
}


async def overview(visit: Visit) -> Answered:
    """Show whether it is us, what fails, what waits, and what is being done.

    GET /_synapse/admin/federation/
    """
    summary = await visit.ask("summarize")
    # As the API writes it, and the command line reads it.
    told = summary.model_dump(mode="json")
    failing = failing_of(told)
    runs = await visit.ask_if_on("list_runs", {"limit": _RUNS})
    audit = await visit.ask_if_on("read_audit", {"limit": _ACTIONS})
    needs = None
    if failing:
        needs = await visit.ask_if_on("needs_attention", {"limit": _NEEDY})
    table = told["failing_by_kind_and_age"]
    later = await visit.ask_if_on("list_changes", {"since": str(summary.as_of_ts)})
    pace = None
    if summary.backlog.as_of_ts is None or (needs and needs.as_of_ts is None):
        pace = _SOON_S
    elif (needs and not needs.destinations) or (
        later and (later.came_back or later.audit)
    ):
        pace = _LATER_S
    return Page(
        "overview.html",
        {
            "title": "Overview",
            "summary": summary,
            "failing": failing,
            "how_many": how_many,
            "verdict": verdict_of(told, WHERE_WHY),
            "table": None if table is None else causes.heat_table(table),
            "most_causes": _CAUSES,
            "waits": waits(summary),
            "runs": None
            if runs is None
            else [run for run in runs.runs if run.status in _UNDER_WAY],
            "needs": needs,
            "pace": pace,
            "advice": causes.advice,
            "entries": None if audit is None else audit.entries,
        },
    )


def waits(summary: Any) -> bool:
    """Tell whether anything waits, or may wait."""
    backlog = summary.backlog
    numbers = (
        backlog.rooms,
        backlog.to_device_messages,
        backlog.device_list_updates,
        summary.unlisted.total,
    )
    return any(number is None or number for number in numbers) or bool(
        summary.not_yet_queued
    )
