# SPDX-License-Identifier: Apache-2.0
"""Finds the failing servers that matter most: to most local users, or for what waits.

There is no index by which the database could find them, so all failing destinations and
all rooms of local users are looked through, in pieces, in the background. That is done
only for somebody who asks, and what was found is told to all for some time.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from heapq import nlargest
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Backlog, BacklogStore
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.destinations.query import DESTINATION_COLUMNS
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.sql import FAILING, any_of

T = TypeVar("T")

# How old what was found may become at least.
_KEEP_MS = 60_000

# How many names one transaction goes through, how many rooms, and how many members.
_NAMES = 10_000
_ROOMS = 500
_MEMBERS = 20_000

# Of how many destinations one transaction counts the local users.
_COUNTED = 10

_SERVER = "SUBSTR(state_key, INSTR(state_key, ':') + 1)"
_SERVER_ON_POSTGRES = "SUBSTRING(state_key FROM POSITION(':' IN state_key) + 1)"

# What of `destinations` AS d fails in a part of the table, and how many rooms and
# to-device messages wait for it.
_WAITING = f"""
    SELECT d.destination,
        (
            SELECT COUNT(*) FROM destination_rooms AS w
            WHERE w.destination = d.destination
            AND (
                w.stream_ordering > d.last_successful_stream_ordering
                OR d.last_successful_stream_ordering IS NULL
            )
        ) + (
            SELECT COUNT(*) FROM device_federation_outbox AS w
            WHERE w.destination = d.destination
        )
    FROM destinations AS d
    WHERE {FAILING} AND d.destination > ? AND d.destination <= ?
"""  # noqa: S608

# The next rooms with local users, how many of them there are, and how many members.
_LOCAL_ROOMS = """
    SELECT l.room_id, l.users, COALESCE(s.joined_members, 0)
    FROM (
        SELECT room_id, COUNT(*) AS users FROM local_current_membership
        WHERE membership = 'join' AND room_id > ?
        GROUP BY room_id ORDER BY room_id LIMIT ?
    ) AS l
    LEFT JOIN room_stats_current AS s ON s.room_id = l.room_id
    ORDER BY l.room_id
