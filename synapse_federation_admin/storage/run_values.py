# SPDX-License-Identifier: Apache-2.0
"""Bulk runs: many destinations reconnected, one after the other."""

from collections.abc import Mapping, Sequence
from enum import Enum

import attr

from synapse_federation_admin.destinations.values import Destination, DestinationFilter
from synapse_federation_admin.storage.audit_entry import Actor
from synapse_federation_admin.storage.outcomes import Contact


class RunStatus(Enum):
    """How far a bulk run has come."""

    # Synapse's task scheduler has not begun it yet.
    SCHEDULED = "scheduled"

    # The destinations are being found and put in order.
    PREPARING = "preparing"

    RUNNING = "running"
    COMPLETE = "complete"
    CANCELLED = "cancelled"


class RunOutcome(Enum):
    """What came of one destination of a bulk run."""

    CONNECTED = "connected"
    STILL_FAILING = "still_failing"

    # It was failing when the run was made, and is not any more: it is not contacted.
    NO_LONGER_FAILING = "no_longer_failing"

    # It is no valid server name, or is shut out by `federation_domain_whitelist`, or
    # Synapse has no row for it any more.
    SKIPPED = "skipped"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunCriteria:
    """Which destinations a bulk run is for: a list, or those that a filter keeps.

    Attributes:
        wanted: The filter; None if it is a list.
        listed: How many names the list has.
    """

    wanted: DestinationFilter | None = None
    listed: int = 0


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunOrder:
    """What a bulk run is asked for.

    Attributes:
        criteria: Which destinations it is for.
        names: Their names, if that is a list; else empty.
        actor: Who asks for it.
        reason: Why, as he says.
        per_second: How many contacts to begin per second.
        timeout_ms: How long a destination has to answer.
    """

    criteria: RunCriteria
    names: Sequence[str]
    actor: Actor
    reason: str | None
    per_second: float
    timeout_ms: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunPreview:
    """What a bulk run would be for.

    Attributes:
        matched: How many destinations.
        sample: The names of some.
    """

    matched: int
    sample: Sequence[str]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SortedNames:
    """The names of a list, each once, by whether they can be contacted.

    Attributes:
        usable: Those that can.
        unknown: Those that Synapse has no row for.
        invalid: Those that are no valid server names.
    """

    usable: Sequence[str]
    unknown: Sequence[str]
    invalid: Sequence[str]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunError:
    """A destination of a bulk run that could not be reconnected."""

    destination: str
    message: str
    ts: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunErrors:
    """Those of one kind.

    Attributes:
        count: How many.
        recent: The last ones, the newest first.
    """

    count: int = 0
    recent: tuple[RunError, ...] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Run:
    """A bulk run.

    Attributes:
        run_id: Its ID.
        status: How far it has come.
        entry_id: Its entry in the audit.
        actor: Who has asked for it.
        reason: Why, as he says.
        criteria: Which destinations it is for.
        per_second: How many contacts it begins per second.
        timeout_ms: How long a destination has to answer.
        created_ts: When it was asked for.
        updated_ts: When something was last written of it.
        started_ts: When it was begun; None if it has not been.
        ended_ts: When it ended; None if it has not.
        prepared_to: Up to where the destinations have been found.
        matched: How many destinations have been found.
        counts: How many have each outcome; all four are in it.
        errors: Why those that are still failing fail, by kind.
        rate: How many are done per second; None if that is not known.
    """

    run_id: str
    status: RunStatus
    entry_id: str
    actor: Actor
    reason: str | None
    criteria: RunCriteria
    per_second: float
    timeout_ms: int
    created_ts: int
    updated_ts: int
    started_ts: int | None = None
    ended_ts: int | None = None
    prepared_to: str | None = None
    matched: int = 0
    counts: Mapping[RunOutcome, int] = attr.Factory(
        lambda: dict.fromkeys(RunOutcome, 0)
    )
    errors: Mapping[str, RunErrors] = attr.Factory(dict)
    rate: float | None = None

    @property
    def done(self) -> int:
        """How many destinations have an outcome."""
        return sum(self.counts.values())

    @property
    def has_ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self.status in (RunStatus.COMPLETE, RunStatus.CANCELLED)

    def estimated_end_ts(self, now_ms: int) -> int | None:
        """Return when it will have ended, going on like this; None if it has."""
        if self.status is not RunStatus.RUNNING:
            return None
        left_s = (self.matched - self.done) / (self.rate or self.per_second)
        return now_ms + int(left_s * 1000)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Queued:
    """A destination that a bulk run has still to see to.

    Attributes:
        destination: Its name.
        priority: Its class of priority; the smallest comes first.
        was_failing: Whether it was failing when the run was prepared.
        row: What its row says now; None if there is none any more.
    """

    destination: str
    priority: int
    was_failing: bool
    row: Destination | None

    @property
    def position(self) -> tuple[int, str]:
        """Where it stands in the queue."""
        return (self.priority, self.destination)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RunResult:
    """What came of a destination of a bulk run.

    Attributes:
        destination: Its name.
        outcome: In a word.
        ts: When it was begun, in ms since the epoch.
        ended_ts: When that was known.
        contact: What came of the contact; None if it was not contacted.
        note: Why it was skipped; "" if it was not.
    """

    destination: str
    outcome: RunOutcome
    ts: int
    ended_ts: int
    contact: Contact | None = None
    note: str = ""
