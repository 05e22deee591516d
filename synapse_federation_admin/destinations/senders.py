# SPDX-License-Identifier: Apache-2.0
"""The processes of this homeserver, and how far those are that send.

A federation sender goes through all events, in the order of the stream, and queues
those of ours for the destinations in their rooms. How far it has come is its position:
a row of `federation_stream_position`. What it has not come to is in no queue.
"""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import __version__, limits
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.process import SYNAPSE_VERSION, shown_instance
from synapse_federation_admin.storage import instances
from synapse_federation_admin.storage.instances import Instance, InstanceState
from synapse_federation_admin.storage.schema import Tables

# For how long what was read is told to others who only look on.
_KEEP_MS = 5000

# A sender that is behind by so long does not keep up.
_LONG_MS = 300_000

# One that runs has come to an event long before it is so old.
_WAITS_MS = 45_000

# By so much later than a sign of life an event has to be received to be another one:
# the clocks of Synapse and of the database may differ.
_LATER_MS = 60_000

# How far each sender has come; how many events are behind that, the oldest of them and
# the newest before; and the newest of all. Of what is fetched for the sake of other
# events only (outliers), and of what is rejected, Synapse does not tell its senders.
_POSITIONS = """
    SELECT p.instance_name, p.stream_id,
        (
            SELECT COUNT(*) FROM (
                SELECT e.outlier, e.rejection_reason FROM events AS e
                WHERE e.stream_ordering > p.stream_id
                ORDER BY e.stream_ordering LIMIT ?
            ) AS behind WHERE NOT outlier AND rejection_reason IS NULL
        ),
        (
            SELECT MIN(received_ts) FROM (
                SELECT e.outlier, e.rejection_reason, e.received_ts FROM events AS e
                WHERE e.stream_ordering > p.stream_id
                ORDER BY e.stream_ordering LIMIT ?
            ) AS behind WHERE NOT outlier AND rejection_reason IS NULL
        ),
        (
            SELECT e.received_ts FROM events AS e
            WHERE e.stream_ordering <= p.stream_id
            ORDER BY e.stream_ordering DESC LIMIT 1
        ),
        (SELECT MAX(e.stream_ordering) FROM events AS e)
    FROM federation_stream_position AS p WHERE p.type = 'events'
"""


# The last number that an event was given on PostgreSQL, also if it was not stored. NULL
# if Synapse has no such sequence.
_LAST_GIVEN = "SELECT pg_sequence_last_value(to_regclass('events_stream_seq'))"


class Sender(NamedTuple):
    """A process that sends to other servers, and how far it has come.

    Attributes:
        instance: Its name; None if nobody sends.
        state: Whether it runs; `nobody` if nobody sends.
        seen_ts: When it was last seen; None if never.
        position: The stream ordering of the event up to which it has queued all; None
            if it has never begun.
        behind_events: How many events behind that there are, of anybody; 10,000 stands
            for so many or more; None if Synapse has written nothing of it.
        behind_ms: How long ago the oldest of those was received; 0 if there is none;
            None as `behind_events`.
        ahead_events: By how much its position is beyond the newest event: so many
            events to come are not sent; None as `behind_events`.
        came_to_ms: How long ago the last event was received that it has come to; None
            if that is not known.
        is_down: Whether it is known that it does not run.
        is_late: Whether it is known that it does not run as it should: it has not been
            seen for long, or its reactor is late.
        reactor_late_ms: How late its reactor was when it was last seen; None: never.
    """

    instance: str | None
    state: InstanceState = InstanceState.NEVER_SEEN
    seen_ts: int | None = None
    position: int | None = None
    behind_events: int | None = None
    behind_ms: int | None = None
    ahead_events: int | None = None
    came_to_ms: int | None = None
    is_down: bool = False
    is_late: bool = False
    reactor_late_ms: int | None = None

    @property
    def is_waited_for(self) -> bool:
        """Whether an event has been waiting for longer than for one that runs."""
        return (self.behind_ms or 0) >= _WAITS_MS

    @property
    def sends_nothing(self) -> bool:
        """Whether it is known that nothing leaves: it does not run, or is ahead."""
        return self.is_down or bool(self.ahead_events)

    @property
    def stands_still(self) -> bool:
        """Whether events do not leave by it: or not yet, as it is far behind."""
        return self.sends_nothing or (self.behind_ms or 0) >= _LONG_MS


