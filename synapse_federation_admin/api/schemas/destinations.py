# SPDX-License-Identifier: Apache-2.0
"""v2: destinations, and which of them a request is for."""

from collections.abc import Sequence
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, model_validator
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import (
    Answer,
    Duration,
    Input,
    Kind,
    Lax,
    NextToken,
    OneOrMore,
    PageFrom,
    PageLimit,
    WantedKind,
    absent,
)
from synapse_federation_admin.api.schemas.v1 import V1Destination
from synapse_federation_admin.destinations.backlog import Backlog as BacklogValue
from synapse_federation_admin.destinations.values import Destination as DestinationRow
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationOrder,
    DestinationStatus,
    Direction,
    Sort,
)
from synapse_federation_admin.history.availability import (
    Availability as AvailabilityValue,
)
from synapse_federation_admin.storage import failures


class Filter(Input):
    """Which destinations: those that meet every condition."""

    status: Annotated[list[Annotated[DestinationStatus, Lax]], OneOrMore] = Field(
        default=[], description="Keep what has one of these statuses."
    )
    destination: str = Field(
        default="",
        description="Keep the names that contain this text or, if `*` (any text) or "
        "`?` (any character) is in it, match it as a whole; in any case of ASCII "
        "letters.",
    )
    failing_for: Duration | None = Field(
        default=None, description="Keep what has been failing for at least so long."
    )
    failure: Annotated[list[WantedKind], OneOrMore] = Field(
        default=[],
        description="Keep what is failing, and whose last real request failed with one "
        "of these kinds; `unknown` stands for what has not failed since the module was "
        "installed.",
    )

    @property
    def wanted(self) -> DestinationFilter:
        """The filter as a value."""
        name = self.destination
        is_glob = "*" in name or "?" in name
        statuses = frozenset(self.status)
        return DestinationFilter(
            name_contains="" if is_glob else name,
            name_glob=name if is_glob else "",
            # All of them are no condition.
            statuses=frozenset()
            if len(statuses) == len(DestinationStatus)
            else statuses,
            failing_for_ms=self.failing_for,
            failures=frozenset(self.failure),
        )


class ChangeFilter(Filter):
    """Which destinations something is done to: never all of them by mistake."""

    @model_validator(mode="after")
    def _require_condition(self) -> Self:
        if self.wanted.keeps_all:
            raise ValueError(
                "must have at least one of the keys 'status', 'destination', "
                "'failing_for' and 'failure' that leaves something out"
            )
        return self


class SortedFilter(Filter):
    """Which destinations, and in which order."""

    order_by: Annotated[DestinationOrder, Lax] = Field(
        default=DestinationOrder.DESTINATION,
        description="What to sort by; `null` comes last in both directions, and equal "
        "values are sorted by name.",
    )
    dir: Annotated[Direction, Lax] = Field(
        default=Direction.FORWARDS, description="`f`: ascending; `b`: descending."
    )

    @property
    def sort(self) -> Sort:
        """The order as a value."""
        return Sort(self.order_by, self.dir)


class Include(Enum):
    """What more is told of each destination."""

    BACKLOG = "backlog"
    FAILURE = "failure"
    AVAILABILITY = "availability"


class DestinationsQuery(SortedFilter):
    """The list's query parameters."""

    limit: PageLimit = 100
    from_: PageFrom = None
    include: list[Annotated[Include, Lax]] = Field(
        default=[],
        description="Adds to each destination what waits for it (`backlog`), why a "
        "real request to it last failed (`failure`), how much of the last 14 days it "
        "was not failing (`availability`).",
    )
    total: bool = Field(
        default=False,
        description="Adds how many rows the filters keep, counted at the first page "
        "that asks for it.",
    )


class ExportFormat(Enum):
    """The formats of an export."""

    NDJSON = "ndjson"
    CSV = "csv"


class ExportInclude(Enum):
    """What more an export has of each destination."""

    BACKLOG = "backlog"


class ExportQuery(SortedFilter):
    """The export's query parameters."""

    format: Annotated[ExportFormat, Lax] = Field(
        default=ExportFormat.NDJSON,
        description="`ndjson`: an object as in the list in every line; `csv`: a table "
        "whose first line names the columns, those of the backlog without `backlog.`.",
    )
    include: list[Annotated[ExportInclude, Lax]] = Field(
        default=[], description="Adds what waits for each destination."
    )


class CatchUp(Enum):
    """Whether Synapse sends by itself the events that a destination has missed."""

    POSSIBLE = "possible"

    # Nothing has ever been delivered to it: there is nothing to catch up from.
    IMPOSSIBLE = "impossible"


class Backlog(Answer):
    """What waits for a destination."""

    rooms: int = Field(description="Rooms with an event that it has not got.")
    oldest_stream_ordering: int | None = Field(
        description="The oldest of those rooms' newest events; null if there is none."
    )
    catch_up: CatchUp = Field(
        description="`impossible` if nothing has ever been delivered to it: Synapse "
        "then does not send those events by itself."
    )
    to_device_messages: int = Field(
        description="To-device messages that wait, among them the keys of encrypted "
        "messages."
    )
    oldest_to_device_ts: int | None = Field(
        description="When the oldest of them was queued; null if there is none."
    )
    device_list_updates: int = Field(
        description="Changes of local users' devices that wait."
    )

    @classmethod
    def of(cls, backlog: BacklogValue) -> Self:
        """Show a value."""
        return cls(
            rooms=backlog.rooms,
            oldest_stream_ordering=backlog.oldest_stream_ordering,
            catch_up=CatchUp.POSSIBLE if backlog.can_catch_up else CatchUp.IMPOSSIBLE,
            to_device_messages=backlog.to_device_messages,
            oldest_to_device_ts=backlog.oldest_to_device_ts,
            device_list_updates=backlog.device_list_updates,
        )


