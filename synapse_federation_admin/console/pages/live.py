# SPDX-License-Identifier: Apache-2.0
"""What the script of a page asks before it reads the page anew."""

import json
from http import HTTPStatus

from synapse_federation_admin.console.visit import Visit
from synapse_federation_admin.history.changes import Changes
from synapse_federation_admin.history.store import if_readable
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.homeserver.responses import respond


async def show_changes(visit: Visit) -> None:
    """Tell in JSON what has changed since the last answer: names only.

    GET /_synapse/admin/federation/changes?since=1557332397936

    200 OK

        {
            "as_of_ts": 1557332402936,
            "is_complete": true,
            "failed": ["a.org"],
            "came_back": ["b.org"],
            "runs": ["..."],
            "audit": ["a.org", null],
            "processes": [["main", "running"]]
        }

    `audit` has the server of each entry; `processes` has all of them, with their state,
    where that can be read. The rest is as the API's `changes` tells it. Where that is
    off, the answer is of nothing, and not complete.
    """
    services = visit.services
    # Without the objects that the API describes: it is asked all the time.
    changes = Changes(visit.now_ms, is_complete=False)
    if services.features.is_on(Feature.AUDIT):
        query = visit.operation("list_changes").take({"since": visit.text("since")})
        changes = await services.changes.since(query.since)
    processes = await if_readable(lambda: services.senders.lately.get())
    answer = {
        "as_of_ts": changes.as_of_ts,
        "is_complete": changes.is_complete,
        "failed": [each.destination for each in changes.failed],
        "came_back": [each.destination for each in changes.came_back],
        "runs": [run.run_id for run in changes.runs],
        "audit": [entry.destination for entry in changes.audit],
        "processes": [
            (each.name, each.state.value)
            for each in (processes.instances.values() if processes else ())
        ],
    }
    visit.request.setHeader(b"Content-Type", b"application/json")
    respond(visit.request, HTTPStatus.OK, json.dumps(answer).encode())
