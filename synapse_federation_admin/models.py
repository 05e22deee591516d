# SPDX-License-Identifier: Apache-2.0
"""The values that travel between the rooms: frozen, slotted, with their units.

A name that ends in `_ts` is a time in ms since the Unix epoch, one that ends in `_ms`
a duration in ms.
"""

from enum import Enum
from typing import Generic, TypeVar

import attr

T = TypeVar("T")


class DestinationOrder(Enum):
    """The columns of `destinations` by which a list may be sorted."""

    DESTINATION = "destination"
    RETRY_LAST_TS = "retry_last_ts"
    RETRY_INTERVAL = "retry_interval"
    FAILURE_TS = "failure_ts"
    LAST_SUCCESSFUL_STREAM_ORDERING = "last_successful_stream_ordering"


class Direction(Enum):
    """The two directions of a sorted list, by their names in the API."""

    FORWARDS = "f"
    BACKWARDS = "b"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Destination:
    """One row of Synapse's table `destinations`, as the table has it."""

    destination: str

    # When Synapse last tried and failed. None or 0: it is not backing off.
    retry_last_ts: int | None

    # How long after `retry_last_ts` Synapse waits before it tries again, in ms.
    retry_interval: int | None

    # When the present run of failures began. None: it is not failing.
    failure_ts: int | None

    # Up to which event of ours it has everything. None: nothing delivered yet.
    last_successful_stream_ordering: int | None

    @property
    def is_failing(self) -> bool:
        """Whether Synapse takes this destination as failing.

        Synapse's own test is whether `retry_last_ts` is set (`synapse/storage/
        databases/main/transactions.py`, `_get_destination_retry_timings`).
        """
        return bool(self.retry_last_ts)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class DestinationRoom:
    """One row of `destination_rooms`: the newest event queued for it in a room."""

    room_id: str
    stream_ordering: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Page(Generic[T]):
    """Some rows of a list, and how many the whole list has."""

    rows: list[T]
    total: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class DestinationQuery:
    """What v1's list of destinations may be asked.

    Attributes:
        offset: How many rows to leave out at the start.
        limit: The most rows to return.
        order_by: The column to sort by; equal rows are sorted by name, ascending.
        direction: The direction of `order_by`.
        name_contains: Keep the destinations whose name contains this, in any case of
            its ASCII letters. Empty: keep all.
    """

    offset: int = 0
    limit: int = 100
    order_by: DestinationOrder = DestinationOrder.DESTINATION
    direction: Direction = Direction.FORWARDS
    name_contains: str = ""


class ResetOutcome(Enum):
    """What came of a request to reset a destination's retry timings."""

    RESET = "reset"
    NOT_FAILING = "not_failing"
    UNKNOWN_DESTINATION = "unknown_destination"
