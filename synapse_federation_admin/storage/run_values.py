# SPDX-License-Identifier: Apache-2.0
"""Runs: one change to many destinations, made one destination after the other."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated

import attr

from synapse_federation_admin.storage.audit_entry import Actor


class RunStatus(Enum):
    """How far a run has come."""

    # No process has taken it yet.
    SCHEDULED = "scheduled"

    # The destinations are being found and queued.
    PREPARING = "preparing"

    RUNNING = "running"
    COMPLETE = "complete"
    CANCELLED = "cancelled"

    # An error that is a bug, or that does not go away, has ended it.
    FAILED = "failed"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunOrder:
    """What a run is asked for.

    Attributes:
        action: What is done to each destination: the name of an action.
        criteria: Which destinations, as the API shows it.
        options: How, as the API shows it.
        names: The destinations, where the criteria are a list; else empty.
        actor: Who asks for it.
        reason: Why, as they say.
    """

    action: str
    criteria: Mapping[str, object]
    options: Mapping[str, object]
    names: Sequence[str]
    actor: Actor
    reason: str | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunError:
    """A destination of a run with which something is wrong.

    Attributes:
        destination: The server name.
        message: What is wrong, for people.
        ts: When, in ms since the epoch.
    """

    destination: str
    message: str
    ts: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunErrors:
    """The destinations of a run with which one kind of thing is wrong.

    Attributes:
        count: How many.
        recent: The last ones, the newest first.
    """

    count: int = 0
    recent: tuple[RunError, ...] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Run:
    """A run. What a later version has written is in it as it was written.

    Attributes:
        run_id: Its ID.
        action: What is done to each destination: `reconnect`, `forget`, `cap_backoff`.
        status: `scheduled`: no process has taken it yet; `preparing`: `matched` still
            grows; `running`, `complete`, `cancelled`; `failed`: `error` says why.
        entry_id: Its entry in the audit.
        actor: Who asked for it.
        reason: Why, as the admin said; None if not said.
        criteria: Which destinations: `all_failing`, a `filter`, or how many
            `destinations` a list had.
        options: How, depending on the action.
        created_ts: When it was asked for.
        updated_ts: When something of it was last written.
        started_ts: When a process first took it; None if none has.
        ended_ts: When it ended; None if it has not.
        prepared_to: Up to where the destinations have been found.
        matched: How many destinations have been found.
        outcomes: How many have each outcome, depending on the action.
        totals: Sums over those that are done, depending on the action.
        errors: What is wrong with destinations, by kind.
        rate: How many are done per second; None if that is not known.
        error: Why the run failed, or what it waits for; None if neither.
    """

    run_id: str
    action: str
    status: Annotated[str, RunStatus]
    entry_id: str
    actor: Actor
    reason: str | None
    criteria: Mapping[str, object]
    options: Mapping[str, object]
    created_ts: int
    updated_ts: int
    started_ts: int | None = None
    ended_ts: int | None = None
    prepared_to: str | None = None
    matched: int = 0
    outcomes: Mapping[str, int] = attr.Factory(dict)
    totals: Mapping[str, int] = attr.Factory(dict)
    errors: Mapping[str, RunErrors] = attr.Factory(dict)
    rate: float | None = None
    error: str | None = None

    @property
    def done(self) -> int:
        """How many of them have an outcome."""
        return sum(self.outcomes.values())

    @property
    def rate_per_second(self) -> float | None:
        """How many are done per second; None if it does not run."""
        return self.rate if self.status == RunStatus.RUNNING.value else None

    def estimated_end_ts(self, now_ms: int) -> int | None:
        """Return when it will have ended, going on like this; None if not known."""
        rate = self.rate or self.options.get("per_second")
        if self.status != RunStatus.RUNNING.value or not isinstance(rate, int | float):
            return None
        return now_ms + int((self.matched - self.done) / rate * 1000)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Queued:
    """A destination that a run has still to do.

    Attributes:
        destination: Its name.
        priority: Its class of priority; the smallest comes first.
        was_failing: Whether it was failing when it was queued.
    """

    destination: str
    priority: int
    was_failing: bool

    @property
    def position(self) -> tuple[int, str]:
        """Where it stands in the queue."""
        return (self.priority, self.destination)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunResult:
    """The result for one destination of a run.

    Attributes:
        destination: Its name.
        outcome: One of the outcomes of the action.
        ts: When it was begun, in ms since the epoch.
        ended_ts: When the outcome was known.
        details: What the audit keeps of it.
        kind: The kind of error; "" if nothing is wrong.
        message: The error, for a person.
        totals: What it adds to the totals of the run.
    """

    destination: str
    outcome: str
    ts: int
    ended_ts: int
    details: Mapping[str, object] = attr.Factory(dict)
    kind: str = ""
    message: str = ""
    totals: Mapping[str, int] = attr.Factory(dict)
