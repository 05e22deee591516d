# SPDX-License-Identifier: Apache-2.0
"""v2: destinations, and which of them a request is for."""

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from synapse_federation_admin.api.schemas.model import (
    Answer,
    Duration,
    Input,
    Lax,
    NextToken,
    Paged,
    WantedKind,
    absent,
)
from synapse_federation_admin.api.schemas.v1 import V1Destination
from synapse_federation_admin.api.schemas.values import Shown
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationOrder,
    DestinationStatus,
    Direction,
    Sort,
)
from synapse_federation_admin.history.store import Availability
from synapse_federation_admin.storage.records import RecordedFailure


class Filter(Input):
    """Which destinations: those that meet every condition."""

    status: list[Annotated[DestinationStatus, Lax]] = Field(
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
    failing_under: Duration | None = Field(
        default=None, description="Keep what has been failing for less than so long."
    )
    failure: list[WantedKind] = Field(
        default=[],
        description="Keep what is failing, and whose last real request failed with one "
        "of these kinds; `unknown` stands for what fails and has no recorded cause.",
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
            failing_under_ms=self.failing_under,
            failures=frozenset(self.failure),
        )


class ChangeFilter(Filter):
    """Which destinations something is done to: never all of them by mistake."""

    @model_validator(mode="after")
    def _require_condition(self) -> Self:
        if self.wanted.keeps_all:
            raise ValueError(
                "must have at least one of the keys 'status', 'destination', "
                "'failing_for', 'failing_under' and 'failure' that leaves something out"
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
    has_backlog: bool = Field(
        default=False,
        description="Keep what is failing, and for which something waited when that "
        "was last looked for: the most first, whatever `order_by` and `dir` say.",
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
    LOCAL_USERS = "local_users"


class DestinationsQuery(Paged, SortedFilter):
    """The list's query parameters."""

    include: list[Annotated[Include, Lax]] = Field(
        default=[],
        description="Adds to each destination what waits for it (`backlog`), why a "
        "real request to it last failed (`failure`), how much of the last 14 days it "
        "was not failing (`availability`), how many users of this server it affects "
        "(`local_users`).",
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


class Destination(V1Destination):
    """A destination, as in every list and answer of v2."""

    status: DestinationStatus = Field(
        description="`invalid`: it bears no server name, so that nothing can ever be "
        "delivered to it, whether it is failing or not; `online`: not failing, and "
        "something has been delivered to it; `unknown`: not failing, and no event has "
        "been delivered to it yet; `backing_off`: failing, and Synapse waits until "
        "`next_retry_ts`; `retry_due`: failing, the time of the next retry has come, "
        "and Synapse tries when there is something to send."
    )
    next_retry_ts: int | None = Field(
        description="`retry_last_ts + retry_interval`; null if it is not failing."
    )
    allowed: bool = Field(
        description="False if `federation_domain_whitelist` shuts it out."
    )


class RecordedDestination(Destination):
    """A destination, and what was recorded of it."""

    last_failure: Shown[RecordedFailure] | None = Field(
        description="The last failure of a real request; null if none was recorded."
    )
    availability: Shown[Availability] | None = Field(
        description="How much of the last 14 days it was not failing; null where the "
        "module's own tables cannot be read."
    )


class ListedDestination(Destination):
    """A destination in the list, with what `include` asks for."""

    backlog: Shown[Backlog] | None = Field(
        default=None, description="With `include=backlog`."
    )
    last_failure: Shown[RecordedFailure] | None = Field(
        default_factory=absent,
        description="With `include=failure`: the last failure of a real request; null "
        "if none was recorded.",
    )
    last_success_ts: int | None = Field(
        default_factory=absent,
        description="With `include=failure`, where it has failed: when it last "
        "answered a request well, to within five minutes; null if it has not since. A "
        "server that is not failing and has not answered since it failed last is not "
        "known to work.",
    )
    availability: Shown[Availability] | None = Field(
        default=None, description="With `include=availability`."
    )
    local_users: int | None = Field(
        default_factory=absent,
        description="With `include=local_users`: users of this server who share a "
        "room with it, at `as_of_ts`; null if it was not failing then, or that is not "
        "known.",
    )


class Inbound(Answer):
    """What a destination sends to us."""

    last_transaction_ts: int | None = Field(
        description="When its last transaction came in; null if none has within the "
        "day that Synapse remembers."
    )


class DestinationDetail(RecordedDestination):
    """Everything about one destination."""

    backlog: Shown[Backlog] | None = Field(
        description="What waits for it; null while the feature `backlog` is off."
    )
    unsendable: int | None = Field(
        description="Of `backlog.rooms`, of the oldest 10,000: those whose event is "
        "not there any more. Synapse wakes the destination for them again and again, "
        "and has nothing to send. Null as `backlog`."
    )
    never_delivered: int | None = Field(
        description="The others of `backlog.rooms` where no event was ever delivered "
        "to it: Synapse does not catch up on them, not even once it answers. It sends "
        "only what its sender still has in memory. 0 where something was delivered; "
        "null as `backlog`."
    )
    failures: list[Shown[RecordedFailure]] = Field(
        description="Why real requests to it failed: one for each kind, the last first."
    )
    last_success_ts: int | None = Field(
        description="When it last answered a request well, one of this module among "
        "them, to within five minutes; null if it has not since the module was "
        "installed."
    )
    shared_rooms: int | None = Field(
        description="Rooms in which users of that server and of this one are now; null "
        "while the feature `shared_rooms` is off."
    )
    local_users: int | None = Field(
        description="Users of this server in those rooms; null as `shared_rooms`."
    )
    sender: Shown[Sender] | None = Field(
        description="The process that sends to it, and how far it has come; null where "
        "the module's own tables cannot be read."
    )
    not_yet_queued: int | None = Field(
        description="Our events in its rooms to which that process has not come, of "
        "the next 10,000 events; null if that is not known."
    )
    inbound: Inbound = Field(description="What it sends to us.")


class DestinationsPage(Answer):
    """A page of the list."""

    destinations: list[ListedDestination] = Field(description="The rows of the page.")
    total: int | None = Field(
        default=None, description="With `total=true`: how many rows the filters keep."
    )
    as_of_ts: int | None = Field(
        default_factory=absent,
        description="With `has_backlog` or `include=local_users`: when it was looked "
        "for what waits and who is affected; null while nothing is known yet.",
    )
    is_complete: bool | None = Field(
        default=None,
        description="With `has_backlog`: false if there was more than there is room to "
        "look at, or to keep.",
    )
    next_token: NextToken = None