"""


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Affecting:
    """A failing destination, and whom and what that affects.

    Attributes:
        row: Its row.
        shared_rooms: Rooms in which its users and local users are joined.
        local_users: Local users in those rooms.
        backlog: What waits for it.
        last_failure: Why a real request to it last failed; None if not recorded.
    """

    row: Destination
    shared_rooms: int
    local_users: int
    backlog: Backlog
    last_failure: RecordedFailure | None

    @property
    def waiting(self) -> int:
        """How many rooms and to-device messages wait for it."""
        return self.backlog.rooms + self.backlog.to_device_messages


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Attention:
    """What was found.

    Attributes:
        as_of_ts: When looking for it began.
        is_complete: Whether everything was looked at: not more than there is room for.
        by_users: Those that affect most local users, the most first.
        by_waiting: Those for which most waits, the most first.
    """

    as_of_ts: int
    is_complete: bool
    by_users: tuple[Affecting, ...]
    by_waiting: tuple[Affecting, ...]


class AttentionStore:
    """Finds the failing servers that matter most."""

    def __init__(
        self,
        homeserver: Homeserver,
        backlog: BacklogStore,
        last_failures: Callable[
            [Sequence[str]], Awaitable[Mapping[str, RecordedFailure]]
        ],
    ) -> None:
        """Look for nothing yet.

        Args:
            homeserver: The homeserver.
            backlog: Knows what waits.
            last_failures: Returns why requests to destinations last failed, where that
                is known.
        """
        self._homeserver = homeserver
        self._backlog = backlog
        self._last_failures = last_failures
        self._found = Costly(
            homeserver, "federation_admin_attention", self._find, keep_ms=_KEEP_MS
        )

    async def get(self) -> Attention | None:
        """Return what was found last; None if nothing is known yet.

        What is too old is looked for anew, in the background; who asks waits for it a
        moment only.

        Raises:
            Exception: Whatever the database raises.
        """
        return await self._found.get()

    async def _find(self) -> Attention:
        began_ms = self._homeserver.now_ms()
        failing, waiting, has_all_names = await self._failing()
        rooms, users_in, has_all_rooms = await self._shared(failing)
        is_postgres = self._homeserver.is_postgres

        def candidates_txn(txn: LoggingTransaction) -> list[Destination]:
            # On this thread: with many it takes a while.
            names = {*_candidates(rooms, users_in), *waiting}
            these = any_of("destination", names, is_postgres)
            txn.execute(
                f"SELECT {DESTINATION_COLUMNS} FROM destinations "  # noqa: S608
                f"WHERE {FAILING} AND {these.text}",
                these.args,
            )
            return [Destination(*row) for row in txn.fetchall()]

        rows = await self._run(candidates_txn)
        names = [row.destination for row in rows]
        users = await self._count_users({name: rooms.get(name, []) for name in names})
        backlogs = await self._backlog.of(names)
        failures = await self._last_failures(names)
        found = [
            Affecting(
                row,
                len(rooms.get(row.destination, ())),
                users[row.destination],
                backlogs[row.destination],
                failures.get(row.destination),
            )
            for row in rows
        ]
        return Attention(
            began_ms,
            has_all_names and has_all_rooms,
            _most(found, lambda each: (each.local_users, each.waiting)),
            _most(found, lambda each: (each.waiting, each.local_users)),
        )

    async def _failing(self) -> tuple[set[str], list[str], bool]:
        """Return what fails, for which of that most waits, and whether that is all."""
        failing: set[str] = set()
        most: list[tuple[int, str]] = []
        after: str | None = ""
        while after is not None:
            found, after = await self._run(partial(_failing_txn, after=after))
            failing.update(name for name, _ in found)
            waiting = [(count, name) for name, count in found if count]
            most = nlargest(limits.TOLD_ATTENTION, [*most, *waiting])
            if len(failing) >= limits.ATTENTION_NAMES:
                break
        return failing, [name for _, name in most], after is None

    async def _shared(
        self, failing: Collection[str]
    ) -> tuple[dict[str, list[str]], dict[str, int], bool]:
        """Find the rooms that what fails shares with local users.

        Returns:
            The rooms of each, how many local users are in each room, and whether that
            is all.
        """
        rooms: dict[str, list[str]] = {}
        users_in: dict[str, int] = {}
        left = limits.ATTENTION_PAIRS
        after: str | None = "" if failing else None
        while after is not None and left > 0:
            found, after = await self._run(
                partial(
                    _rooms_txn,
                    after=after,
                    failing=failing,
                    is_postgres=self._homeserver.is_postgres,
                )
            )
            for room_id, (users, servers) in found.items():
                users_in[room_id] = users
                left -= len(servers)
                for server in servers:
                    rooms.setdefault(server, []).append(room_id)
        return rooms, users_in, after is None

    async def _count_users(self, rooms: Mapping[str, list[str]]) -> dict[str, int]:
        """Count the local users in the rooms of each destination."""
        counts = dict.fromkeys(rooms, 0)
        names = [name for name, found in rooms.items() if found]
        is_postgres = self._homeserver.is_postgres

        def count_txn(txn: LoggingTransaction, some: Sequence[str]) -> list[int]:
            found = []
            for name in some:
                these = any_of("room_id", rooms[name], is_postgres)
                txn.execute(
                    "SELECT COUNT(DISTINCT user_id) FROM local_current_membership "  # noqa: S608
                    f"WHERE membership = 'join' AND {these.text}",
                    these.args,
                )
                found += [count for (count,) in txn]
            return found

        for begin in range(0, len(names), _COUNTED):
            some = names[begin : begin + _COUNTED]
            found = await self._run(partial(count_txn, some=some))
            counts.update(zip(some, found, strict=True))
        return counts

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_attention", func
        )


def _most(
    found: Sequence[Affecting], key: Callable[[Affecting], tuple[int, int]]
) -> tuple[Affecting, ...]:
    """Return those with the most that have anything; equal ones by name."""
    some = sorted(
        (each for each in found if any(key(each))),
        key=lambda each: each.row.destination,
    )
    return tuple(sorted(some, key=key, reverse=True)[: limits.TOLD_ATTENTION])


def _candidates(
    rooms: Mapping[str, list[str]], users_in: Mapping[str, int]
) -> set[str]:
    """Return which destinations may affect most local users.

    How many they affect lies between those in the largest of their rooms and the sum of
    those in all of them: the first by each of the two.
    """
    found: set[str] = set()
    for bound in (max, sum):
        found.update(
            nlargest(
                2 * limits.TOLD_ATTENTION,
                rooms,
                key=lambda name: bound(map(users_in.__getitem__, rooms[name])),
            )
        )
    return found


def _failing_txn(
    txn: LoggingTransaction, after: str
) -> tuple[list[tuple[str, int]], str | None]:
    """Read what fails of the next names, and how much waits for it.

    Returns:
        Names and counts, and the last name that was looked at; None if there are no
        more.
    """
    txn.execute(
        "SELECT MAX(destination), COUNT(*) FROM (SELECT destination FROM destinations "
        "WHERE destination > ? ORDER BY destination LIMIT ?) AS next",
        (after, _NAMES),
    )
    ((upto, count),) = txn.fetchall()
    if upto is None:
        return [], None
    txn.execute(_WAITING, (after, upto))
    return txn.fetchall(), upto if count == _NAMES else None


def _rooms_txn(
    txn: LoggingTransaction, *, after: str, failing: Collection[str], is_postgres: bool
) -> tuple[dict[str, tuple[int, list[str]]], str | None]:
    """Read in which of the next rooms of local users there are users of what fails.

    Returns:
        By room ID, how many local users are in it, and the servers; and the last room
        that was looked at, None if there are no more.
    """
    txn.execute(_LOCAL_ROOMS, (after, _ROOMS))
    read = txn.fetchall()
    users: dict[str, int] = {}
    left = _MEMBERS
    for room_id, local, members in read:
        if users and members > left:
            break
        users[room_id] = local
        left -= members
    if not users:
        return {}, None
    server = _SERVER_ON_POSTGRES if is_postgres else _SERVER
    these = any_of("room_id", users, is_postgres)
    txn.execute(
        f"SELECT DISTINCT room_id, {server} FROM current_state_events "  # noqa: S608
        f"WHERE type = 'm.room.member' AND membership = 'join' AND {these.text}",
        these.args,
    )
    found: dict[str, tuple[int, list[str]]] = {}
    for room_id, name in txn:
        if name in failing:
            found.setdefault(room_id, (users[room_id], []))[1].append(name)
    is_last = len(users) == len(read) < _ROOMS
    return found, None if is_last else max(users)