class Processes(NamedTuple):
    """The processes of this homeserver.

    Attributes:
        instances: Those that the configuration names, and others that were seen; by
            name.
        senders: Those that send; one of the state `nobody` if nobody does.
    """

    instances: Mapping[str, Instance]
    senders: tuple[Sender, ...]

    def sender(self, name: str | None) -> Sender:
        """Return the one of a name; where nobody has it, what there is."""
        return next((s for s in self.senders if s.instance == name), self.senders[0])

    @property
    def is_sent(self) -> bool:
        """Whether any process sends, as far as is known."""
        first = self.senders[0]
        return first.instance is not None or not first.is_down

    @property
    def not_running(self) -> frozenset[str]:
        """The names of those of which it is known that they do not run.

        One that was never seen may run without this module.
        """
        is_down = {sender.instance: sender.is_down for sender in self.senders}
        return frozenset(
            name
            for name, instance in self.instances.items()
            if is_down.get(name, instance.state is InstanceState.GONE)
        )


class Senders:
    """Knows the processes of this homeserver; tells the others that this one runs.

    What reads raises what the database raises.

    Attributes:
        lately: All processes, as they were some seconds ago at most: for those who look
            on, and may be many.
    """

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self.lately = Costly(
            homeserver,
            "federation_admin_senders",
            self._read,
            keep_ms=_KEEP_MS,
            waits_always=True,
        )
        # By a clock that does not jump.
        self._began_s = time.monotonic()
        # When it is to write next; None before the first time, when much is begun.
        self._due_s: float | None = None
        # When this process has last written that it runs, and since when it has done so
        # without a break.
        self._written_s = self._steady_s = self._began_s

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
        late_s = 0 if self._due_s is None else now_s - self._due_s
        beat_txn = partial(
            instances.beat_txn,
            instance=await self._own(reactor_late_ms=max(0, int(late_s * 1000))),
            uptime_ms=int((now_s - self._began_s) * 1000),
        )
        try:
            await self._tables.run("federation_admin_heartbeat", beat_txn)
            if self._written_ago_ms() >= _WAITS_MS:
                self._steady_s = time.monotonic()
            self._written_s = time.monotonic()
        finally:
            self._due_s = time.monotonic() + instances.BEAT_MS / 1000

    def _written_ago_ms(self) -> float:
        return (time.monotonic() - self._written_s) * 1000

    def _could_all_write(self) -> bool:
        """Tell whether others that run must have written that meanwhile.

        They may not have when this process has just started, perhaps they with it, or
        when the database has been away.
        """
        steady_ms = (time.monotonic() - self._steady_s) * 1000
        return steady_ms >= _WAITS_MS > self._written_ago_ms()

    async def _own(self, reactor_late_ms: int = 0) -> Instance:
        homeserver = self._homeserver
        return Instance(
            homeserver.instance_name,
            InstanceState.RUNNING,
            module_version=__version__,
            synapse_version=SYNAPSE_VERSION,
            sends=homeserver.sends,
            in_memory=await homeserver.in_memory(),
            reactor_late_ms=reactor_late_ms,
        )

    async def _end(self) -> None:
        name = self._homeserver.instance_name
        await self._tables.run(
            "federation_admin_heartbeat", lambda txn: instances.end_txn(txn, name)
        )

    # -- all of them -------------------------------------------------------------------

    async def of(self, destination: str) -> Sender:
        """Return who sends to a destination; of the state `nobody` if nobody does."""
        sender_of = self._homeserver.sender_of
        return (await self.read()).sender(sender_of(destination))

    async def unsent(self, destinations: Iterable[str]) -> set[str]:
        """Return those of some destinations to whom it is known that nothing leaves."""
        found, sender_of = set(destinations), self._homeserver.sender_of
        # What runs is told as it was some seconds ago; that one does not, as it is.
        for read in (self.lately.get, self.read):
            if found and (processes := await read()):
                found = {
                    d for d in found if processes.sender(sender_of(d)).sends_nothing
                }
        return found

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
                newest=homeserver.newest_position,
            ),
        )
        own = homeserver.instance_name
        known = seen.get(own)
        if known is None or not (
            known.state is InstanceState.RUNNING or known.is_reactor_late
        ):
            # It has not been written yet, or cannot be.
            seen[own] = await self._own()
        senders = homeserver.senders
        if not senders:
            # Where it is configured in the old way, the sender alone knows of itself.
            of_old = sorted((i.seen_ts or 0, i.name) for i in seen.values() if i.sends)
            senders = [name for _, name in of_old[-1:]]
        for name in (*homeserver.other_instances, *senders):
            seen.setdefault(name, Instance(name, sends=name in senders))
        return Processes(
            dict(sorted(seen.items())),
            tuple(
                _judged(
                    positions.get(name, Sender(name)),
                    seen[name],
                    homeserver.now_ms(),
                    could_write=self._could_all_write(),
                )
                for name in senders
            )
            or (_nobody(positions.values(), may_run=homeserver.has_other_processes),),
        )


