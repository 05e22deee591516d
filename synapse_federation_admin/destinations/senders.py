# SPDX-License-Identifier: Apache-2.0
"""The processes of this homeserver, and how far those are that send.

A federation sender goes through all events, in the order of the stream, and queues
those of ours for the destinations in their rooms. How far it has come is its position:
a row of `federation_stream_position`. What it has not come to is in no queue.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.process import shown_instance
from synapse_federation_admin.storage import instances
from synapse_federation_admin.storage.instances import Instance, InstanceState
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, any_of, where

# A sender that is behind by so long does not keep up. One that has come to an event
# that was received within the same time was running then.
_LONG_MS = 300_000

# How far each sender has come; how many events are behind that, the oldest of them and
# the newest before; and the newest of all.
_POSITIONS = """
    SELECT p.instance_name, p.stream_id,
        (
            SELECT COUNT(*) FROM (
                SELECT 1 FROM events AS e
                WHERE e.stream_ordering > p.stream_id LIMIT ?
            ) AS behind
        ),
        (
            SELECT e.received_ts FROM events AS e
            WHERE e.stream_ordering > p.stream_id
            ORDER BY e.stream_ordering LIMIT 1
        ),
        (
            SELECT e.received_ts FROM events AS e
            WHERE e.stream_ordering <= p.stream_id
            ORDER BY e.stream_ordering DESC LIMIT 1
        ),
        (SELECT MAX(e.stream_ordering) FROM events AS e)
    FROM federation_stream_position AS p WHERE p.type = 'events'
"""


# The newest events that were queued for a destination, the last first.
_QUEUED = """
    SELECT r.stream_ordering, r.destination
    FROM (
        SELECT room_id, stream_ordering FROM events
        ORDER BY stream_ordering DESC LIMIT ?
    ) AS e
    JOIN destination_rooms AS r
        ON r.room_id = e.room_id AND r.stream_ordering = e.stream_ordering
    ORDER BY r.stream_ordering DESC LIMIT ?
