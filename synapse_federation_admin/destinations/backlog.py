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

from collections.abc import Iterator, Sequence

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.values import Backlog
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, can_be_stored

# How many names one statement is about on PostgreSQL.
_NAMES = 200

# How many rows one transaction looks at on SQLite: some 10 ms; and for how many of them
# a name counts in which there are none.
_PIECE = 5000
_PER_NAME = 50

# Of `destination_rooms` AS w, joined with `destinations` AS d.
ROOM_WAITS = (
    "(w.stream_ordering > d.last_successful_stream_ordering "
    "OR d.last_successful_stream_ordering IS NULL)"
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Queue:
    """A table in which something waits for destinations.

    Attributes:
        table: Its name.
        key: The column by which an index sorts a destination's rows.
        columns: The smallest value to report; and what counts the rows which Synapse
            will send by itself.
        source: What to read, the table itself AS w.
        waits: Which rows wait.
    """

    table: str
    key: str
    columns: str
    source: str
    waits: str = "TRUE"


ROOMS = Queue(
    "destination_rooms",
    "room_id",
    "MIN(w.stream_ordering), COUNT(d.last_successful_stream_ordering)",
    "destination_rooms w LEFT JOIN destinations d ON d.destination = w.destination",
    ROOM_WAITS,
)
TO_DEVICE = Queue(
    "device_federation_outbox",
    "stream_id",
    "MIN(w.queued_ts), COUNT(*)",
    "device_federation_outbox w",
)
DEVICE_LISTS = Queue(
    "device_lists_outbound_pokes",
    "stream_id",
    "MIN(w.ts), COUNT(*)",
    "device_lists_outbound_pokes w",
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Waiting:
    """What waits in one queue for one destination.

    Attributes:
        count: How many rows.
        least: The smallest value of the column that the queue reports.
        sendable: How many of them Synapse will send by itself.
    """

    count: int = 0
    least: int | None = None
    sendable: int = 0

    def __add__(self, other: "_Waiting") -> "_Waiting":
        values = [v for v in (self.least, other.least) if v is not None]
        return _Waiting(
            self.count + other.count,
            min(values, default=None),
            self.sendable + other.sendable,
        )


_Found = dict[str, _Waiting]

# A name, and the key behind which its rows are still to be read; None: all of them.
_Todo = tuple[str, str | int | None]


class BacklogStore:
    """Reads what waits for named destinations, in pieces that hold nobody up.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def of(self, names: Sequence[str]) -> dict[str, Backlog]:
        """Return what waits for each of some names.

        Args:
            names: The names. They need no row in `destinations`.

        Returns:
            The backlogs by name: every name is there.
        """
        asked = [name for name in dict.fromkeys(names) if can_be_stored(name)]
        read = self._read_groups if self._homeserver.is_postgres else self._read_walk
        rooms = await read(ROOMS, asked)
        to_device = await read(TO_DEVICE, asked)
        device_lists = await read(DEVICE_LISTS, asked)
        return {
            name: _backlog(
                rooms.get(name, _Waiting()),
                to_device.get(name, _Waiting()),
                device_lists.get(name, _Waiting()),
            )
            for name in names
        }

    async def _read_groups(self, queue: Queue, names: Sequence[str]) -> _Found:
        """Read a queue with few statements, on PostgreSQL."""
        found: _Found = {}
        for begin in range(0, len(names), _NAMES):
            statement = select_groups(queue, names[begin : begin + _NAMES])

            def groups_txn(
                txn: LoggingTransaction, statement: Sql = statement
            ) -> _Found:
                return dict(_rows(txn, statement))

            found.update(
                await self._homeserver.run_db_interaction(
                    "federation_admin_backlog", groups_txn
                )
            )
        return found

    async def _read_walk(self, queue: Queue, names: Sequence[str]) -> _Found:
        """Read a queue by its key, in short transactions, on SQLite."""
        found: _Found = {}
        todo: list[_Todo] = [(name, None) for name in reversed(names)]
        while todo:

            def walk_txn(
                txn: LoggingTransaction, todo: list[_Todo] = todo
            ) -> tuple[_Found, list[_Todo]]:
                return _walk(txn, queue, todo)

            done, todo = await self._homeserver.run_db_interaction(
                "federation_admin_backlog", walk_txn
            )
            for name, waiting in done.items():
                found[name] = found.get(name, _Waiting()) + waiting
        return found


def select_groups(queue: Queue, names: Sequence[str]) -> Sql:
    """Select what a `_Waiting` has, for each of some names that something waits for."""
    return _select(
        queue, Sql(f"w.destination IN ({', '.join('?' * len(names))})", tuple(names))
    )


def select_between(queue: Queue, todo: _Todo, upto: str | int) -> Sql:
    """Select the same for one name, of its rows behind one key and up to another."""
    where = _behind(queue, todo)
    return _select(
        queue, Sql(f"{where.text} AND w.{queue.key} <= ?", (*where.args, upto))
    )


def select_end(queue: Queue, todo: _Todo, limit: int) -> Sql:
    """Select the key of the last of a name's next rows, and how many rows those are."""
    where = _behind(queue, todo)
    return Sql(
        f"SELECT MAX({queue.key}), COUNT(*) FROM (SELECT {queue.key} "  # noqa: S608
        f"FROM {queue.table} w WHERE {where.text} ORDER BY {queue.key} LIMIT ?) piece",
        (*where.args, limit),
    )


def _behind(queue: Queue, todo: _Todo) -> Sql:
    name, after = todo
    if after is None:
        return Sql("w.destination = ?", (name,))
    return Sql(f"w.destination = ? AND w.{queue.key} > ?", (name, after))


def _select(queue: Queue, where: Sql) -> Sql:
    return Sql(
        f"SELECT w.destination, COUNT(*), {queue.columns} FROM {queue.source} "  # noqa: S608
        f"WHERE {queue.waits} AND {where.text} GROUP BY w.destination",
        where.args,
    )


def _rows(txn: LoggingTransaction, statement: Sql) -> Iterator[tuple[str, _Waiting]]:
    txn.execute(statement.text, statement.args)
    for name, *values in txn.fetchall():
        yield name, _Waiting(*values)


def _walk(
    txn: LoggingTransaction, queue: Queue, todo: Sequence[_Todo]
) -> tuple[_Found, list[_Todo]]:
    """Read the next rows of a queue.

    Args:
        txn: The transaction.
        queue: The queue.
        todo: The names to read, the next one last.

    Returns:
        What was found, and what is still to do.
    """
    found: _Found = {}
    rest = list(todo)
    left = _PIECE
    while rest and left > 0:
        next_one = rest.pop()
        end = select_end(queue, next_one, left)
        txn.execute(end.text, end.args)
        ((upto, count),) = txn.fetchall()
        if count:
            for name, waiting in _rows(txn, select_between(queue, next_one, upto)):
                found[name] = found.get(name, _Waiting()) + waiting
        if count == left:
            rest.append((next_one[0], upto))
        left -= count + _PER_NAME
    return found, rest


def _backlog(rooms: _Waiting, to_device: _Waiting, device_lists: _Waiting) -> Backlog:
    return Backlog(
        rooms=rooms.count,
        oldest_stream_ordering=rooms.least,
        can_catch_up=rooms.sendable == rooms.count,
        to_device_messages=to_device.count,
        oldest_to_device_ts=to_device.least,
        device_list_updates=device_lists.count,
    )
