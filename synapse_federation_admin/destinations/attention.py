# SPDX-License-Identifier: Apache-2.0
"""Finds the failing servers that matter most: to most local users, or for what waits.

There is no index by which the database could find them, so all failing destinations and
all rooms of local users are looked through, in pieces, in the background. That is done
only for somebody who asks, and what was found is told to all for some time.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from heapq import nlargest
from typing import NamedTuple, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import WAITS, Backlog, BacklogStore
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.destinations.query import rows_txn
from synapse_federation_admin.destinations.shared_rooms import server_of_member
from synapse_federation_admin.destinations.values import Destination, DestinationFilter
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.sql import (
    FAILING,
    MOMENT_MS,
    Sql,
    any_of,
    in_pieces,
)

T = TypeVar("T")

# How old what was found may become at least.
_KEEP_MS = 60_000

# Of how many destinations one transaction counts the local users.
_COUNTED = 10

# How many names one transaction goes through, how many rooms, and how many members.
_NAMES = 10_000
_ROOMS = 500
_MEMBERS = 20_000

# What of `destinations` AS d fails in a part of the table, and how many rooms and
# to-device messages wait for it.
_WAITING = f"""
    SELECT d.destination,
        (
            SELECT COUNT(*) FROM destination_rooms AS w
            WHERE w.destination = d.destination AND {WAITS}
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


class Affecting(NamedTuple):
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
        most: Those that affect most local users, or for which most waits, the most
            first.
        waiting: How many rooms and to-device messages wait for each, and its name: of
            those for which most waits, the most first, and equal ones by name.
        has_all_waiting: Whether these are all.
        shared: The rooms that each shares, of those that share most.
        has_all_shared: Whether it is sure that these are all that share any.
        users: How many local users each affects, of those that were asked for since.
        totals: How many of `waiting` filters keep, of those that were asked for since.
    """

    as_of_ts: int
    is_complete: bool
    most: tuple[Affecting, ...]
    waiting: tuple[tuple[int, str], ...]
    has_all_waiting: bool
    shared: Mapping[str, list[str]]
    has_all_shared: bool
    users: dict[str, int] = attr.Factory(dict)
    totals: dict[DestinationFilter, int] = attr.Factory(dict)


def place(waiting: tuple[int, str]) -> tuple[int, str]:
    """Return by what `Attention.waiting` is sorted."""
    count, name = waiting
    return -count, name


class AttentionStore:
    """Finds the failing servers that matter most.

    Attributes:
        found: What was found last. What is too old is looked for anew, in the
            background; who asks waits for it a moment only.
    """

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
        self.found = Costly(
            homeserver, "federation_admin_attention", self._find, keep_ms=_KEEP_MS
        )

    async def local_users(
        self, rows: Sequence[Destination]
    ) -> tuple[int | None, dict[str, int]]:
        """Tell how many local users share a room with each of some that fail.

        Returns:
            As of when; None if nothing is known yet. And the numbers of those of which
            that is known.

        Raises:
            Exception: Whatever the database raises.
        """
        found = await self.found.get()
        if found is None:
            return None, {}
        known = found.users
        # What began to fail since was not looked at.
        were_failing = [
            row.destination
            for row in rows
            if row.is_failing
            and (row.failure_ts or row.retry_last_ts or 0) < found.as_of_ts - MOMENT_MS
        ]
        counted = [n for n in were_failing if n in found.shared and n not in known]
        known.update(await self._count_users({n: found.shared[n] for n in counted}))
        return found.as_of_ts, {
            name: known.get(name, 0)
            for name in were_failing
            if name in known or found.has_all_shared
        }

    async def _find(self) -> Attention:
        began_ms = self._homeserver.now_ms()
        failing, waiting, has_all_names = await self._failing()
        rooms, users_in, has_all_rooms = await self._shared(failing)
        # Letting go of many names takes a while, too: not in the turn that answers.
        del failing

        def candidates_txn(
            txn: LoggingTransaction,
        ) -> tuple[
            dict[str, Destination], list[tuple[int, str]], Mapping[str, list[str]]
        ]:
            # On this thread: with many it takes a while.
            first = sorted(((n, name) for name, n in waiting.items()), key=place)
            del first[limits.KEPT_WAITING :]
            shared: Mapping[str, list[str]] = rooms
            if len(rooms) > limits.KEPT_SHARING:
                sharing = _first(limits.KEPT_SHARING, rooms, users_in)
                shared = {name: rooms[name] for name in sharing}
            most = [name for _, name in first[: limits.TOLD_ATTENTION]]
            # How many local users one affects lies between these two bounds.
            for bound in (max, sum):
                most += _first(2 * limits.TOLD_ATTENTION, rooms, users_in, bound)
            rows = rows_txn(txn, [Sql(FAILING), any_of("destination", most)])
            return rows, first, shared

        rows, most_waiting, shared = await self._run(candidates_txn)
        names = list(rows)
        users = await self._count_users({name: rooms.get(name, []) for name in names})
        backlogs = await self._backlog.of(names)
        failures = await self._last_failures(names)
        found = [
            Affecting(
                row, len(rooms.get(n, ())), users[n], backlogs[n], failures.get(n)
            )
            for n, row in rows.items()
        ]
        found = [each for each in found if each.local_users or each.waiting]
        found.sort(key=lambda of: (-of.local_users, -of.waiting, of.row.destination))
        is_complete = has_all_names and has_all_rooms
        return Attention(
            began_ms,
            is_complete,
            tuple(found[: limits.TOLD_ATTENTION]),
            waiting=tuple(most_waiting),
            has_all_waiting=has_all_names and len(waiting) == len(most_waiting),
            shared=shared,
            has_all_shared=is_complete and len(shared) == len(rooms),
        )

    async def _failing(self) -> tuple[set[str], dict[str, int], bool]:
        """Return what fails, how much waits for whom, and whether that is all."""
        failing: set[str] = set()
        waiting: dict[str, int] = {}
        after: str | None = ""
        while after is not None:
            found, after = await self._run(partial(_failing_txn, after=after))
            failing.update(name for name, _ in found)
            waiting.update((name, count) for name, count in found if count)
            if len(failing) >= limits.ATTENTION_NAMES:
                break
        return failing, waiting, after is None

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
        turn = self._homeserver.turn()
        after: str | None = "" if failing else None
        while after is not None and left > 0:
            found, after = await self._run(
                partial(_rooms_txn, after=after, failing=failing)
            )
            for room_id, (users, servers) in found.items():
                users_in[room_id] = users
                left -= len(servers)
                for server in servers:
                    rooms.setdefault(server, []).append(room_id)
                await turn.end_if_long()
        return rooms, users_in, after is None

    async def _count_users(self, rooms: Mapping[str, list[str]]) -> dict[str, int]:
        """Count the local users in the rooms of each destination."""
        counts = dict.fromkeys(rooms, 0)
        names = [name for name, found in rooms.items() if found]

        def count_txn(txn: LoggingTransaction, some: Sequence[str]) -> dict[str, int]:
            found = {}
            for name in some:
                these = any_of("room_id", rooms[name])
                txn.execute(
                    "SELECT COUNT(DISTINCT user_id) FROM local_current_membership "  # noqa: S608
                    f"WHERE membership = 'join' AND {these.text}",
                    these.args,
                )
                ((found[name],),) = txn.fetchall()
            return found

        for some in in_pieces(names, _COUNTED):
            counts.update(await self._run(partial(count_txn, some=some)))
        return counts

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_attention", func
        )


def _first(
    most: int,
    rooms: Mapping[str, list[str]],
    users_in: Mapping[str, int],
    bound: Callable[[Iterable[int]], int] = sum,
) -> list[str]:
    """Return names, those with most local users in all of their rooms first.

    Args:
        most: The most to return.
        rooms: The rooms of each.
        users_in: How many local users are in each room.
        bound: `max`: by those in the largest of their rooms.
    """
    return nlargest(
        most, rooms, lambda name: bound(map(users_in.__getitem__, rooms[name]))
    )


# -- what it is found in, in pieces ----------------------------------------------------


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
    txn: LoggingTransaction, *, after: str, failing: Collection[str]
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
    these = any_of("room_id", users)
    txn.execute(
        f"SELECT DISTINCT room_id, {server_of_member(txn)} FROM current_state_events "  # noqa: S608
        f"WHERE type = 'm.room.member' AND membership = 'join' AND {these.text}",
        these.args,
    )
    found: dict[str, tuple[int, list[str]]] = {}
    for room_id, name in txn:
        if name in failing:
            found.setdefault(room_id, (users[room_id], []))[1].append(name)
    is_last = len(users) == len(read) < _ROOMS
    return found, None if is_last else max(users)
