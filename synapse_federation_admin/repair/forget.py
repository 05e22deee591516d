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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations import query as sql
from synapse_federation_admin.destinations.backlog import Backlog, BacklogStore
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    Sort,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.criteria import shown_filter
from synapse_federation_admin.repair.forget_values import (
    ForgetOptions,
    Forgotten,
    ManyForgotten,
    Waiting,
)
from synapse_federation_admin.storage import addresses, failures, successes
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import (
    AUDIT_DONE,
    AUDIT_FORGOTTEN,
    AuditAction,
    AuditEntry,
)
from synapse_federation_admin.storage.sql import can_be_stored

# Tables with what refers to a destination, in the order in which it is deleted: one of
# them is bound to `destinations` by a foreign key. Not every Synapse has all of them.
_CHILDREN = (
    "destination_rooms",
    "destination_rooms_sticky_events_backlog",
    "device_lists_outbound_pokes",
    "device_lists_outbound_last_success",
)
_TO_DEVICE = "device_federation_outbox"

# Of how many destinations a pass over all members looks for shared rooms.
_CANDIDATES = 20_000

# How many are looked at, and how many are deleted, in one transaction.
_LOOKED_AT_ONCE = 200
_DELETED_AT_ONCE = 20

# Between two transactions that delete, so that others get their turn.
_PAUSE_MS = 5

_SAMPLE = 10

_CHANGED = "Something was sent to this destination, or failed, meanwhile: try again"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Seen:
    """What was there when it was looked for shared rooms.

    If any of it is another when it is to be deleted, it is not deleted: perhaps
    somebody has joined a room.
    """

    row: Destination | None = None
    newest_event: int | None = None
    newest_message: int | None = None
    newest_update: int | None = None