class RecordedFailure(Answer):
    """Failures of one kind of real requests to a destination."""

    kind: Kind = Field(description="The cause.")
    message: str = Field(description="What the last of them met, for people.")
    first_ts: int = Field(description="When the first of them failed.")
    last_ts: int = Field(description="When the last of them failed.")
    count: int = Field(description="How many failed.")
    instance: str = Field(description="The process whose request was the last of them.")

    @classmethod
    def of(cls, failure: failures.RecordedFailure) -> Self:
        """Show a value."""
        return cls(
            kind=failure.kind,
            message=failure.message,
            first_ts=failure.first_ts,
            last_ts=failure.last_ts,
            count=failure.count,
            instance=failure.instance,
        )

    @classmethod
    def last_of(cls, found: Sequence[failures.RecordedFailure]) -> Self | None:
        """Show the first of some, which is the last that happened; None if none."""
        return cls.of(found[0]) if found else None


class AvailableDay(Answer):
    """How much of a day a destination was not failing."""

    date: str = Field(description="The day, in UTC: `2026-11-26`.")
    share: float | None = Field(
        description="From 0 to 1, of the part that is recorded; null if none is."
    )


class Availability(Answer):
    """How much of the last 14 days a destination was not failing."""

    since_ts: int | None = Field(
        description="Since when it is recorded, within these days; null if it is not."
    )
    share: float | None = Field(
        description="From 0 to 1, of the time that is recorded; null if none is."
    )
    days: list[AvailableDay] = Field(description="Each day, the oldest first.")

    @classmethod
    def of(cls, found: AvailabilityValue) -> Self:
        """Show a value."""
        return cls(
            since_ts=found.since_ts,
            share=found.share,
            days=[
                AvailableDay(date=_date(day.begin_ts), share=day.share)
                for day in found.days
            ],
        )


@lru_cache(maxsize=32)
def _date(ts: int) -> str:
    """Return the day of a time, in UTC."""
    return datetime.fromtimestamp(ts / 1000, timezone.utc).date().isoformat()


class Destination(V1Destination):
    """A destination, as in every list and answer of v2."""

    status: DestinationStatus = Field(
        description="`online`: not failing, and something has been delivered to it; "
        "`unknown`: not failing, and nothing has been delivered to it yet; "
        "`backing_off`: failing, and Synapse waits until `next_retry_ts`; `retry_due`: "
        "failing, the time of the next retry has come, and Synapse tries when there is "
        "something to send."
    )
    next_retry_ts: int | None = Field(
        description="`retry_last_ts + retry_interval`; null if it is not failing."
    )
    allowed: bool = Field(
        description="False if `federation_domain_whitelist` shuts it out."
    )

    @classmethod
    def of(
        cls, row: DestinationRow, now_ms: int, *, allowed: bool, **more: Any
    ) -> Self:
        """Show a row.

        Args:
            row: The row.
            now_ms: The time at which it has its status.
            allowed: Whether federation with it is allowed.
            more: The fields that are not of this class.
        """
        return cls(
            destination=row.destination,
            retry_last_ts=row.retry_last_ts or 0,
            retry_interval=row.retry_interval or 0,
            failure_ts=row.failure_ts,
            last_successful_stream_ordering=row.last_successful_stream_ordering,
            status=row.status(now_ms),
            next_retry_ts=row.next_retry_ts,
            allowed=allowed,
            **more,
        )


class ListedDestination(Destination):
    """A destination in the list, with what `include` asks for."""

    backlog: Backlog | None = Field(default=None, description="With `include=backlog`.")
    last_failure: RecordedFailure | None = Field(
        default_factory=absent,
        description="With `include=failure`: the last failure of a real request; null "
        "if none was recorded.",
    )
    availability: Availability | None = Field(
        default=None, description="With `include=availability`."
    )


class Inbound(Answer):
    """What a destination sends to us."""

    last_transaction_ts: int | None = Field(
        description="When its last transaction came in; null if none has within the "
        "day that Synapse remembers."
    )


class DestinationDetail(Destination):
    """Everything about one destination."""

    backlog: Backlog = Field(description="What waits for it.")
    last_failure: RecordedFailure | None = Field(
        description="The last failure of a real request; null if none was recorded."
    )
    availability: Availability | None = Field(
        description="How much of the last 14 days it was not failing; null where the "
        "module's own tables cannot be read."
    )
    failures: list[RecordedFailure] = Field(
        description="Why real requests to it failed: one for each kind, the last first."
    )
    last_success_ts: int | None = Field(
        description="When it last answered a request well, one of this module among "
        "them, to within five minutes; null if it has not since the module was "
        "installed."
    )
    shared_rooms: int = Field(
        description="Rooms in which users of that server and of this one are now."
    )
    local_users: int = Field(description="Users of this server in those rooms.")
    sender: str | None = Field(
        description="The process that sends to it (the main process is `main`); null "
        "if none does."
    )
    inbound: Inbound = Field(description="What it sends to us.")


class DestinationsPage(Answer):
    """A page of the list."""

    destinations: list[ListedDestination] = Field(description="The rows of the page.")
    total: int | None = Field(
        default=None, description="With `total=true`: how many rows the filters keep."
    )
    next_token: NextToken = None