"""

# So many events Synapse's sender goes through at once
# (`synapse/federation/sender/__init__.py`).
_AT_ONCE = 100


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Sender:
    """A process that sends to other servers, and how far it has come.

    Attributes:
        instance: Its name; None if nobody sends.
        state: Whether it runs; `nobody` if nobody sends.
        seen_ts: When it was last seen; None if never.
        position: The stream ordering of the event up to which it has queued all; None
            if it has never begun.
        behind_events: How many events behind that there are, of anybody; 10,000 stands
            for so many or more; None as `position`.
        behind_ms: How long ago the oldest of those was received; 0 if there is none;
            None as `position`.
        ahead_events: By how much its position is beyond the newest event: so many
            events to come are not sent; None as `position`.
        is_down: Whether it does not run, as far as is known.
    """

    instance: str | None
    state: InstanceState
    seen_ts: int | None = None
    position: int | None = None
    behind_events: int | None = None
    behind_ms: int | None = None
    ahead_events: int | None = None
    is_down: bool = False

    @property
    def is_behind(self) -> bool:
        """Whether events are not sent though it may run: it is far behind, or ahead."""
        return bool(self.ahead_events) or (self.behind_ms or 0) >= _LONG_MS

    @property
    def stands_still(self) -> bool:
        """Whether events do not leave by it: it does not run, or is far behind."""
        return self.is_down or self.is_behind


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Processes:
    """The processes of this homeserver.

    Attributes:
        instances: Those that the configuration names, and others that were seen; by
            name.
        senders: Those that send; one of the state `nobody` if nobody does.
    """

    instances: Mapping[str, Instance]
    senders: tuple[Sender, ...]

    @property
    def is_sent(self) -> bool:
        """Whether any process sends, according to the configuration."""
        return self.senders[0].instance is not None

    @property
    def not_running(self) -> frozenset[str]:
        """The names of those that do not run, as far as is known."""
        return frozenset(
            name
            for name, instance in self.instances.items()
            if not instance.is_seen
            and not any(s.instance == name and not s.is_down for s in self.senders)
        )


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Position:
    """How far a sender has come: see `Sender`."""

    position: int
    behind_events: int
    behind_ms: int
    ahead_events: int
    # How long ago the last event was received that it has come to; None if not known.
    came_to_ms: int | None


class Senders:
    """Knows the processes of this homeserver; tells the others that this one runs.

    What reads raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables
        # By a clock that does not jump.
        self._began_s = self._due_s = time.monotonic()

    # -- this process ------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write that this process runs, until it is shut down."""
        self._homeserver.before_shutdown("federation_admin_heartbeat", self._end)
        self._homeserver.every(
            "federation_admin_heartbeat",
            instances.BEAT_MS,
            self.beat,
            first_after_ms=0,
            rests=False,
        )

    async def beat(self) -> None:
        """Write that this process runs."""
        now_s = time.monotonic()
        beat_txn = partial(
            instances.beat_txn,
            instance=self._own(
                reactor_late_ms=max(0, int((now_s - self._due_s) * 1000))
            ),
            uptime_ms=int((now_s - self._began_s) * 1000),
            is_postgres=self._homeserver.is_postgres,
        )
        try:
            await self._tables.run("federation_admin_heartbeat", beat_txn)
        finally:
            self._due_s = time.monotonic() + instances.BEAT_MS / 1000

    def _own(self, reactor_late_ms: int = 0) -> Instance:
        sender = self._homeserver.own_sender
        return Instance(
            self._homeserver.instance_name,
            InstanceState.RUNNING,
            is_seen=True,
            module_version=version("synapse-federation-admin"),
            synapse_version=version("matrix-synapse"),
            sends=sender.sends,
            in_memory=sender.in_memory(),
            reactor_late_ms=reactor_late_ms,
        )

    async def _end(self) -> None:
        name = self._homeserver.instance_name
        await self._tables.run(
            "federation_admin_heartbeat", lambda txn: instances.end_txn(txn, name)
        )

    # -- all of them -------------------------------------------------------------------

    async def all(self) -> tuple[Sender, ...]:
        """Return those that send; one of the state `nobody` if nobody does."""
        return (await self.read()).senders

    async def of(self, destination: str) -> Sender:
        """Return who sends to a destination; of the state `nobody` if nobody does."""
        name = self._homeserver.sender_of(destination)
        senders = await self.all()
        return next((s for s in senders if s.instance == name), senders[0])

    async def not_yet_queued(
        self, senders: Sequence[Sender], rooms: Collection[str] | None = None
    ) -> int:
        """Count our events to which one of some senders at least has not come.

        Args:
            senders: Who. What lies between the newest event and the position of one
                that is ahead is not known.
            rooms: Those of these rooms; None: all.

        Returns:
            How many of the next 10,000 events of anybody are ours.
        """
        behind = [s.position or 0 for s in senders if s.behind_events]
        if not behind or rooms == set():
            return 0
        homeserver = self._homeserver
        server = f":{homeserver.server_name}"
        conditions = [
            Sql("SUBSTR(e.sender, LENGTH(e.sender) - ?) = ?", (len(server) - 1, server))
        ]
        if rooms is not None:
            conditions.append(any_of("e.room_id", rooms, homeserver.is_postgres))
        ours = where(conditions)

        def count_txn(txn: LoggingTransaction) -> int:
            txn.execute(
                "SELECT COUNT(*) FROM (SELECT sender, room_id FROM events "  # noqa: S608
                "WHERE stream_ordering > ? ORDER BY stream_ordering LIMIT ?"
                f") AS e {ours.text}",
                (min(behind), limits.EVENTS_COUNTED, *ours.args),
            )
            ((count,),) = txn.fetchall()
            return int(count)

        return await homeserver.run_db_interaction(
            "federation_admin_not_yet_queued", count_txn
        )

    async def queued_position(self, sender: Sender) -> int | None:
        """Return to where the position of a sender can be set back, and loses nothing.

        An event that stands in `destination_rooms` for a destination of its was queued
        by it. It goes through some events at once, so those shortly before it may not
        have been: they are sent again.

        Returns:
            The stream ordering; None if none of the newest events proves any.
        """
        return await self._homeserver.run_db_interaction(
            "federation_admin_queued_position",
            lambda txn: self._queued_txn(txn, sender.instance),
        )

    def _queued_txn(self, txn: LoggingTransaction, instance: str | None) -> int | None:
        txn.execute(_QUEUED, (limits.EVENTS_COUNTED, limits.EVENTS_COUNTED))
        queued = next(
            (
                stream_ordering
                for stream_ordering, destination in txn.fetchall()
                # None: there is one for all.
                if self._homeserver.sender_of(destination) in (instance, None)
            ),
            None,
        )
        if queued is None:
            return None
        txn.execute(
            "SELECT stream_ordering FROM events WHERE stream_ordering < ? "
            "ORDER BY stream_ordering DESC LIMIT 1 OFFSET ?",
            (queued, _AT_ONCE),
        )
        row = txn.fetchone()
        return int(row[0]) if row else 0

    async def read(self) -> Processes:
        """Return all processes; read once for all who ask at the same time."""
        return await self._homeserver.single_flight.run(
            "federation_admin_senders", (), self._read
        )

    async def _read(self) -> Processes:
        homeserver = self._homeserver
        seen, positions = await self._tables.run(
            "federation_admin_senders",
            partial(
                _read_txn,
                now_ts=homeserver.now_ms(),
                newest=homeserver.own_sender.newest_position,
                is_postgres=homeserver.is_postgres,
            ),
        )
        own = homeserver.instance_name
        if own not in seen or seen[own].state is InstanceState.GONE:
            # It has not been written yet, or cannot be.
            seen[own] = self._own()
        senders = homeserver.senders
        if not senders:
            # Where it is configured in the old way, the sender alone knows of itself.
            of_old = sorted((i.seen_ts or 0, i.name) for i in seen.values() if i.sends)
            senders = [name for _, name in of_old[-1:]]
        for name in (*homeserver.other_instances, *senders):
            seen.setdefault(name, Instance(name, sends=name in senders))
        return Processes(
            dict(sorted(seen.items())),
            tuple(_sender(seen[name], positions.get(name)) for name in senders)
            or (_nobody(positions),),
        )


