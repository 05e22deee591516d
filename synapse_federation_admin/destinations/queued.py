# SPDX-License-Identifier: Apache-2.0
"""Which events senders have queued for destinations, and to which they have not come.

Both raise what the database raises.
"""

from collections.abc import Callable, Collection, Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import Sql, any_of, where

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

# What was queued beyond a position. If the position is the newest of an event that is
# queued, these are of events that are not there. They may have been, before a part of
# the database was restored: then their numbers are used again, and a row that seems to
# be of an event may be of the one that had its number before.
_UNKNOWN = """
    SELECT stream_ordering, destination FROM destination_rooms
    WHERE stream_ordering > ? LIMIT ?
"""

# So many events Synapse's sender goes through at once
# (`synapse/federation/sender/__init__.py`).
_AT_ONCE = 100


async def not_yet_queued(
    homeserver: Homeserver,
    senders: Sequence[Sender],
    rooms: Collection[str] | None = None,
) -> int:
    """Count our events to which one of some senders at least has not come.

    Args:
        homeserver: The homeserver.
        senders: Who. What lies between the newest event and the position of one
            that is ahead is not known.
        rooms: Those of these rooms; None: all.

    Returns:
        How many of the next 10,000 events of anybody are ours.
    """
    behind = [s.position or 0 for s in senders if s.behind_events]
    if not behind or rooms == set():
        return 0
    server = f":{homeserver.server_name}"
    conditions = [
        Sql("SUBSTR(e.sender, LENGTH(e.sender) - ?) = ?", (len(server) - 1, server))
    ]
    if rooms is not None:
        conditions.append(any_of("e.room_id", rooms))
    ours = where(conditions)

    statement = Sql(
        "SELECT COUNT(*) FROM (SELECT sender, room_id FROM events "  # noqa: S608
        "WHERE stream_ordering > ? ORDER BY stream_ordering LIMIT ?"
        f") AS e {ours.text}",
        (min(behind), limits.EVENTS_COUNTED, *ours.args),
    )
    ((count,),) = await homeserver.run_db_interaction(
        "federation_admin_not_yet_queued", statement.select_txn
    )
    return int(count)


async def queued_position(homeserver: Homeserver, sender: Sender) -> int | None:
    """Return to where the position of a sender can be set back, and loses nothing.

    An event that stands in `destination_rooms` for a destination of its was queued
    by it. It goes through some events at once, so those shortly before it may not
    have been: they are sent again.

    Returns:
        The stream ordering; None if none of the newest events proves any.
    """
    return await homeserver.run_db_interaction(
        "federation_admin_queued_position",
        lambda txn: _queued_txn(txn, sender.instance, homeserver.sender_of),
    )


def _queued_txn(
    txn: LoggingTransaction,
    instance: str | None,
    sender_of: Callable[[str], str | None],
) -> int | None:
    def own(statement: str, *args: int) -> int | None:
        """Return the first that is queued by the sender."""
        found: list[tuple[int, str]] = Sql(statement, args).select_txn(txn)
        # None: there is one sender for all.
        senders = (instance, None)
        return next(
            (position for position, name in found if sender_of(name) in senders),
            None,
        )

    queued = own(_QUEUED, limits.EVENTS_COUNTED, limits.EVENTS_COUNTED)
    if queued is None or own(_UNKNOWN, queued, limits.EVENTS_COUNTED):
        return None
    txn.execute(
        "SELECT stream_ordering FROM events "
        "WHERE stream_ordering < ? AND stream_ordering > 0 "
        "ORDER BY stream_ordering DESC LIMIT 1 OFFSET ?",
        (queued, _AT_ONCE),
    )
    row = txn.fetchone()
    return int(row[0]) if row else 0
