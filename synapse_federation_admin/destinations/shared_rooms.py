# SPDX-License-Identifier: Apache-2.0
"""Reads who is affected when federation with a server fails.

That is read from the current memberships, not from `destination_rooms`, where a room
stays after its last member has gone. There is no index by server: one pass over the
index of all members' user IDs finds those of a server.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import any_of, can_be_stored

T = TypeVar("T")

# How many members one transaction looks at.
_MEMBERS = 200_000

_IS_MEMBER = "type = 'm.room.member'"

# The server name in a user ID: what stands behind its first colon.
_SERVER = "SUBSTR(state_key, INSTR(state_key, ':') + 1)"
_SERVER_ON_POSTGRES = "SUBSTRING(state_key FROM POSITION(':' IN state_key) + 1)"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SharedRooms:
    """The rooms that a server shares with us, by current membership.

    Attributes:
        rooms: Rooms in which users of ours and of that server are joined.
        local_users: Our users who are joined in those rooms.
    """

    rooms: int = 0
    local_users: int = 0


class SharedRoomsStore:
    """Reads which rooms servers share with us.

    A server's name is exact: those of its subdomains and of its other ports are other
    servers. Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def of(self, name: str) -> SharedRooms:
        """Return what a server shares; once for all who ask at the same time."""
        return await self._homeserver.single_flight.run(
            "federation_admin_shared_rooms", name, partial(self._of, name)
        )

    async def rooms_of(self, name: str) -> Collection[str]:
        """Return the IDs of the rooms in which users of a server are joined."""
        return (await self._rooms_of([name])).get(name, set())

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
        counts = {name: len(found & shared) for name, found in rooms.items()}
        return {name: count for name, count in counts.items() if count}

    async def _of(self, name: str) -> SharedRooms:
        rooms = await self.rooms_of(name)
        counts = "COUNT(DISTINCT room_id), COUNT(DISTINCT user_id)"
        return SharedRooms(*(await self._local(counts, rooms))[0])

    async def _local(self, what: str, rooms: Collection[str]) -> list[tuple[Any, ...]]:
        """Read something of the memberships of our users in some rooms."""
        local = any_of("room_id", rooms, self._homeserver.is_postgres)

        def select_txn(txn: LoggingTransaction) -> list[tuple[Any, ...]]:
            txn.execute(
                f"SELECT {what} FROM local_current_membership "  # noqa: S608
                f"WHERE membership = 'join' AND {local.text}",
                local.args,
            )
            return txn.fetchall()

        return await self._run(select_txn)

    async def _rooms_of(self, names: Collection[str]) -> dict[str, set[str]]:
        """Return the rooms in which users of some servers are joined, by server."""
        rooms: dict[str, set[str]] = {}
        wanted = [name for name in names if can_be_stored(name)]
        after: str | None = "" if wanted else None
        while after is not None:
            found, after = await self._run(
                partial(
                    _rooms_txn,
                    names=wanted,
                    after=after,
                    is_postgres=self._homeserver.is_postgres,
                )
            )
            for server, room_id in found:
                rooms.setdefault(server, set()).add(room_id)
        return rooms

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._homeserver.run_db_interaction(
            "federation_admin_shared_rooms", func
        )


def _rooms_txn(
    txn: LoggingTransaction, *, names: Collection[str], after: str, is_postgres: bool
) -> tuple[list[tuple[str, str]], str | None]:
    """Read where users of some servers are joined, of the next members.

    The users are looked for first, as the index has all that is needed for that.

    Args:
        txn: The transaction.
        names: The server names.
        after: The user ID behind which to read.
        is_postgres: Whether the database is PostgreSQL.

    Returns:
        Pairs of server name and room ID, and the last user ID that was read; None if
        there are no more.
    """
    txn.execute(
        "SELECT MAX(state_key) FROM (SELECT state_key FROM current_state_events "  # noqa: S608
        f"WHERE {_IS_MEMBER} AND state_key > ? ORDER BY state_key LIMIT ?) AS next",
        (after, _MEMBERS),
    )
    ((upto,),) = txn.fetchall()
    if upto is None:
        return [], None
    server = _SERVER_ON_POSTGRES if is_postgres else _SERVER
    of_servers = any_of(server, names, is_postgres)
    txn.execute(
        "SELECT DISTINCT state_key FROM current_state_events "  # noqa: S608
        f"WHERE {_IS_MEMBER} AND state_key > ? AND state_key <= ? "
        f"AND {of_servers.text}",
        (after, upto, *of_servers.args),
    )
    of_users = any_of("state_key", [user for (user,) in txn], is_postgres)
    txn.execute(
        f"SELECT DISTINCT {server}, room_id FROM current_state_events "  # noqa: S608
        f"WHERE {_IS_MEMBER} AND membership = 'join' AND {of_users.text}",
        of_users.args,
    )
    return txn.fetchall(), upto
