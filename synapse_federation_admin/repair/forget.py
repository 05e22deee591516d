# SPDX-License-Identifier: Apache-2.0
"""Removes what Synapse keeps of servers that are gone for good.

That is the row in `destinations` and what refers to its name: the ledger of rooms, the
queues of device list updates and, only if that is asked for, of to-device messages.
What a server has sent to us stays.

A destination with which a user of ours shares a room is not forgotten: Synapse would
send to it again with the next event, and it would miss what was queued. Where none is
shared, neither side follows the other's device lists. The rows in
`device_lists_outbound_last_success` go with the updates that wait: with them, the next
update would refer to one that the server may have, and it would not notice what it has
missed; without them, it asks anew.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Backlog, BacklogStore
from synapse_federation_admin.destinations.query import rows_txn
from synapse_federation_admin.destinations.shared_rooms import (
    SharedRoom,
    SharedRoomsStore,
)
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import records
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql, any_of, existing_tables
from synapse_federation_admin.storage.values import AUDIT_FORGOTTEN, Actor, AuditAction

# Tables of Synapse's with what refers to a destination, in the order in which it is
# deleted: one of them is bound to `destinations` by a foreign key. Not every Synapse
# has all of them.
_CHILDREN = (
    "destination_rooms",
    "destination_rooms_sticky_events_backlog",
    "device_lists_outbound_pokes",
    "device_lists_outbound_last_success",
)
_TO_DEVICE = "device_federation_outbox"

CHANGED = "Something was sent to this destination, or failed, meanwhile: try again"


def _without_interval(row: Destination | None) -> Destination | None:
    return row and row._replace(retry_interval=None)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Seen:
    """What was there when shared rooms were looked for.

    If any of it is another when it is to be deleted, it is not deleted: perhaps
    somebody has joined a room.

    Attributes:
        row: The row in `destinations`; None if there is none. A backoff that is of
            another length is no sign of anything: an admin may have capped it.
        newest: The newest event, to-device message and device list update queued.
    """

    row: Destination | None = attr.ib(eq=_without_interval)
    newest: tuple[int | None, ...]


class Forgotten(NamedTuple):
    """The result of a request to forget a destination.

    Attributes:
        destination: What its row said.
        loss: What is lost, or would be, and what is kept: see `loss_of`.
        shared_rooms: Rooms that users of ours share with it.
        sample: Some of these rooms.
        refused: Why it is not forgotten; None if it is, or would be. Where no rooms are
            shared, something came in between.
    """

    destination: Destination
    loss: Counter[str]
    shared_rooms: int
    sample: tuple[SharedRoom, ...] = ()
    refused: str | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Forget:
    """Forgets destinations."""

    _homeserver: Homeserver
    _tables: Tables
    _backlog: BacklogStore
    _shared_rooms: SharedRoomsStore
    _audit: Audit

    async def forget(
        self,
        name: str,
        actor: Actor,
        *,
        dry_run: bool,
        drop_to_device: bool,
        reason: str | None,
    ) -> Forgotten:
        """Forget one destination, unless users of ours share a room with it.

        Args:
            name: Its exact name.
            actor: Who asks for it.
            dry_run: Tell what the result would be, and change nothing.
            drop_to_device: Delete the to-device messages that wait as well.
            reason: Why, for the audit.

        Returns:
            The result. Raises what the database raises; then nothing has changed.
        """
        seen = (await self.look([name]))[name]
        backlog = (await self._backlog.of([name]))[name]
        shared_rooms = (await self._shared_rooms.of(name, is_fresh=True)).rooms
        found = Forgotten(
            destination=seen.row or Destination(name, None, None, None, None),
            loss=loss_of(backlog, drop_to_device=drop_to_device),
            shared_rooms=shared_rooms,
        )
        if shared_rooms:
            rooms = await self._shared_rooms.page(name, None, limits.TOLD_ROOMS)
            return found._replace(
                sample=tuple(rooms), refused=refusal(shared_rooms, rooms)
            )
        if dry_run:
            return found
        entry = self._audit.entry(
            AuditAction.FORGET,
            actor,
            destination=name,
            reason=reason,
            outcome=AUDIT_FORGOTTEN,
            details=audit_details(seen, found.loss),
        )

        def forget_txn(txn: LoggingTransaction) -> bool:
            deleted = self.delete_txn(txn, {name: seen}, drop_to_device=drop_to_device)
            if deleted:
                self._audit.insert_txn(txn, [entry])
            return bool(deleted)

        # To its end, even if the client goes away.
        deleted = await self._homeserver.run_to_end(
            "federation_admin_forget",
            lambda: self._tables.run(
                "federation_admin_forget", forget_txn, read_committed=True
            ),
        )
        return found if deleted else found._replace(refused=CHANGED)

    async def look(self, names: Sequence[str]) -> dict[str, Seen]:
        """Return what is there of some destinations."""
        return await self._homeserver.run_db_interaction(
            "federation_admin_forget", partial(_look_txn, names=names)
        )

    def delete_txn(
        self,
        txn: LoggingTransaction,
        seen: Mapping[str, Seen],
        *,
        drop_to_device: bool,
    ) -> set[str]:
        """Delete destinations; each statement of the transaction is to see the newest.

        On PostgreSQL their rows are locked first: an event that another process queues
        for one of them waits until it is gone, and then has it made anew.

        Args:
            txn: The transaction.
            seen: What was there of each when shared rooms were looked for.
            drop_to_device: Delete the to-device messages that wait as well.

        Returns:
            Those that were deleted: of which everything is as it was seen.
        """
        if self._homeserver.is_postgres:
            wanted = any_of("destination", seen)
            txn.execute(
                f"SELECT 1 FROM destinations WHERE {wanted.text} "  # noqa: S608
                "ORDER BY destination FOR UPDATE",
                wanted.args,
            )
        now = _look_txn(txn, list(seen))
        names = sorted(name for name in seen if now[name] == seen[name])
        if names:
            if self._tables.has_history:
                self._homeserver.retry_timings.before_clearing(txn, names)
                records.delete_txn(txn, names)
            self._audit.interrupt_cleared_txn(txn, names)
            these = any_of("destination", names)
            existing = existing_tables(txn)
            to_device = [_TO_DEVICE] if drop_to_device else []
            for table in (*_CHILDREN, *to_device, "destinations"):
                if table in existing:
                    statement = f"DELETE FROM {table} WHERE {these.text}"  # noqa: S608
                    txn.execute(statement, these.args)
            self._homeserver.retry_timings.invalidate_txn(txn, names)
        return set(names)


def refusal(shared_rooms: int, sample: Sequence[SharedRoom] = ()) -> str:
    """Return why a destination with shared rooms is not forgotten.

    Args:
        shared_rooms: How many there are.
        sample: Some of them, which are named.
    """
    rooms = "1 room" if shared_rooms == 1 else f"{shared_rooms} rooms"
    names = [bounded(room.name or room.room_id, limits.FACT) for room in sample]
    if len(names) < shared_rooms:
        names.append("...")
    named = f" ({', '.join(names)})" if sample else ""
    return (
        f"Local users share {rooms} with this destination{named}: it is not forgotten "
        "while they do"
    )


def loss_of(backlog: Backlog, *, drop_to_device: bool) -> Counter[str]:
    """Return what of a backlog is lost, and what is kept, as a run sums it up."""
    messages = backlog.to_device_messages
    return Counter(
        lost_rooms=backlog.rooms,
        lost_to_device_messages=messages if drop_to_device else 0,
        lost_device_list_updates=backlog.device_list_updates,
        kept_to_device_messages=0 if drop_to_device else messages,
    )


def shown_loss(loss: Counter[str]) -> dict[str, dict[str, int]]:
    """Return it as the API and the audit show it."""
    lost = ("rooms", "to_device_messages", "device_list_updates")
    return {
        "lost": {of: loss[f"lost_{of}"] for of in lost},
        "kept": {"to_device_messages": loss["kept_to_device_messages"]},
    }


def audit_details(seen: Seen, loss: Counter[str]) -> dict[str, object]:
    """Return what the audit keeps of a destination that is forgotten."""
    return {"failure_ts": seen.row.failure_ts if seen.row else None, **shown_loss(loss)}


def _look_txn(txn: LoggingTransaction, names: Sequence[str]) -> dict[str, Seen]:
    wanted = any_of("destination", names)
    rows = rows_txn(txn, [wanted])
    newest: list[dict[str, int]] = []
    for table, column in (
        ("destination_rooms", "stream_ordering"),
        (_TO_DEVICE, "stream_id"),
        ("device_lists_outbound_pokes", "stream_id"),
    ):
        found = Sql(
            f"SELECT destination, MAX({column}) FROM {table} "  # noqa: S608
            f"WHERE {wanted.text} GROUP BY destination",
            wanted.args,
        )
        newest.append(dict(found.select_txn(txn)))
    return {
        name: Seen(rows.get(name), tuple(found.get(name) for found in newest))
        for name in names
    }
