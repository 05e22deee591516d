# SPDX-License-Identifier: Apache-2.0
"""Reads what waits for named destinations.

What waits, as Synapse's federation sender takes it (`synapse/federation/sender/
per_destination_queue.py` and the stores that it asks):

- Rooms: a row of `destination_rooms` is written when an event is queued, and stays. It
  waits while its stream ordering is above the destination's last successful one. Where
  that is NULL, Synapse does not know what is missing, and never catches up.
- To-device messages: rows of `device_federation_outbox`, deleted once delivered.
- Device lists: rows of `device_lists_outbound_pokes`, deleted once delivered. The
  column `sent` is from older times: the sender does not look at it.
"""

import json
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, can_be_stored, in_pieces, marks

# How many names one transaction is about.
_NAMES = 200

# Which rows of `destination_rooms` AS w wait, with the row d of their destination.
WAITS = (
    "(w.stream_ordering > d.last_successful_stream_ordering "
    "OR d.last_successful_stream_ordering IS NULL)"
)

# Each counts what waits for every destination w, says what the oldest of it is, and how
# many rows of it Synapse will send by itself.
_ROOMS = f"""
    SELECT w.destination, COUNT(*), MIN(w.stream_ordering),
        COUNT(d.last_successful_stream_ordering)
    FROM destination_rooms AS w
    LEFT JOIN destinations AS d ON d.destination = w.destination
    WHERE {WAITS}
"""  # noqa: S608
_TO_DEVICE = """
    SELECT w.destination, COUNT(*), MIN(w.queued_ts), COUNT(*)
    FROM device_federation_outbox AS w WHERE TRUE
"""
_DEVICE_LISTS = """
    SELECT w.destination, COUNT(*), MIN(w.ts), COUNT(*)
    FROM device_lists_outbound_pokes AS w WHERE TRUE
"""

# What is first in each of these queues. An event that is there no more is not sent.
_NEXT = f"""
    SELECT n.destination, d.last_successful_stream_ordering,
        EXISTS (
            SELECT 1 FROM destination_rooms AS w
            WHERE w.destination = n.destination AND {WAITS}
            AND EXISTS (
                SELECT 1 FROM events AS e WHERE e.stream_ordering = w.stream_ordering
            )
        ),
        (
            SELECT MIN(w.stream_id) FROM device_federation_outbox AS w
            WHERE w.destination = n.destination
        ),
        (
            SELECT MIN(w.stream_id) FROM device_lists_outbound_pokes AS w
            WHERE w.destination = n.destination
        )
    FROM (SELECT key AS destination FROM json_each(?)) AS n
    LEFT JOIN destinations AS d ON d.destination = n.destination
"""  # noqa: S608


class CatchUp(Enum):
    """Whether Synapse sends by itself the events that a destination has missed."""

    POSSIBLE = "possible"

    # Nothing has ever been delivered to it: there is nothing to catch up from.
    IMPOSSIBLE = "impossible"