def _read_txn(
    txn: LoggingTransaction, now_ts: int, newest: int
) -> tuple[dict[str, Instance], dict[str, Sender]]:
    """Read who was seen, and how far each sender has come, by name.

    Args:
        txn: The transaction.
        now_ts: The time.
        newest: Up to which event this process knows that all are stored.
    """
    seen = instances.select_txn(txn)
    txn.execute(_POSITIONS, (limits.EVENTS_COUNTED, limits.EVENTS_COUNTED))
    rows: list[tuple[Any, ...]] = txn.fetchall()
    given = 0
    if on_postgres(txn):
        # A sender may have come to the number of an event that was rolled back.
        txn.execute(_LAST_GIVEN)
        given = txn.fetchall()[0][0] or 0
    return seen, {
        name: Sender(
            name,
            # Synapse writes -1 for who has never begun.
            position=position if position >= 0 else None,
            behind_events=behind,
            behind_ms=max(0, now_ts - oldest_ts) if oldest_ts else 0,
            # What has reached another process may not have reached this one yet, and
            # the newest event may have been purged.
            ahead_events=max(0, position - max(newest, last or 0, given)),
            came_to_ms=now_ts - came_to_ts if came_to_ts else None,
        )
        for name, position, behind, oldest_ts, came_to_ts, last in (
            (shown_instance(row[0]), *row[1:]) for row in rows
        )
    }


def _judged(
    sender: Sender, instance: Instance, now_ms: int, *, could_write: bool
) -> Sender:
    """Return a sender: down, if it is known that it does not run.

    One without this module, or with an earlier version of it, writes no sign of life.
    It may run, as long as no event waits for it.

    Args:
        sender: How far it has come.
        instance: What is known of the process.
        now_ms: The time, in ms since the epoch.
        could_write: Whether it must have written meanwhile that it runs.
    """
    is_late = instance.state is InstanceState.LATE
    if instance.state is InstanceState.NEVER_SEEN:
        is_down = sender.behind_ms is None or sender.is_waited_for
    elif instance.state is not InstanceState.GONE or _has_gone_on(
        sender, instance, now_ms
    ):
        is_down = False
    else:
        is_down = could_write or sender.is_waited_for
    return sender._replace(
        state=instance.state,
        seen_ts=instance.seen_ts,
        is_down=is_down,
        is_late=is_late and (could_write or instance.is_reactor_late),
        reactor_late_ms=instance.reactor_late_ms,
    )


def _has_gone_on(sender: Sender, instance: Instance, now_ms: int) -> bool:
    """Tell whether a sender has come to events of after its last sign of life."""
    if sender.came_to_ms is None or instance.seen_ts is None:
        return False
    return 0 <= sender.came_to_ms < now_ms - instance.seen_ts - _LATER_MS


def _nobody(senders: Iterable[Sender], *, may_run: bool) -> Sender:
    """Return who sends where nobody does: whoever will, begins where the last was.

    Args:
        senders: How far those have come who did.
        may_run: Whether there are other processes. Where the sender is configured in
            the old way, one without this module may be it.
    """
    last = min(senders, key=lambda sender: sender.position or 0, default=Sender(None))
    is_down = not may_run or last.behind_ms is None or last.is_waited_for
    return last._replace(instance=None, state=InstanceState.NOBODY, is_down=is_down)