class Forget:
    """Forgets destinations."""

    def __init__(
        self,
        homeserver: Homeserver,
        reader: DestinationReader,
        backlog: BacklogStore,
        shared_rooms: SharedRoomsStore,
        audit: Audit,
        before_delete: Callable[[LoggingTransaction, Sequence[str]], None],
    ) -> None:
        """Forget nothing yet.

        Args:
            homeserver: Reaches Synapse.
            reader: Reads lists.
            backlog: Knows what waits.
            shared_rooms: Knows with whom rooms are shared.
            audit: Keeps what is done.
            before_delete: Called in the transaction in which some are deleted, before.
        """
        self._before_delete = before_delete
        self._homeserver = homeserver
        self._reader = reader
        self._backlog = backlog
        self._shared_rooms = shared_rooms
        self._audit = audit
        self._lock = homeserver.linearizer("federation_admin_forget")
        self._tables: tuple[str, ...] | None = None

    async def forget(self, name: str, options: ForgetOptions) -> Forgotten | None:
        """Forget one destination, unless users of ours share a room with it.

        Args:
            name: Its exact name.
            options: How.

        Returns:
            What came of it; None if Synapse knows nothing of this destination. Raises
            what the database raises; then nothing has changed.
        """
        if not can_be_stored(name):
            return None
        seen = (await self._look([name]))[name]
        backlog = (await self._backlog.of([name]))[name]
        if seen.row is None and backlog.is_empty:
            return None
        shared_rooms = (await self._shared_rooms.of(name)).rooms
        lost, kept = _losses([backlog], options)
        found = Forgotten(
            destination=seen.row or Destination(name, None, None, None, None),
            lost=lost,
            kept=kept,
            shared_rooms=shared_rooms,
            refused=_refusal(shared_rooms),
        )
        if options.dry_run or found.refused:
            return found
        entry = self._entry(name, seen, backlog, options)
        deleted = await self._delete({name: seen}, [entry], options)
        if not deleted:
            return attr.evolve(found, refused=_CHANGED, changed=True)
        return attr.evolve(found, forgotten=True)

    async def forget_many(
        self, wanted: DestinationFilter, options: ForgetOptions
    ) -> ManyForgotten:
        """Forget what a filter keeps, but for what shares rooms with users of ours.

        It goes on to its end, even if nobody waits for it any more.

        Returns:
            What came of it. Raises what the database raises; what has been forgotten by
            then stays so.
        """
        return await self._homeserver.begin(
            "federation_admin_forget", partial(self._forget_many, wanted, options)
        ).wait()

    async def _forget_many(
        self, wanted: DestinationFilter, options: ForgetOptions
    ) -> ManyForgotten:
        if options.dry_run:
            return await self._forget_all(wanted, options, None)
        async with self._lock(""):
            entry = self._audit.entry(
                AuditAction.BULK_FORGET,
                options.actor,
                reason=options.reason,
                details={
                    "filter": shown_filter(wanted),
                    "drop_to_device": options.drop_to_device,
                },
            )
            entry = attr.evolve(entry, run_id=entry.entry_id)
            await self._audit.insert(entry)
            try:
                found = await self._forget_all(wanted, options, entry.entry_id)
            except Exception:
                await self._audit.end_as_failed(entry)
                raise
            counts = {
                "matched": found.matched,
                "forgotten": found.forgotten,
                "refused": found.refused,
                "lost": attr.asdict(found.lost),
            }
            await self._audit.end(self._audit.ended(entry, AUDIT_DONE, counts))
            return found

    async def _forget_all(
        self,
        wanted: DestinationFilter,
        options: ForgetOptions,
        run_id: str | None,
    ) -> ManyForgotten:
        """Forget what a filter keeps."""
        total = ManyForgotten(run_id=run_id)
        names: list[str] = []
        async with aclosing(self._reader.pieces(wanted, Sort(), None)) as pieces:
            async for rows in pieces:
                names += [row.destination for row in rows]
                if len(names) >= _CANDIDATES:
                    total = await self._forget_these(total, names, options)
                    names = []
        return await self._forget_these(total, names, options)

    async def _forget_these(
        self,
        total: ManyForgotten,
        names: Sequence[str],
        options: ForgetOptions,
    ) -> ManyForgotten:
        seen: dict[str, _Seen] = {}
        for piece in _pieces(names, _LOOKED_AT_ONCE):
            seen.update(await self._look(piece))
        shared = await self._shared_rooms.counts(names)
        for piece in _pieces([n for n in names if n not in shared], _DELETED_AT_ONCE):
            backlogs = await self._backlog.of(piece)
            forgotten = set(piece)
            if not options.dry_run:
                entries = [
                    self._entry(name, seen[name], backlogs[name], options, total.run_id)
                    for name in piece
                ]
                forgotten = await self._delete(
                    {name: seen[name] for name in piece}, entries, options
                )
                await self._homeserver.sleep_ms(_PAUSE_MS)
            lost, kept = _losses([backlogs[name] for name in forgotten], options)
            total = attr.evolve(
                total,
                forgotten=total.forgotten + len(forgotten),
                lost=total.lost + lost,
                kept=total.kept + kept,
                sample=(*total.sample, *sorted(forgotten))[:_SAMPLE],
                refused=total.refused + len(piece) - len(forgotten),
            )
        return attr.evolve(
            total,
            matched=total.matched + len(names),
            refused=total.refused + len(shared),
            refused_sample=(*total.refused_sample, *sorted(shared.items()))[:_SAMPLE],
        )

    async def _look(self, names: Sequence[str]) -> dict[str, _Seen]:
        """Return what is there of some destinations."""
        return await self._homeserver.run_db_interaction(
            "federation_admin_forget", lambda txn: _look_txn(txn, names)
        )

    async def _delete(
        self,
        seen: Mapping[str, _Seen],
        entries: Sequence[AuditEntry],
        options: ForgetOptions,
    ) -> set[str]:
        """Delete destinations in one transaction, with their entries in the audit.

        Args:
            seen: What was there of each when it was looked for shared rooms.
            entries: What to write of each that is deleted.
            options: How.

        Returns:
            Those that were deleted: whose rows are as they were seen.
        """
        if self._tables is None:
            self._tables = await self._homeserver.run_db_interaction(
                "federation_admin_forget",
                partial(_tables_txn, on_postgres=self._homeserver.is_postgres),
            )
        children = (*self._tables, *([_TO_DEVICE] if options.drop_to_device else []))

        def delete_txn(txn: LoggingTransaction) -> set[str]:
            now = _look_txn(txn, list(seen))
            names = sorted(name for name in seen if now[name] == seen[name])
            if not names:
                return set()
            self._before_delete(txn, names)
            marks = ", ".join("?" * len(names))
            for table in (*children, "destinations"):
                txn.execute(
                    f"DELETE FROM {table} WHERE destination IN ({marks})",  # noqa: S608
                    tuple(names),
                )
            # Outages are kept: that it was forgotten is how one ended.
            for records in (failures, successes, addresses):
                records.delete_txn(txn, names)
            self._homeserver.retry_timings.invalidate_txn(txn, names)
            self._audit.insert_txn(txn, [e for e in entries if e.destination in names])
            return set(names)

        try:
            return await self._audit.run("federation_admin_forget", delete_txn)
        except self._homeserver.integrity_error:
            if not self._homeserver.is_postgres:
                raise
            # An event was queued for one of them in this very moment: the foreign key
            # of the ledger keeps its row.
            if len(seen) == 1:
                return set()
        deleted: set[str] = set()
        for name, was in seen.items():
            deleted |= await self._delete({name: was}, entries, options)
        return deleted

    def _entry(
        self,
        name: str,
        seen: _Seen,
        backlog: Backlog,
        options: ForgetOptions,
        run_id: str | None = None,
    ) -> AuditEntry:
        lost, kept = _losses([backlog], options)
        return self._audit.entry(
            AuditAction.FORGET,
            options.actor,
            destination=name,
            reason=options.reason,
            run_id=run_id,
            outcome=AUDIT_FORGOTTEN,
            details={
                "failure_ts": seen.row.failure_ts if seen.row else None,
                "lost": attr.asdict(lost),
                "kept": {"to_device_messages": kept},
            },
        )