class Backlog(NamedTuple):
    """What waits for one destination.

    Attributes:
        rooms: Rooms with an event that it has not got.
        oldest_stream_ordering: The oldest of those rooms' newest events; None if there
            is none.
        oldest_event_ts: When that event was received, which waits at least since; None
            if there is none, or if it is gone.
        catch_up: `impossible`: no event was delivered yet; Synapse sends none by
            itself.
        to_device_messages: To-device messages that wait, among them the keys of
            encrypted messages.
        oldest_to_device_ts: When the oldest of them was queued; None if there is none.
        device_list_updates: Changes of local users' devices that wait.
    """

    rooms: int = 0
    oldest_stream_ordering: int | None = None
    oldest_event_ts: int | None = None
    catch_up: CatchUp = CatchUp.POSSIBLE
    to_device_messages: int = 0
    oldest_to_device_ts: int | None = None
    device_list_updates: int = 0

    def never_delivered(self, unsendable: int) -> int:
        """Return on how many rooms Synapse does not catch up, beside some."""
        can_catch_up = self.catch_up is CatchUp.POSSIBLE
        return 0 if can_catch_up else max(self.rooms - unsendable, 0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not (self.rooms or self.to_device_messages or self.device_list_updates)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Waiting:
    """What Synapse will send to a destination next: by itself, once it is woken.

    Attributes:
        delivered: Its `last_successful_stream_ordering`.
        events: Whether events wait that Synapse will send.
        to_device: The stream ID of the first to-device message; None if none waits.
        device_lists: That of the first change of a device; None if none waits.
        perhaps: Whether events wait that only a sender sends that has them in memory:
            no event was ever delivered.
    """

    delivered: int | None = None
    events: bool = False
    to_device: int | None = None
    device_lists: int | None = None
    perhaps: bool = False

    @property
    def is_any(self) -> bool:
        """Whether there is anything."""
        return self.events or (self.to_device, self.device_lists) != (None, None)

    @property
    def is_nothing(self) -> bool:
        """Whether it is known that nothing is sent."""
        return not self.is_any and not self.perhaps

    def was_taken(self, now: "Waiting") -> bool:
        """Tell from what waits now whether the destination has taken any of this.

        Of changes of devices that is not known: Synapse deletes old ones that were not
        taken.
        """
        has_passed = self.to_device is not None and (
            now.to_device is None or now.to_device > self.to_device
        )
        return has_passed or (now.delivered or 0) > (self.delivered or 0)


def waiting_txn(txn: LoggingTransaction, names: Sequence[str]) -> dict[str, Waiting]:
    """Return what is sent next to each of some destinations."""
    txn.execute(_NEXT, (json.dumps(dict.fromkeys(names)),))
    return {
        name: Waiting(
            delivered,
            bool(events) and delivered is not None,
            to_device,
            device_lists,
            perhaps=bool(events) and delivered is None,
        )
        for name, delivered, events, to_device, device_lists in txn.fetchall()
    }


# Of the oldest rooms that wait, those whose event is not there any more.
_UNSENDABLE = f"""
    SELECT COUNT(*) FROM (
        SELECT w.stream_ordering
        FROM destination_rooms AS w
        LEFT JOIN destinations AS d ON d.destination = w.destination
        WHERE w.destination = ? AND {WAITS}
        ORDER BY w.stream_ordering LIMIT ?
    ) AS waiting
    WHERE NOT EXISTS (
        SELECT 1 FROM events AS e WHERE e.stream_ordering = waiting.stream_ordering
    )
"""  # noqa: S608

# All names that something waits for, and that have no row.
UNLISTED = """(
    SELECT destination FROM (
        SELECT destination FROM device_federation_outbox
        UNION SELECT destination FROM device_lists_outbound_pokes
    ) AS w
    WHERE NOT EXISTS (
        SELECT 1 FROM destinations AS d WHERE d.destination = w.destination
    )
)"""


def unlisted_txn(txn: LoggingTransaction, after: str, limit: int) -> list[str]:
    """Return names that something waits for and that have no row, behind one."""
    txn.execute(
        f"SELECT destination FROM {UNLISTED} AS u WHERE destination > ? "  # noqa: S608
        "ORDER BY destination LIMIT ?",
        (after, limit),
    )
    return [name for (name,) in txn.fetchall()]


class BacklogStore:
    """Reads what waits for named destinations."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def of(self, names: Sequence[str]) -> dict[str, Backlog]:
        """Return what waits for each of some names.

        Args:
            names: The names. They need no row in `destinations`.

        Returns:
            The backlogs by name: every name is there.

        Raises:
            Exception: Whatever the database raises.
        """
        found = {name: Backlog() for name in names}
        asked = [name for name in found if can_be_stored(name)]
        for some in in_pieces(asked, _NAMES):
            found |= await self._homeserver.run_db_interaction(
                "federation_admin_backlog", partial(_backlogs_txn, names=some)
            )
        return found

    async def unsendable(self, name: str) -> int:
        """Count the rooms that wait for a destination and whose event is gone.

        So it is where history was purged, or a room deleted. Synapse wakes the
        destination for them again and again, and has nothing to send: see
        `_get_catch_up_room_event_ids_txn` in Synapse's store.

        Returns:
            How many of the oldest 10,000 that wait.

        Raises:
            Exception: Whatever the database raises.
        """
        if not can_be_stored(name):
            return 0

        unsendable = Sql(_UNSENDABLE, (name, limits.WAITING_CHECKED))
        ((count,),) = await self._homeserver.run_db_interaction(
            "federation_admin_unsendable", unsendable.select_txn
        )
        return int(count)


def mend_unsendable(name: str) -> str:
    """Return the statement that deletes what can never be sent to a server.

    What is deleted is what waits and `_get_catch_up_room_event_ids_txn` of Synapse's
    store never finds. A row that Synapse gives a newer event meanwhile stays: on
    PostgreSQL the number of that is looked for anew among those that were found.
    """
    quoted = name.replace("'", "''")
    return (
        f"DELETE FROM destination_rooms WHERE destination = '{quoted}'\n"  # noqa: S608
        "AND stream_ordering IN (SELECT r.stream_ordering\n"
        "FROM destination_rooms AS r\n"
        "LEFT JOIN destinations AS d ON d.destination = r.destination\n"
        "LEFT JOIN events AS e ON e.stream_ordering = r.stream_ordering\n"
        f"WHERE r.destination = '{quoted}' AND e.stream_ordering IS NULL\n"
        "AND r.stream_ordering > COALESCE(d.last_successful_stream_ordering, 0));"
    )


def _backlogs_txn(txn: LoggingTransaction, names: Sequence[str]) -> dict[str, Backlog]:
    def read(what: str) -> dict[str, tuple[int, int | None, int]]:
        txn.execute(
            f"{what} AND w.destination IN ({marks(names)}) GROUP BY w.destination",
            tuple(names),
        )
        return {name: (count, oldest, sent) for name, count, oldest, sent in txn}

    rooms, to_device, device_lists = map(read, (_ROOMS, _TO_DEVICE, _DEVICE_LISTS))
    none = (0, None, 0)
    received: dict[int | None, int | None] = {}
    if oldest := sorted({oldest for _, oldest, _ in rooms.values() if oldest}):
        txn.execute(
            "SELECT stream_ordering, received_ts FROM events "  # noqa: S608
            f"WHERE stream_ordering IN ({marks(oldest)})",
            tuple(oldest),
        )
        received = dict(txn)
    backlogs = {}
    for name in names:
        room_count, oldest_stream_ordering, sendable = rooms.get(name, none)
        message_count, oldest_ts, _ = to_device.get(name, none)
        update_count, _, _ = device_lists.get(name, none)
        can_catch_up = sendable == room_count
        backlogs[name] = Backlog(
            rooms=room_count,
            oldest_stream_ordering=oldest_stream_ordering,
            oldest_event_ts=received.get(oldest_stream_ordering),
            catch_up=CatchUp.POSSIBLE if can_catch_up else CatchUp.IMPOSSIBLE,
            to_device_messages=message_count,
            oldest_to_device_ts=oldest_ts,
            device_list_updates=update_count,
        )
    return backlogs
