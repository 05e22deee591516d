# SPDX-License-Identifier: Apache-2.0
"""Reads who is affected by one server, and when it last reached us.

Who is affected is read from the current memberships, not from `destination_rooms`,
where a room stays after its last member has gone. There is no index by server: one pass
over the index of all members' user IDs finds those of a server.
"""

import re
from collections.abc import Collection, Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.values import Reach
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, can_be_stored

_LIKE_SPECIAL = re.compile("[!%_]")

# How many rows one transaction looks at: some 10 ms on SQLite.
_PIECE = 15_000
_PIECE_ON_POSTGRES = 200_000

# How many users one statement looks the rooms up of.
_USERS = 200
_USERS_ON_POSTGRES = 2000


class ReachStore:
    """Reads who is affected by a server, in pieces that hold nobody up.

    Every method raises what the database raises.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver

    async def of(self, name: str) -> Reach:
        """Return who is affected by a server; once for all who ask at the same time.

        Args:
            name: The exact server name: those of its subdomains and of its other ports
                are other servers.
        """
        if not can_be_stored(name):
            return Reach()
        return await self._homeserver.compute_once(
            ("reach", name), lambda: self._reach(name)
        )

    async def shared_rooms_of(self, names: Collection[str]) -> dict[str, int]:
        """Count the rooms that some servers share with users of ours, in one pass.

        Args:
            names: The exact server names. All of them are held in memory.

        Returns:
            The counts, by name; those that share none are left out.
        """
        rooms: dict[str, set[str]] = {}
        wanted = frozenset(filter(can_be_stored, names))
        after: str | None = "" if wanted else None
        while after is not None:
            users, after = await self._next_users_of(wanted, after)
            for begin in range(0, len(users), _USERS):
                statement = select_memberships(users[begin : begin + _USERS])
                for room_id, user in await self._fetch(statement):
                    rooms.setdefault(server_of(user), set()).add(room_id)
        local = await self._with_local_users(set().union(*rooms.values()))
        counts = {name: len(found & local) for name, found in rooms.items()}
        return {name: count for name, count in counts.items() if count}

    async def _next_users_of(
        self, names: frozenset[str], after: str
    ) -> tuple[list[str], str | None]:
        """Return some servers' users among the next members.

        As `_next_users`, for many servers.
        """
        on_postgres = self._homeserver.is_postgres

        def users_txn(txn: LoggingTransaction) -> tuple[list[str], str | None]:
            end = select_end_of_members(after, self._piece)
            txn.execute(end.text, end.args)
            ((upto,),) = txn.fetchall()
            if upto is None:
                return [], None
            statement = select_distinct_members(after, upto)
            if on_postgres:
                # Here the database is faster at looking names up.
                txn.execute(
                    f"{statement.text} AND "
                    "SUBSTRING(state_key FROM POSITION(':' IN state_key) + 1) "
                    "IN (SELECT UNNEST(?::text[]))",
                    (*statement.args, list(names)),
                )
            else:
                txn.execute(statement.text, statement.args)
            return [u for (u,) in txn.fetchall() if server_of(u) in names], upto

        return await self._homeserver.run_db_interaction(
            "federation_admin_reach", users_txn
        )

    async def _with_local_users(self, rooms: set[str]) -> set[str]:
        """Return those of some rooms in which a user of ours is joined."""
        found: set[str] = set()
        ordered = sorted(rooms)
        for begin in range(0, len(ordered), _USERS):
            statement = select_rooms_with_local_users(ordered[begin : begin + _USERS])
            found.update(room_id for (room_id,) in await self._fetch(statement))
        return found

    async def _fetch(self, statement: Sql) -> list[tuple[str, ...]]:
        def fetch_txn(txn: LoggingTransaction) -> list[tuple[str, ...]]:
            txn.execute(statement.text, statement.args)
            return list(txn.fetchall())

        return await self._homeserver.run_db_interaction(
            "federation_admin_reach", fetch_txn
        )

    async def last_inbound_ts(self, name: str) -> int | None:
        """Return when a server last sent us a transaction, in ms since the epoch.

        Synapse keeps that for a day (`synapse/storage/databases/main/transactions.py`,
        `_cleanup_transactions`): None says that it has sent none since.

        Args:
            name: The exact server name.
        """
        if not can_be_stored(name):
            return None
        return await self._homeserver.compute_once(
            ("last_inbound_ts", name), lambda: self._last_inbound_ts(name)
        )

    @property
    def _piece(self) -> int:
        return _PIECE_ON_POSTGRES if self._homeserver.is_postgres else _PIECE

    async def _reach(self, name: str) -> Reach:
        rooms = await self._rooms_of_server(name)
        if not rooms:
            return Reach()
        if self._homeserver.is_postgres:
            return await self._homeserver.run_db_interaction(
                "federation_admin_reach", lambda txn: _count_local(txn, rooms)
            )
        return await self._walk_local(rooms)

    async def _rooms_of_server(self, name: str) -> set[str]:
        """Return the rooms in which a user of a server is joined."""
        rooms: set[str] = set()
        size = _USERS_ON_POSTGRES if self._homeserver.is_postgres else _USERS
        after: str | None = ""
        while after is not None:
            users, after = await self._next_users(name, after)
            for begin in range(0, len(users), size):
                statement = select_rooms_of_users(users[begin : begin + size])

                def rooms_txn(
                    txn: LoggingTransaction, statement: Sql = statement
                ) -> set[str]:
                    txn.execute(statement.text, statement.args)
                    return {room_id for (room_id,) in txn.fetchall()}

                rooms |= await self._homeserver.run_db_interaction(
                    "federation_admin_reach", rooms_txn
                )
        return rooms

    async def _next_users(self, name: str, after: str) -> tuple[list[str], str | None]:
        """Return a server's users among the next members.

        Args:
            name: The server name.
            after: The user ID behind which to read.

        Returns:
            The users, and the last user ID that was read; None if there are no more.
        """

        def users_txn(txn: LoggingTransaction) -> tuple[list[str], str | None]:
            end = select_end_of_members(after, self._piece)
            txn.execute(end.text, end.args)
            ((upto,),) = txn.fetchall()
            if upto is None:
                return [], None
            statement = select_users(name, after, upto)
            txn.execute(statement.text, statement.args)
            return [user for (user,) in txn.fetchall() if is_of(name, user)], upto

        return await self._homeserver.run_db_interaction(
            "federation_admin_reach", users_txn
        )

    async def _walk_local(self, rooms: set[str]) -> Reach:
        """Count the rooms with local users among some, and those users, on SQLite."""
        shared: set[str] = set()
        users: set[str] = set()
        after: int | None = 0
        while after is not None:

            def memberships_txn(
                txn: LoggingTransaction, after: int = after
            ) -> tuple[list[tuple[str, str]], int | None]:
                txn.execute(
                    "SELECT MAX(rowid) FROM (SELECT rowid FROM local_current_membership"
                    " WHERE rowid > ? ORDER BY rowid LIMIT ?)",
                    (after, self._piece),
                )
                ((upto,),) = txn.fetchall()
                txn.execute(
                    "SELECT room_id, user_id FROM local_current_membership "
                    "WHERE rowid > ? AND rowid <= ? AND membership = 'join'",
                    (after, upto),
                )
                return [row for row in txn.fetchall() if row[0] in rooms], upto

            found, after = await self._homeserver.run_db_interaction(
                "federation_admin_reach", memberships_txn
            )
            shared.update(room_id for room_id, _ in found)
            users.update(user for _, user in found)
        return Reach(shared_rooms=len(shared), local_users=len(users))

    async def _last_inbound_ts(self, name: str) -> int | None:
        before: int | None = None
        while True:

            def newest_txn(
                txn: LoggingTransaction, before: int | None = before
            ) -> tuple[int | None, int | None]:
                end = select_end_of_transactions(before, self._piece)
                txn.execute(end.text, end.args)
                ((downto,),) = txn.fetchall()
                if downto is None:
                    return None, None
                statement = select_newest_transaction(name, downto, before)
                txn.execute(statement.text, statement.args)
                ((newest,),) = txn.fetchall()
                return newest, downto

            newest, before = await self._homeserver.run_db_interaction(
                "federation_admin_last_inbound", newest_txn
            )
            if newest is not None or before is None:
                return newest


def is_of(name: str, user_id: str) -> bool:
    """Tell whether a user ID is of a server."""
    return server_of(user_id) == name


def server_of(user_id: str) -> str:
    """Return the server name in a user ID."""
    return user_id.partition(":")[2]


def select_end_of_members(after: str, limit: int) -> Sql:
    """Select the last user ID of the next members behind one."""
    return Sql(
        "SELECT MAX(state_key) FROM (SELECT state_key FROM current_state_events "
        "WHERE type = 'm.room.member' AND state_key > ? ORDER BY state_key LIMIT ?) "
        "piece",
        (after, limit),
    )


def select_users(name: str, after: str, upto: str) -> Sql:
    """Select members behind a user ID and up to another: all those of a server.

    And more: on SQLite, LIKE takes capitals and small letters as equal; and a user ID
    may have more than one colon.
    """
    literal = _LIKE_SPECIAL.sub(lambda m: "!" + m[0], name)
    return Sql(
        "SELECT DISTINCT state_key FROM current_state_events "
        "WHERE type = 'm.room.member' AND state_key > ? AND state_key <= ? "
        "AND state_key LIKE ? ESCAPE '!'",
        (after, upto, f"@%:{literal}"),
    )


def select_distinct_members(after: str, upto: str) -> Sql:
    """Select members behind a user ID and up to another, each once."""
    return Sql(
        "SELECT DISTINCT state_key FROM current_state_events "
        "WHERE type = 'm.room.member' AND state_key > ? AND state_key <= ?",
        (after, upto),
    )


def select_memberships(users: Sequence[str]) -> Sql:
    """Select the rooms in which some users are joined, with who is."""
    return Sql(
        "SELECT room_id, state_key FROM current_state_events "  # noqa: S608
        "WHERE type = 'm.room.member' AND membership = 'join' "
        f"AND state_key IN ({', '.join('?' * len(users))})",
        tuple(users),
    )


def select_rooms_with_local_users(rooms: Sequence[str]) -> Sql:
    """Select those of some rooms in which a user of ours is joined."""
    return Sql(
        "SELECT DISTINCT room_id FROM local_current_membership "  # noqa: S608
        f"WHERE membership = 'join' AND room_id IN ({', '.join('?' * len(rooms))})",
        tuple(rooms),
    )


def select_rooms_of_users(users: Sequence[str]) -> Sql:
    """Select the rooms in which some users are joined."""
    return Sql(
        "SELECT DISTINCT room_id FROM current_state_events "  # noqa: S608
        "WHERE type = 'm.room.member' AND membership = 'join' "
        f"AND state_key IN ({', '.join('?' * len(users))})",
        tuple(users),
    )


def select_end_of_transactions(before: int | None, limit: int) -> Sql:
    """Select the oldest time of the next transactions before a time, the newest first.

    Args:
        before: The time, in ms since the epoch; None for now and later.
        limit: How many transactions.
    """
    where, args = ("ts IS NOT NULL", []) if before is None else ("ts < ?", [before])
    return Sql(
        "SELECT MIN(ts) FROM (SELECT ts FROM received_transactions "  # noqa: S608
        f"WHERE {where} ORDER BY ts DESC LIMIT ?) piece",
        (*args, limit),
    )


def select_newest_transaction(name: str, downto: int, before: int | None) -> Sql:
    """Select the newest time of a server's transactions between two times."""
    where, args = ("", []) if before is None else ("AND ts < ?", [before])
    return Sql(
        "SELECT MAX(ts) FROM received_transactions "  # noqa: S608
        f"WHERE ts >= ? {where} AND origin = ?",
        (downto, *args, name),
    )


def _count_local(txn: LoggingTransaction, rooms: set[str]) -> Reach:
    """Count the rooms with local users among some, and those users, on PostgreSQL."""
    txn.execute(
        "SELECT COUNT(DISTINCT room_id), COUNT(DISTINCT user_id) "
        "FROM local_current_membership WHERE membership = 'join' AND room_id = ANY(?)",
        (list(rooms),),
    )
    ((shared_rooms, local_users),) = txn.fetchall()
    return Reach(shared_rooms=shared_rooms, local_users=local_users)