def _refusal(shared_rooms: int) -> str | None:
    if not shared_rooms:
        return None
    rooms = "1 room" if shared_rooms == 1 else f"{shared_rooms} rooms"
    return (
        f"Local users share {rooms} with this destination: it is not forgotten while "
        "they do"
    )


def _losses(backlogs: Sequence[Backlog], options: ForgetOptions) -> tuple[Waiting, int]:
    """Return what would be lost of backlogs, and how many messages would be kept."""
    messages = sum(backlog.to_device_messages for backlog in backlogs)
    lost = Waiting(
        rooms=sum(backlog.rooms for backlog in backlogs),
        to_device_messages=messages if options.drop_to_device else 0,
        device_list_updates=sum(backlog.device_list_updates for backlog in backlogs),
    )
    return lost, 0 if options.drop_to_device else messages


def _pieces(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]


def _look_txn(txn: LoggingTransaction, names: Sequence[str]) -> dict[str, _Seen]:
    marks = ", ".join("?" * len(names))
    txn.execute(
        f"SELECT {sql.DESTINATION_COLUMNS} FROM destinations "  # noqa: S608
        f"WHERE destination IN ({marks})",
        tuple(names),
    )
    rows = {row[0]: Destination(*row) for row in txn.fetchall()}
    newest: list[dict[str, int]] = []
    for table, column in (
        ("destination_rooms", "stream_ordering"),
        (_TO_DEVICE, "stream_id"),
        ("device_lists_outbound_pokes", "stream_id"),
    ):
        txn.execute(
            f"SELECT destination, MAX({column}) FROM {table} "  # noqa: S608
            f"WHERE destination IN ({marks}) GROUP BY destination",
            tuple(names),
        )
        newest.append(dict(txn.fetchall()))
    return {
        name: _Seen(rows.get(name), *(found.get(name) for found in newest))
        for name in names
    }


def _tables_txn(txn: LoggingTransaction, *, on_postgres: bool) -> tuple[str, ...]:
    """Return those of the tables that this Synapse has."""
    found = []
    for table in _CHILDREN:
        if on_postgres:
            txn.execute("SELECT to_regclass(?) IS NOT NULL", (table,))
        else:
            txn.execute(
                "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
                (table,),
            )
        ((exists,),) = txn.fetchall()
        if exists:
            found.append(table)
    return tuple(found)
