# SPDX-License-Identifier: Apache-2.0
"""Reads who is affected when federation with a server fails.

That is read from the current memberships, not from `destination_rooms`, where a room
stays after its last member has gone. There is no index by server: one pass over the
index of all members' user IDs finds those of a server.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from heapq import nsmallest
from typing import Any, NamedTuple, TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import (
    Sql,
    any_of,
    can_be_stored,
    in_pieces,
    where,
)

T = TypeVar("T")

# How many members one transaction looks at, and of how many users of a server it counts
# in which rooms they are.
_MEMBERS = 50_000
_USERS = 2000

# How many times as long as it took to read it is told again, and for how long at most:
# what costs nothing is read anew.
_KEEP_FACTOR = 10
_KEEP_MS = 300_000

_IS_MEMBER = "type = 'm.room.member'"

# The server name in a user ID: what stands behind its first colon.
_SERVER = "SUBSTR(state_key, INSTR(state_key, ':') + 1)"
_SERVER_ON_POSTGRES = "SUBSTRING(state_key FROM POSITION(':' IN state_key) + 1)"


def server_of_member(txn: LoggingTransaction) -> str:
    """Return the expression of whose a member is, a row of `current_state_events`."""
    return _SERVER_ON_POSTGRES if on_postgres(txn) else _SERVER


class SharedRoom(NamedTuple):
    """A room that a server shares with us, by current membership.

    Attributes:
        room_id: Its ID.
        name: Its name, or else its canonical alias, cut; None if it has neither.
        members: How many are joined, as Synapse last counted; None if it has not.
        local_members: Our users who are joined.
        local_users: Some of them.
        their_members: Users of that server who are joined.
    """

    room_id: str
    name: str | None
    members: int | None
    local_members: int
    local_users: tuple[str, ...]
    their_members: int


class SharedRooms(NamedTuple):
    """Who is joined in the rooms of a server, by current membership.

    Attributes:
        theirs: How many of its users are in each of their rooms.
        ours: How many of our users are in each of those where there are any.
        local_users: How many of our users are in any of them.
        upto_ms: Until when that is told.
    """

    theirs: Mapping[str, int]
    ours: Mapping[str, int]
    local_users: int
    upto_ms: int

    @property
    def rooms(self) -> int:
        """How many rooms there are in which users of ours and of that server are."""
        return len(self.ours)


class SharedRoomsStore:
    """Reads which rooms servers share with us.

    A server's name is exact: those of its subdomains and of its other ports are other
    servers. Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # What took long to read, by name, the newest last.
        self._known: dict[str, SharedRooms] = {}

    async def of(self, name: str, *, is_fresh: bool = False) -> SharedRooms:
        """Return what a server shares; once for all who ask at the same time.

        Args:
            name: The server name.
            is_fresh: Read it now. Else what took long to read is told again for a
                while.
        """
        known = self._known.get(name)
        if known and not is_fresh and self._homeserver.now_ms() < known.upto_ms:
            return known
        return await self._homeserver.single_flight.run(
            "federation_admin_shared_rooms", name, partial(self._read, name)
        )

    async def page(
        self, name: str, after: tuple[int, str] | None, limit: int
    ) -> list[SharedRoom]:
        """Return rooms that a server shares, those with most local members first.

        Args:
            name: The server name.
            after: The local members and the ID of the room behind which to begin; None:
                at the start.
            limit: The most to return.
        """
        found = await self.of(name)
        theirs, ours = found.theirs, found.ours
        begin = None if after is None else (-after[0], after[1])
        places = ((-count, room_id) for room_id, count in ours.items())
        rooms = nsmallest(
            limit, (place for place in places if begin is None or place > begin)
        )
        return await self._run(
            partial(
                _page_txn,
                rooms={room_id: -count for count, room_id in rooms},
                theirs=theirs,
            )
        )

    async def counts(self, names: Collection[str]) -> dict[str, int]:
        """Count the rooms that some servers share with us, in one pass.

        Args:
            names: The server names. All of them are held in memory.

        Returns:
            The counts, by name; those that share none are left out.
        """
        rooms = await self._rooms_of(names)
        if not rooms:
            return {}
        local = await self._local("DISTINCT room_id", set().union(*rooms.values()))
        shared = {room_id for (room_id,) in local}
        counts = {name: len(found.keys() & shared) for name, found in rooms.items()}
        return {name: count for name, count in counts.items() if count}

    async def _read(self, name: str) -> SharedRooms:
        """Count a server's users in all of its rooms, and ours in those."""
        began_ms = self._homeserver.now_ms()
        theirs: Mapping[str, int] = (await self._rooms_of([name])).get(name, {})
        ours: dict[str, int] = {}
        local_users = 0
        if theirs:
            counted = await self._local("room_id, COUNT(*)", theirs, "GROUP BY room_id")
            ours = dict(counted)
            ((local_users,),) = await self._local("COUNT(DISTINCT user_id)", ours)
        now_ms = self._homeserver.now_ms()
        keep_ms = min(_KEEP_FACTOR * (now_ms - began_ms), _KEEP_MS)
        found = SharedRooms(theirs, ours, local_users, now_ms + keep_ms)
        self._known.pop(name, None)
        if keep_ms and len(theirs) <= limits.KEPT_ROOMS:
            self._known[name] = found
            while (
                sum(len(of.theirs) for of in self._known.values()) > limits.KEPT_ROOMS
            ):
                del self._known[next(iter(self._known))]
        return found

    async def _local(
        self, what: str, rooms: Collection[str], then: str = ""
    ) -> list[tuple[Any, ...]]:
        """Read something of the memberships of our users in some rooms."""
        local = any_of("room_id", rooms)
        statement = Sql(
            f"SELECT {what} FROM local_current_membership "  # noqa: S608
            f"WHERE membership = 'join' AND {local.text} {then}",
            local.args,
        )
        return await self._run(statement.select_txn)

    async def _rooms_of(self, names: Collection[str]) -> dict[str, Counter[str]]:
        """Count the users of some servers in each room, by server."""
        rooms: dict[str, Counter[str]] = {}
        wanted = [name for name in names if can_be_stored(name)]
        after: str | None = "" if wanted else None
        while after is not None:
            users, after = await self._run(
                partial(_users_txn, names=wanted, after=after)
            )
            for some in in_pieces(users, _USERS):
                found = await self._run(partial(_rooms_txn, users=some))
                for server, room_id, count in found:
                    rooms.setdefault(server, Counter())[room_id] += count
        return rooms

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_shared_rooms", func
        )