def _read_txn(
    txn: LoggingTransaction, now_ts: int, newest: int, *, is_postgres: bool
) -> tuple[dict[str, Instance], dict[str, _Position]]:
    """Read who was seen, and how far each sender has come.

    Args:
        txn: The transaction.
        now_ts: The time.
        newest: Up to which event this process knows that all are stored.
        is_postgres: Whether it is PostgreSQL.
    """
    seen = instances.select_txn(txn, is_postgres=is_postgres)
    txn.execute(_POSITIONS, (limits.EVENTS_COUNTED,))
    rows: list[tuple[Any, ...]] = txn.fetchall()
    return seen, {
        shown_instance(name): _Position(
            position,
            behind,
            max(0, now_ts - oldest_ts) if oldest_ts else 0,
            # What has reached another process may not have reached this one yet, and
            # the newest event may have been purged.
            max(0, position - max(newest, last or 0)),
            now_ts - came_to_ts if came_to_ts else None,
        )
        for name, position, behind, oldest_ts, came_to_ts, last in rows
    }


def _sender(instance: Instance, position: _Position | None) -> Sender:
    is_down = not instance.is_seen
    if (
        instance.state is InstanceState.NEVER_SEEN
        and position is not None
        and position.came_to_ms is not None
        and 0 <= position.came_to_ms < _LONG_MS
    ):
        # It runs without this module.
        is_down = False
    sender = Sender(instance.name, instance.state, instance.seen_ts, is_down=is_down)
    return _at(sender, position)


def _nobody(positions: Mapping[str, _Position]) -> Sender:
    """Return who sends where nobody does: whoever will, begins where the last was."""
    last = min(positions.values(), key=lambda p: p.position, default=None)
    return _at(Sender(None, InstanceState.NOBODY, is_down=True), last)


def _at(sender: Sender, position: _Position | None) -> Sender:
    if position is None:
        return sender
    return attr.evolve(
        sender,
        position=position.position,
        behind_events=position.behind_events,
        behind_ms=position.behind_ms,
        ahead_events=position.ahead_events,
    )
