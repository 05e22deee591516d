# SPDX-License-Identifier: Apache-2.0
"""What the script of a page asks before it reads the page anew."""

import json
from http import HTTPStatus

from synapse_federation_admin.api.changes import list_changes
from synapse_federation_admin.api.instances import list_instances
from synapse_federation_admin.console.visit import Visit
from synapse_federation_admin.homeserver.pages import respond


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

    `audit` has the server of each entry; `processes` has all of them, with their state.
    The rest is as the API's `changes` tells it. Where that is off, the answer is of
    nothing, and not complete.
    """
    found = await visit.ask_if_on(list_changes, {"since": visit.text("since", "0")})
    processes = await visit.ask_if_on(list_instances)
    answer = {
        "as_of_ts": found.as_of_ts if found else visit.now_ms,
        "is_complete": bool(found and found.is_complete),
        "failed": [each.destination for each in found.failed] if found else [],
        "came_back": [each.destination for each in found.came_back] if found else [],
        "runs": [run.id for run in found.runs] if found else [],
        "audit": [entry.destination for entry in found.audit] if found else [],
        "processes": [
            (each.instance, each.state.value)
            for each in (processes.instances if processes else ())
        ],
    }
    visit.request.setHeader(b"Content-Type", b"application/json")
    respond(visit.request, HTTPStatus.OK, json.dumps(answer).encode())