def _users_txn(
    txn: LoggingTransaction, *, names: Collection[str], after: str
) -> tuple[list[str], str | None]:
    """Read the users of some servers, of the next members.

    The index has all that is needed for that.

    Args:
        txn: The transaction.
        names: The server names.
        after: The user ID behind which to read.

    Returns:
        Their IDs, and the last one that was read; None if there are no more.
    """
    txn.execute(
        "SELECT MAX(state_key) FROM (SELECT state_key FROM current_state_events "  # noqa: S608
        f"WHERE {_IS_MEMBER} AND state_key > ? ORDER BY state_key LIMIT ?) AS next",
        (after, _MEMBERS),
    )
    ((upto,),) = txn.fetchall()
    if upto is None:
        return [], None
    conditions = [
        Sql(f"{_IS_MEMBER} AND state_key > ? AND state_key <= ?", (after, upto)),
        any_of(server_of_member(txn), names),
    ]
    if len(names) == 1 and on_postgres(txn):
        # How an ID ends is seen far sooner than what stands in it. What is special in a
        # pattern finds more, which the other condition leaves out.
        (name,) = names
        conditions.append(Sql("state_key LIKE ? ESCAPE ''", (f"%:{name}",)))
    of_servers = where(conditions)
    txn.execute(
        f"SELECT DISTINCT state_key FROM current_state_events {of_servers.text}",  # noqa: S608
        of_servers.args,
    )
    return [user for (user,) in txn], upto


def _rooms_txn(
    txn: LoggingTransaction, *, users: Collection[str]
) -> list[tuple[str, str, int]]:
    """Read in which rooms users are: server name, room ID, and how many they are."""
    of_users = any_of("state_key", users)
    txn.execute(
        f"SELECT {server_of_member(txn)}, room_id, COUNT(*) FROM current_state_events "  # noqa: S608
        f"WHERE {_IS_MEMBER} AND membership = 'join' AND {of_users.text} "
        "GROUP BY 1, 2",
        of_users.args,
    )
    return txn.fetchall()


def _page_txn(
    txn: LoggingTransaction,
    *,
    rooms: Mapping[str, int],
    theirs: Mapping[str, int],
) -> list[SharedRoom]:
    """Read what else is told of some rooms.

    Args:
        txn: The transaction.
        rooms: How many of our users are in each, in their order.
        theirs: How many of the server's are in each.
    """
    these = any_of("room_id", rooms)
    txn.execute(
        f"SELECT room_id, name, canonical_alias FROM room_stats_state "  # noqa: S608
        f"WHERE {these.text}",
        these.args,
    )
    names = {room_id: name or alias for room_id, name, alias in txn}
    txn.execute(
        f"SELECT room_id, joined_members FROM room_stats_current WHERE {these.text}",  # noqa: S608
        these.args,
    )
    members = dict(txn.fetchall())
    txn.execute(
        "SELECT room_id, user_id FROM ("  # noqa: S608
        "SELECT room_id, user_id, ROW_NUMBER() OVER "
        "(PARTITION BY room_id ORDER BY user_id) AS place "
        f"FROM local_current_membership WHERE membership = 'join' AND {these.text}"
        ") AS l WHERE place <= ? ORDER BY room_id, user_id",
        (*these.args, limits.TOLD_USERS),
    )
    users: dict[str, list[str]] = {}
    for room_id, user_id in txn:
        users.setdefault(room_id, []).append(user_id)
    return [
        SharedRoom(
            room_id=room_id,
            name=(names.get(room_id) or "")[: limits.TEXT] or None,
            members=members.get(room_id),
            local_members=local_members,
            local_users=tuple(users.get(room_id, ())),
            their_members=theirs[room_id],
        )
        for room_id, local_members in rooms.items()
    ]
