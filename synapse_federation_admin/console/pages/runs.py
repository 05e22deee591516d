# SPDX-License-Identifier: Apache-2.0
"""Runs: what is done to many servers, one after the other, and how far it is."""

from synapse_federation_admin.console.render import segment
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.wording import outcomes

# How many rows a page has.
_ROWS = 20

# A run of which nothing was written for so long may have lost its process.
_SILENT_MS = 150_000


async def list_runs(visit: Visit) -> Answered:
    """List the runs, the newest first.

    GET /_synapse/admin/federation/runs?from=
    """
    start = visit.text("from")
    page = await visit.ask("list_runs", {"limit": _ROWS, "from": start})
    return Page(
        "runs.html",
        {
            "title": "Runs",
            "page": page,
            "is_first": not start,
            "is_live": bool(outcomes.under_way(page["runs"])),
        },
    )


async def show_run(visit: Visit) -> Answered:
    """Show a run: how far it is, what came of each, what is wrong, when it ends.

    GET /_synapse/admin/federation/runs/<run_id>
    """
    run = await visit.ask("get_run", run_id=visit.parameters["run_id"])
    is_live = run["ended_ts"] is None
    is_silent = visit.now_ms - run["updated_ts"] > _SILENT_MS
    return Page(
        "run.html",
        {
            "title": f"Run: {outcomes.action(run['action'])}",
            "run": run,
            "path": f"/runs/{segment(run['id'])}",
            "is_live": is_live,
            "is_silent": is_silent and is_live,
        },
    )


async def cancel_run(visit: Visit) -> Answered:
    """Cancel a run, and show how it has ended.

    POST /_synapse/admin/federation/runs/<run_id>/cancel
    """
    run_id = visit.parameters["run_id"]
    await visit.ask("cancel_run", run_id=run_id)
    return See(f"/runs/{segment(run_id)}")
