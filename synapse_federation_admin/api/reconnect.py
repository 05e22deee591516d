# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect one destination, and be told what came of it."""

from typing import Annotated

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import render_row
from synapse_federation_admin.api.schemas.destinations import Destination
from synapse_federation_admin.api.schemas.model import Answer, Input, Reason
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.destinations.senders import Processes, Sender
from synapse_federation_admin.history.store import if_readable
from synapse_federation_admin.storage.values import (
    Contact,
    ReconnectOutcome,
    Refused,
    Told,
)


class ReconnectBody(Input):
    """How to reconnect a destination."""

    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        default=10_000, description="How long to wait for the outcome."
    )
    force: bool = Field(
        default=False, description="Clear and wake even if it does not answer."
    )
    reason: Reason = ""


class Telling(Answer):
    """Which processes were told of something."""

    told: list[str] = Field(
        description="The processes that were told, and run; none where nobody is to "
        "send."
    )
    not_told: list[str] = Field(
        description="Those that could not be told: they go on with what they have in "
        "memory, until they look anew."
    )
    not_told_error: str | None = Field(
        description="Why, for people; null if all were told."
    )
    not_running: list[str] = Field(
        description="Those of which it is known that they do not run: they begin with "
        "nothing in memory."
    )


class Reconnected(Telling):
    """What came of a reconnect."""

    outcome: ReconnectOutcome = Field(
        description="`connected`: it takes transactions, and the first of what "
        "was queued, too; `not_sent`: it takes an empty one, and nothing is sent to "
        "it, as the `sender` does not run, or is ahead; `refused`: it takes an empty "
        "one, but not what waits; "
        "`still_failing`: it takes none, and nothing has changed; `pending`: it is "
        "not known yet, the attempt goes on, and the audit has its outcome then; "
        "`forced`: it takes none, and is cleared even so; "
        "`internal`: this module has failed, and nothing has changed."
    )
    before: Destination = Field(description="The destination before.")
    after: Destination = Field(description="The destination after.")
    contact: Shown[Contact] = Field(description="What came of the contact.")
    refused: Shown[Refused] | None = Field(
        description="The transaction that it has refused; null if it has not, or if "
        "the process that sends has not told."
    )
    sender: Shown[Sender] | None = Field(
        description="The process that sends to it: while it does not run, nothing "
        "leaves, whatever the server takes; null where the module's own tables cannot "
        "be read."
    )


@operation(
    ReconnectBody,
    Reconnected,
    errors={
        404: "Nothing is known of the destination.",
        500: "The database failed; the retry timings are as they were (`M_UNKNOWN`).",
    },
)
async def reconnect(asked: Asked, body: ReconnectBody, destination: str) -> JsonDict:
    """Contact a destination, and if it answers see through what Synapse sends to it.

    POST /_synapse/admin/v2/federation/destinations/<destination>/reconnect

    Body, all keys optional:

        {
            "timeout_ms": 10000,
            "force": false,
            "reason": "They told us that they are back"
        }

    200 OK

        {
            "outcome": "connected",
            "before": {...},
            "after": {...},
            "contact": {
                "duration_ms": 45,
                "server": {"name": "Synapse", "version": "1.163.2"},
                "error": null
            },
            "refused": null,
            "sender": {
                "instance": "federation_sender1",
                "state": "running",
                "seen_ts": 1557332397936,
                "position": 4711,
                "behind_events": 0,
                "behind_ms": 0,
                "ahead_events": 0
            },
            "told": ["main", "federation_sender1"],
            "not_told": [],
            "not_told_error": null,
            "not_running": []
        }
    """
    services, homeserver = asked.services, asked.services.homeserver
    asked_ts = homeserver.now_ms()
    await require_known(services, destination)
    found = await services.reconnect.reconnect(
        destination,
        asked.actor,
        asked_ts=asked_ts,
        timeout_ms=body.timeout_ms,
        force=body.force,
        reason=body.reason or None,
    )
    # What it has met is told to whoever asks next.
    await if_readable(lambda: services.recorder.write())
    processes = await if_readable(lambda: services.senders.read())
    sender = processes and processes.sender(homeserver.sender_of(destination))
    told = told_to(found.told, processes)
    if processes is not None and not processes.is_sent:
        told["told"] = []
    return {
        "outcome": found.outcome.value,
        "before": render_row(homeserver, found.before),
        "after": render_row(homeserver, found.after),
        "contact": shown(found.contact or Contact(homeserver.now_ms() - asked_ts)),
        "refused": shown(found.refused) if found.refused else None,
        "sender": shown(sender),
        **told,
    }


def told_to(told: Told, processes: Processes | None) -> JsonDict:
    """Return who was told, as answers have it: of each process whether it runs."""
    down = processes.not_running if processes else frozenset()
    return {
        "told": [name for name in told.names if name not in down],
        "not_told": [name for name in told.others if name not in down],
        "not_told_error": told.error,
        "not_running": [n for n in (*told.names, *told.others) if n in down],
    }
