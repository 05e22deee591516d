# SPDX-License-Identifier: Apache-2.0
"""What the tables keep, as values: the audit, what comes of a repair, and runs.

The audit: who did what, when, why, and the outcome. A run: one change to many
destinations, made one destination after the other.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, NamedTuple

import attr

from synapse_federation_admin.failures.kinds import Failure


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Actor:
    """Who makes a change.

    Attributes:
        user_id: The user whose access token it was.
        puppeted_by: Who acts as that user with a token from Synapse's admin API; None
            if nobody does.
    """

    user_id: str
    puppeted_by: str | None = None


class AuditAction(Enum):
    """What was done through this module."""

    # v1's reset_connection.
    RESET = "reset"

    # One destination was contacted, removed, or had its backoff shortened: by itself or
    # in a run.
    RECONNECT = "reconnect"
    FORGET = "forget"
    CAP_BACKOFF = "cap_backoff"

    # What processes keep in memory of one destination was dropped.
    FLUSH_CACHES = "flush_caches"

    # A run as a whole, and that it was cancelled.
    BULK_RECONNECT = "bulk_reconnect"
    BULK_FORGET = "bulk_forget"
    BULK_CAP_BACKOFF = "bulk_cap_backoff"
    CANCEL = "cancel"


# With what the action of a run as a whole begins.
WHOLE = "bulk_"

# The outcome of what has not come to its end yet, and of what never will, because the
# process that did it has ended.
AUDIT_PENDING = "pending"
AUDIT_INTERRUPTED = "interrupted"

# The outcome of what has gone wrong on our side.
AUDIT_FAILED = "failed"

# The outcome of a destination that was forgotten.
AUDIT_FORGOTTEN = "forgotten"

# The outcome of a flush, if all processes were told, and if some were not.
AUDIT_FLUSHED = "flushed"
AUDIT_FLUSHED_IN_PART = "flushed_in_part"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AuditEntry:
    """One thing that was done through this module.

    Attributes:
        entry_id: The entry's ID.
        ts: When it began, in ms since the epoch.
        action: What was done.
        actor: Who did it.
        instance: The process; the main process is `main`.
        outcome: What came of it; `pending` while that is not known, `interrupted` if
            its process ended before, or if it was not known after a day, `failed` if
            the database failed at its end.
        destination: The destination; None if it was done to many.
        reason: Why, as the admin said; None if not said.
        run_id: The run that it belongs to, or is; None if there is none.
        ended_ts: When it ended; None if it has not. Of what is `pending`: when the
            retry timings were cleared, since when it waits for the first real request.
        details: What else there is to know, depending on the action; as JSON has it.
    """

    entry_id: str
    ts: int
    action: Annotated[str, AuditAction]
    actor: Actor
    instance: str
    outcome: str
    destination: str | None = None
    reason: str | None = None
    run_id: str | None = None
    ended_ts: int | None = None
    details: Mapping[str, Any] = attr.Factory(dict)


class AuditFilter(NamedTuple):
    """Which entries of the audit to read: those that meet every condition.

    Attributes:
        destination: The exact name of the destination; None: any.
        user_id: The user, or the admin who acted as that user; None: any.
        actions: The actions; empty: all.
        outcome: The outcome; None: any.
        run_id: The bulk run; None: any.
        since_ts: Keep what began then or later.
        until_ts: Keep what began before.
    """

    destination: str | None = None
    user_id: str | None = None
    actions: frozenset[AuditAction] = frozenset()
    outcome: str | None = None
    run_id: str | None = None
    since_ts: int | None = None
    until_ts: int | None = None


class ResetOutcome(Enum):
    """What came of a request to reset a destination's retry timings."""

    RESET = "reset"
    NOT_FAILING = "not_failing"
    UNKNOWN_DESTINATION = "unknown_destination"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Server:
    """What a server says of itself.

    Attributes:
        name: Its software; None if it does not say.
        version: Its version; None if it does not say.
    """

    name: str | None = None
    version: str | None = None


class Contact(NamedTuple):
    """What came of one request to a destination.

    Attributes:
        duration_ms: How long it took.
        server: What the server says of itself; None if it did not answer well.
        failure: Why it failed; None if it did not.
    """

    duration_ms: int
    server: Server | None = None
    failure: Failure | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Refused:
    """The transaction that a destination has refused, where that is known.

    Attributes:
        status: The HTTP status; None if there was no answer.
        bytes: The size of its body; None if that is not known.
        pdus: How many PDUs were in it.
        edus: How many EDUs were in it.
        to_device_messages: How many of these were to-device messages.
    """

    status: int | None
    bytes: int | None
    pdus: int | None
    edus: int | None
    to_device_messages: int | None


class Told(NamedTuple):
    """Which processes were told that a destination may be up again.

    Attributes:
        names: The names of the processes; the main process is `main`.
        others: The names of those that could not be told.
        error: Why they could not be told; None if all were.
    """

    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    error: str | None = None


class ReconnectOutcome(Enum):
    """What came of a request to reconnect a destination."""

    # It has taken an empty transaction; nothing waited, or the first of that, too.
    CONNECTED = "connected"

    # It has taken an empty transaction; but the process that sends to it does not run,
    # or is ahead of all events: nothing leaves, and what may wait is in no table yet.
    NOT_SENT = "not_sent"

    # It has taken an empty transaction, and refuses what waits.
    REFUSED = "refused"

    # It has not answered well. The row is as it was, or as Synapse has made it since.
    STILL_FAILING = "still_failing"

    # That is not known yet; the attempt goes on.
    PENDING = "pending"

    # It has not answered well, and its retry timings are cleared even so.
    FORCED = "forced"

    # The contact failed because of a bug on this side; nothing has changed.
    INTERNAL = "internal"


class LeftOut(Enum):
    """Why a run has done nothing with a destination."""

    # It was failing when it was queued, and is not any more.
    NO_LONGER_FAILING = "no_longer_failing"

    # Synapse has no row for it any more; or it is no valid server name, or is shut out
    # by `federation_domain_whitelist`.
    SKIPPED = "skipped"


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
    criteria: Mapping[str, Any]
    options: Mapping[str, Any]
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


class Queued(NamedTuple):
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
    details: Mapping[str, Any] = attr.Factory(dict)
    kind: str = ""
    message: str = ""
    totals: Mapping[str, int] = attr.Factory(dict)
