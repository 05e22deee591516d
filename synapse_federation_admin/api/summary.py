# SPDX-License-Identifier: Apache-2.0
"""v2: all destinations in a few numbers."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Answer, Kind, Nothing
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.destinations.queued import not_yet_queued
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.summary import FailureAge
from synapse_federation_admin.destinations.values import DestinationStatus, IndexState
from synapse_federation_admin.history.outlook import Correlation, with_senders
from synapse_federation_admin.history.store import by_every_kind, if_readable


class TotalBacklog(Answer):
    """What waits for all destinations; each is null while nothing is known yet."""

    as_of_ts: int | None = Field(description="When `backlog` and `unlisted` were read.")
    rooms: int | None = Field(
        description="Rooms with an event that a destination has not got: each counts "
        "once for each destination."
    )
    oldest_event_ts: int | None = Field(
        description="When the oldest of those rooms' newest events was received: it "
        "waits at least since; null if there is none."
    )
    rooms_never_caught_up: int | None = Field(
        description="Those of which `catch_up` is `impossible`."
    )
    to_device_messages: int | None = Field(description="To-device messages that wait.")
    oldest_to_device_ts: int | None = Field(
        description="When the oldest of them was queued; null if there is none."
    )
    device_list_updates: int | None = Field(
        description="Changes of local users' devices that wait."
    )


class Unlisted(Answer):
    """Names for which something waits, but which Synapse has no row for."""

    total: int | None = Field(description="How many; null while that is not known.")


class Indexes(Answer):
    """The optional indexes on Synapse's table `destinations`."""

    enabled: bool = Field(description="Whether the configuration asks for them.")
    ready: bool = Field(description="Whether all of them are ready.")
    states: dict[str, IndexState] = Field(
        description="Each index: `ready` or `missing`."
    )
    errors: dict[str, str] = Field(
        description="Why this process could not create an index."
    )


class Summary(Answer):
    """All destinations in a few numbers."""

    as_of_ts: int = Field(description="The time of `total`, `status` and `failing`.")
    total: int = Field(description="How many destinations Synapse knows.")
    status: dict[DestinationStatus, int] = Field(
        description="How many have each status."
    )
    failing: dict[FailureAge, int] = Field(
        description="Failing destinations by how long they have been failing, each "
        "counted once."
    )
    failing_by_kind: dict[Kind, int] | None = Field(
        description="Failing destinations by the kind of the last failure of a real "
        "request, those kinds that there are; `unknown` have no recorded cause. "
        "Null where the module's own tables cannot be read."
    )
    failing_by_kind_and_age: dict[Kind, dict[FailureAge, int]] | None = Field(
        description="The same as a table: of each of those kinds, how many have been "
        "failing for how long. Null as `failing_by_kind`."
    )
    outlook: Shown[Correlation] | None = Field(
        description="Whether servers began to fail together. Null where the module's "
        "own tables cannot be read."
    )
    senders: list[Shown[Sender]] | None = Field(
        description="The processes that send, one of the state `nobody` if none does. "
        "Null where the module's own tables cannot be read."
    )
    not_yet_queued: int | None = Field(
        description="Our events to which one of `senders` at least has not come, of "
        "the next 10,000 events; null as `senders`."
    )
    backlog: TotalBacklog = Field(description="What waits for all of them.")
    unlisted: Unlisted = Field(
        description="Names for which something waits, but which Synapse has no row "
        "for: they are in no list, but each is found by its name."
    )
    indexes: Indexes = Field(description="The optional indexes.")


@operation(Nothing, Summary)
async def summarize(asked: Asked, _: Nothing) -> JsonDict:
    """Count destinations by what matters, and all that waits for them.

    GET /_synapse/admin/v2/federation/summary

    200 OK

        {
            "as_of_ts": 1557332397936,
            "total": 1000000,
            "status": {
                "invalid": 0,
                "online": 800000,
                "unknown": 140000,
                "backing_off": 40000,
                "retry_due": 20000
            },
            "failing": {
                "<1h": 100,
                "<1d": 900,
                "<7d": 9000,
                "<30d": 20000,
                ">=30d": 30000
            },
            "failing_by_kind": {"dns_not_found": 40000, "unknown": 20000},
            "failing_by_kind_and_age": {
                "dns_not_found": {
                    "<1h": 100,
                    "<1d": 400,
                    "<7d": 9000,
                    "<30d": 10500,
                    ">=30d": 20000
                },
                "unknown": {
                    "<1h": 0,
                    "<1d": 500,
                    "<7d": 0,
                    "<30d": 9500,
                    ">=30d": 10000
                }
            },
            "outlook": {
                "verdict": "us",
                "explanation": "92 % of long-known servers tried in the ...",
                "can_be_told": true,
                "last_hour": {
                    "tried": 500,
                    "failing": 300,
                    "unanswered": 0,
                    "began": 280,
                    "share": 0.6,
                    "shared": [
                        {
                            "type": "kind",
                            "value": "dns_failed",
                            "destinations": 290,
                            "began": 280
                        }
                    ]
                },
                "last_15_minutes": {...}
            },
            "senders": [
                {
                    "instance": "main",
                    "state": "running",
                    "seen_ts": 1557332397936,
                    "position": 4711,
                    "behind_events": 0,
                    "behind_ms": 0,
                    "ahead_events": 0
                }
            ],
            "not_yet_queued": 0,
            "backlog": {
                "as_of_ts": 1557332397936,
                "rooms": 1200,
                "oldest_event_ts": 1557332397936,
                "rooms_never_caught_up": 30,
                "to_device_messages": 5000,
                "oldest_to_device_ts": 1557332397936,
                "device_list_updates": 7000
            },
            "unlisted": {"total": 1},
            "indexes": {
                "enabled": true,
                "ready": false,
                "states": {"federation_admin_failing": "missing"},
                "errors": {}
            }
        }

    `backlog` and `unlisted` are as of `backlog.as_of_ts`. Where it takes long to read
    what waits, this is older than the rest, or null while nothing is known yet: then so
    is all the rest of the two.
    """
    services = asked.services
    summary = await services.summary.get()
    table = None
    if summary.failing_by_kind is not None:
        every = by_every_kind(summary.failing_by_age, summary.failing_by_kind)
        table = {kind: ages for kind, ages in every.items() if any(ages.values())}
    processes = await if_readable(lambda: services.senders.lately.get())
    senders = processes and processes.senders
    outlook = await if_readable(lambda: services.recent_attempts.correlation())
    states = await services.indexes.states()
    # None where nothing is known yet.
    waiting = summary.backlog
    return {
        "as_of_ts": summary.as_of_ts,
        "total": summary.total,
        "status": shown(summary.by_status),
        "failing": shown(summary.failing_by_age),
        "failing_by_kind": None
        if table is None
        else {kind: sum(ages.values()) for kind, ages in table.items()},
        "failing_by_kind_and_age": shown(table),
        "outlook": shown(outlook and with_senders(outlook, senders or ())),
        "senders": shown(senders),
        "not_yet_queued": await if_readable(
            lambda: not_yet_queued(services.homeserver, senders)
        )
        if senders
        else None,
        "backlog": {
            key: getattr(waiting, key, None) for key in TotalBacklog.model_fields
        },
        "unlisted": {"total": waiting.unlisted if waiting else None},
        "indexes": {
            "enabled": services.indexes.enabled,
            "ready": all(state is IndexState.READY for state in states.values()),
            "states": shown(states),
            "errors": dict(services.indexes.errors),
        },
    }
