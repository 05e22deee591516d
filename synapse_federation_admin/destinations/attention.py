# SPDX-License-Identifier: Apache-2.0
"""Finds the failing servers that matter most: to most local users, or for what waits.

There is no index by which the database could find them, so all failing destinations and
all rooms of local users are looked through, in pieces, in the background. That is done
only for somebody who asks, and what was found is told to all for some time.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from heapq import nlargest
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.attention_rows import (
    failing_txn,
    rooms_txn,
)
from synapse_federation_admin.destinations.backlog import Backlog, BacklogStore
from synapse_federation_admin.destinations.costly import Costly
from synapse_federation_admin.destinations.query import rows_txn
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Position,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.sql import FAILING, MOMENT_MS, Sql, any_of

T = TypeVar("T")

# How old what was found may become at least.
_KEEP_MS = 60_000

# Of how many destinations one transaction counts the local users.
_COUNTED = 10


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
        most: Those that affect most local users, or for which most waits, the most
            first.
        waiting: How many rooms and to-device messages wait for each, and its name: of
            those for which most waits, the most first, and equal ones by name.
        has_all_waiting: Whether these are all.
        shared: The rooms that each shares, of those that share most.
        has_all_shared: Whether these are all that share any.
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

    def behind(self, after: Position | None) -> Sequence[tuple[int, str]]:
        """Return for whom less waits than at a place in `waiting`, or as much.

        The place need not be there any more.
        """
        if after is None:
            return self.waiting
        last = _place((after.value or 0, after.destination))
        place = bisect_right(self.waiting, last, key=_place)
        return self.waiting[place:]


def _place(waiting: tuple[int, str]) -> tuple[int, str]:
    count, name = waiting
    return -count, name


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
        found = await self.get()
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
        has_all = found.is_complete and found.has_all_shared
        return found.as_of_ts, {
            name: known.get(name, 0)
            for name in were_failing
            if name in known or has_all
        }

    async def _find(self) -> Attention:
        began_ms = self._homeserver.now_ms()
        failing, waiting, has_all_names = await self._failing()
        rooms, users_in, has_all_rooms = await self._shared(failing)
        # Letting go of many names takes a while, too: not in the turn that answers.
        del failing

        def candidates_txn(
            txn: LoggingTransaction,
        ) -> tuple[list[Destination], list[tuple[int, str]], Mapping[str, list[str]]]:
            # On this thread: with many it takes a while.
            first = sorted(((n, name) for name, n in waiting.items()), key=_place)
            del first[limits.KEPT_WAITING :]
            shared = _most_shared(rooms, users_in)
            most = [name for _, name in first[: limits.TOLD_ATTENTION]]
            names = {*_candidates(rooms, users_in), *most}
            these = any_of("destination", names)
            rows = rows_txn(txn, [Sql(FAILING), these])
            return list(rows.values()), first, shared

        rows, most_waiting, shared = await self._run(candidates_txn)
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
            _most(found),
            waiting=tuple(most_waiting),
            has_all_waiting=has_all_names and len(waiting) == len(most_waiting),
            shared=shared,
            has_all_shared=len(shared) == len(rooms),
        )

    async def _failing(self) -> tuple[set[str], dict[str, int], bool]:
        """Return what fails, how much waits for whom, and whether that is all."""
        failing: set[str] = set()
        waiting: dict[str, int] = {}
        after: str | None = ""
        while after is not None:
            found, after = await self._run(partial(failing_txn, after=after))
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
                partial(rooms_txn, after=after, failing=failing)
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

        def count_txn(txn: LoggingTransaction, some: Sequence[str]) -> list[int]:
            found = []
            for name in some:
                these = any_of("room_id", rooms[name])
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


def _most(found: Sequence[Affecting]) -> tuple[Affecting, ...]:
    """Return those with the most that have anything; equal ones by name."""
    some = sorted(
        (each for each in found if each.local_users or each.waiting),
        key=lambda each: (-each.local_users, -each.waiting, each.row.destination),
    )
    return tuple(some[: limits.TOLD_ATTENTION])


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


def _most_shared(
    rooms: Mapping[str, list[str]], users_in: Mapping[str, int]
) -> Mapping[str, list[str]]:
    """Return the rooms of those that share most."""
    if len(rooms) <= limits.KEPT_SHARING:
        return rooms
    most = nlargest(
        limits.KEPT_SHARING,
        rooms,
        key=lambda name: sum(map(users_in.__getitem__, rooms[name])),
    )
    return {name: rooms[name] for name in most}
