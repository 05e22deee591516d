# SPDX-License-Identifier: Apache-2.0
"""What the failing servers that matter most are found in, in pieces."""

from collections.abc import Collection

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.backlog import WAITS
from synapse_federation_admin.destinations.shared_rooms import server_of_member
from synapse_federation_admin.storage.sql import FAILING, any_of

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


def failing_txn(
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


def rooms_txn(
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
