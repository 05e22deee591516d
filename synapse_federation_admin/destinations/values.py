# SPDX-License-Identifier: Apache-2.0
"""Destinations, and lists of them."""

from enum import Enum
from typing import NamedTuple

from synapse_federation_admin.homeserver.server_name import is_server_name


class DestinationOrder(Enum):
    """What a list of destinations may be sorted by: columns, and `next_retry_ts`."""

    DESTINATION = "destination"
    RETRY_LAST_TS = "retry_last_ts"
    RETRY_INTERVAL = "retry_interval"
    FAILURE_TS = "failure_ts"
    LAST_SUCCESSFUL_STREAM_ORDERING = "last_successful_stream_ordering"
    NEXT_RETRY_TS = "next_retry_ts"


class Direction(Enum):
    """The two directions of a sorted list, by their names in the API."""

    FORWARDS = "f"
    BACKWARDS = "b"


class DestinationStatus(Enum):
    """What a destination's row says of it; every destination has exactly one.

    All but the first are of names that are those of servers.
    """

    # What it bears is no server name: nothing can ever be delivered to it.
    INVALID = "invalid"

    # Not failing, and something has been delivered.
    ONLINE = "online"

    # Not failing, and no event has been delivered yet.
    UNKNOWN = "unknown"

    # Failing, and its next retry lies in the future.
    BACKING_OFF = "backing_off"

    # Failing, and the time of its next retry has come.
    RETRY_DUE = "retry_due"


class Destination(NamedTuple):
    """One row of Synapse's table `destinations`, as the table has it.

    A named tuple, for lists make a million of them, and it is made five times as fast
    as the other values here.
    """

    destination: str

    # When Synapse last tried and failed. None or 0: it is not backing off.
    retry_last_ts: int | None

    # How long after `retry_last_ts` Synapse waits before it tries again, in ms.
    retry_interval: int | None

    # When the present run of failures began. None: it is not failing.
    failure_ts: int | None

    # Up to which event of ours it has everything. None: no event was yet.
    last_successful_stream_ordering: int | None

    @property
    def is_failing(self) -> bool:
        """Whether Synapse takes this destination as failing.

        Synapse's own test is whether `retry_last_ts` is set (`synapse/storage/
        databases/main/transactions.py`, `_get_destination_retry_timings`).
        """
        return bool(self.retry_last_ts)

    @property
    def next_retry_ts(self) -> int | None:
        """When Synapse may try again; None if it is not failing."""
        if not self.retry_last_ts:
            return None
        return self.retry_last_ts + (self.retry_interval or 0)

    def status(self, now_ms: int) -> DestinationStatus:
        """Return its status at a time in ms since the epoch."""
        if not is_server_name(self.destination):
            return DestinationStatus.INVALID
        return self.status_of_row(now_ms)

    def status_of_row(self, now_ms: int) -> DestinationStatus:
        """Return what its status is if it bears a server name."""
        if self.retry_last_ts:
            if self.retry_last_ts + (self.retry_interval or 0) > now_ms:
                return DestinationStatus.BACKING_OFF
            return DestinationStatus.RETRY_DUE
        if self.last_successful_stream_ordering is None:
            return DestinationStatus.UNKNOWN
        return DestinationStatus.ONLINE


class DestinationRoom(NamedTuple):
    """One row of `destination_rooms`: the newest event queued for it in a room."""

    room_id: str
    stream_ordering: int


class DestinationFilter(NamedTuple):
    """Which destinations a list holds: those that meet every condition.

    Attributes:
        name_contains: Part of the name, in any case of its ASCII letters. Empty: any.
        name_glob: A pattern for the whole name, in any case of its ASCII letters, in
            which `*` stands for any text and `?` for one character. Empty: any.
        statuses: The statuses to keep. Empty: all.
        failing_for_ms: Keep what has been failing for at least so long, in ms.
        failing_under_ms: Keep what has been failing for less than so long, in ms.
        failures: Keep what is failing, and the last time for one of these reasons: of
            FAILURE_KINDS. Empty: any, and what is not failing.
        only_fitting: Keep only names that a server can have by their length: a run is
            for no others.
    """

    name_contains: str = ""
    name_glob: str = ""
    statuses: frozenset[DestinationStatus] = frozenset()
    failing_for_ms: int | None = None
    failing_under_ms: int | None = None
    failures: frozenset[str] = frozenset()
    only_fitting: bool = False

    @property
    def keeps_all(self) -> bool:
        """Whether there is no condition at all."""
        return self == DestinationFilter()


class Sort(NamedTuple):
    """How a list of destinations is sorted.

    `retry_last_ts` and `retry_interval` that are NULL count as 0; what else is NULL
    comes last in both directions. Equal values are sorted by name, ascending.

    Attributes:
        order_by: What to sort by.
        direction: The direction of `order_by`.
    """

    order_by: DestinationOrder = DestinationOrder.DESTINATION
    direction: Direction = Direction.FORWARDS

    @property
    def is_by_name(self) -> bool:
        """Whether the name alone decides."""
        return self.order_by is DestinationOrder.DESTINATION

    def position_of(self, row: "Destination") -> "Position":
        """Return where a row stands in a list that is sorted so."""
        if self.is_by_name:
            return Position(None, row.destination)
        value: int | None = getattr(row, self.order_by.value)
        if value is None and self.order_by in NULL_IS_ZERO:
            value = 0
        return Position(value, row.destination)


# The orders in which a row that has NULL is shown with 0, and sorted as 0.
NULL_IS_ZERO = frozenset(
    {DestinationOrder.RETRY_LAST_TS, DestinationOrder.RETRY_INTERVAL}
)


class Position(NamedTuple):
    """A place in a sorted list: right behind the row with this value and name.

    Attributes:
        value: What the row has in the column that the list is sorted by; None for NULL,
            and in a list by name.
        destination: The row's name.
    """

    value: int | None
    destination: str


class IndexState(Enum):
    """What there is of an optional index."""

    READY = "ready"

    MISSING = "missing"
