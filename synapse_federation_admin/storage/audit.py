# SPDX-License-Identifier: Apache-2.0
"""Keeps who did what, when, why, and the outcome: in a table, and in the log.

This file alone names `federation_admin_audit`, and so has all statements of it.
"""

import json
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import REPAIRS
from synapse_federation_admin.storage import instances
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import (
    AHEAD_MS,
    Expired,
    Sql,
    any_of,
    marks,
    where,
)
from synapse_federation_admin.storage.values import (
    AUDIT_FAILED,
    AUDIT_FLUSHED,
    AUDIT_FLUSHED_IN_PART,
    AUDIT_FORGOTTEN,
    AUDIT_INTERRUPTED,
    AUDIT_PENDING,
    WHOLE,
    Actor,
    AuditAction,
    AuditEntry,
    AuditFilter,
    ReconnectOutcome,
    ResetOutcome,
    RunStatus,
)

logger = logging.getLogger(__name__)

# What became of single destinations, for statements of others.
ENTRIES = (
    "(SELECT destination, action, outcome, ts, ended_ts FROM federation_admin_audit)"
)

_COLUMNS = tuple(
    name
    for kind in (AuditEntry, Actor)
    for name in attr.fields_dict(kind)
    if name != "actor"
)
_SELECTED = ", ".join(_COLUMNS)

_OF_RECONNECT = tuple(
    outcome.value
    for outcome in ReconnectOutcome
    if outcome is not ReconnectOutcome.PENDING
)

# The outcomes of each action here, but for runs; what never ends is not counted.
OUTCOMES: Mapping[AuditAction, tuple[str, ...]] = {
    AuditAction.RESET: (
        ResetOutcome.RESET.value,
        *(each for each in _OF_RECONNECT if each != ReconnectOutcome.FORCED.value),
    ),
    AuditAction.RECONNECT: (*_OF_RECONNECT, AUDIT_FAILED),
    AuditAction.CANCEL: (RunStatus.CANCELLED.value,),
    AuditAction.FORGET: (AUDIT_FORGOTTEN,),
    AuditAction.FLUSH_CACHES: (AUDIT_FLUSHED, AUDIT_FLUSHED_IN_PART),
}

# What is noted of entries when their destination has taken a transaction.
TAKEN: Mapping[str, object] = {"taken": True}

# Entries that are old by when they began.
OLD = Expired("federation_admin_audit", "entry_id", "ts < ?")

# What is in the order of time, and where a page begins.
AuditPosition = tuple[int, str]


class Audit:
    """Writes and reads the audit.

    A method whose name ends in `_txn` is to be called in a transaction of the tables'.
    An entry is in the log when it has ended, once its transaction is committed.
    """

    def __init__(self, homeserver: Homeserver, tables: Tables) -> None:
        self._homeserver = homeserver
        self.tables = tables
        for action, outcomes in OUTCOMES.items():
            for outcome in outcomes:
                homeserver.metrics(REPAIRS, action.value, outcome)

    @staticmethod
    def log_unwritten(entry: AuditEntry, error: Exception) -> None:
        """Log an entry that the table could not take."""
        logger.warning("Cannot write to the audit what follows: %s", error)
        _log([entry])

    def entry(
        self,
        action: AuditAction | str,
        actor: Actor,
        *,
        destination: str | None = None,
        reason: str | None = None,
        run_id: str | None = None,
        outcome: str = AUDIT_PENDING,
        details: Mapping[str, object] | None = None,
    ) -> AuditEntry:
        """Make an entry of this process, as of now; it is not written yet."""
        now_ts = self._homeserver.now_ms()
        return AuditEntry(
            entry_id=secrets.token_hex(8),
            ts=now_ts,
            action=action.value if isinstance(action, AuditAction) else action,
            actor=actor,
            instance=self._homeserver.instance_name,
            outcome=outcome,
            destination=destination,
            reason=reason,
            run_id=run_id,
            ended_ts=None if outcome == AUDIT_PENDING else now_ts,
            details=details or {},
        )

    def ended(
        self,
        entry: AuditEntry,
        outcome: str,
        details: Mapping[str, object] | None = None,
    ) -> AuditEntry:
        """Return an entry with its end, which is now; it is not written yet."""
        return attr.evolve(
            entry,
            outcome=outcome,
            ended_ts=self._homeserver.now_ms(),
            details={**entry.details, **(details or {})},
        )

    def insert_txn(
        self, txn: LoggingTransaction, entries: Iterable[AuditEntry]
    ) -> None:
        """Write new entries."""
        entries = list(entries)
        txn.execute_batch(
            f"INSERT INTO federation_admin_audit ({_SELECTED}) "  # noqa: S608
            f"VALUES ({marks(_COLUMNS)})",
            [_to_row(entry) for entry in entries],
        )
        txn.call_after(self._log_and_count, entries)

    def end_txn(
        self, txn: LoggingTransaction, *entries: AuditEntry
    ) -> list[AuditEntry]:
        """Write what came of entries that are there, unless they have ended already.

        Returns:
            Those of them that had not.
        """
        ended = []
        for entry in entries:
            txn.execute(
                "UPDATE federation_admin_audit SET outcome = ?, ended_ts = ?, "
                "details = ? WHERE entry_id = ? AND outcome = ?",
                (
                    entry.outcome,
                    entry.ended_ts,
                    _to_json(entry.details),
                    entry.entry_id,
                    AUDIT_PENDING,
                ),
            )
            if txn.rowcount:
                ended.append(entry)
        txn.call_after(self._log_and_count, ended)
        return ended

    def _log_and_count(self, entries: Collection[AuditEntry]) -> None:
        _log(entries)
        for entry in entries:
            if entry.outcome != AUDIT_PENDING:
                self._homeserver.metrics(REPAIRS, entry.action, entry.outcome).inc()

    async def insert(self, entry: AuditEntry) -> None:
        """Write a new entry. Raises what the database raises."""
        await self.tables.run(
            "federation_admin_audit", lambda txn: self.insert_txn(txn, [entry])
        )

    async def end(self, entry: AuditEntry) -> None:
        """Write what came of an entry, unless it has ended already.

        If it is connected, what else was cleared of the destination was of use, too.
        Raises what the database raises.
        """

        def end_txn(txn: LoggingTransaction) -> None:
            self.end_txn(txn, entry)
            if entry.outcome == ReconnectOutcome.CONNECTED.value:
                self.works_txn(txn, [str(entry.destination)])

        await self.tables.run("federation_admin_audit", end_txn)

    def end_as_failed(self, entry: AuditEntry) -> None:
        """Have it be written that something has gone wrong, as soon as that can be.

        For where an exception is on its way, which shall not be hidden by another.
        """
        self._homeserver.run_in_background(
            "federation_admin_audit",
            self._homeserver.await_database,
            partial(self.end, self.ended(entry, AUDIT_FAILED)),
        )

    def interrupt_txn(
        self, txn: LoggingTransaction, before_ts: int, instance: str | None = None
    ) -> None:
        """End what began before a time and has not ended: its process has since.

        Args:
            txn: The transaction.
            before_ts: The time, in ms since the epoch.
            instance: The process, this one; None for any. Likewise what those began
                that are away, before that, where background tasks are run.
        """
        which = Sql("ts < ?", (before_ts,))
        if instance is not None:
            # What has been cleared is followed up by the next process.
            # Nor may the clock of the last one have been right. Where nobody could
            # write for long, some seem to be away, and go on.
            away, now_ms = self._away(txn), self._homeserver.now_ms()
            which = Sql(
                "ended_ts IS NULL AND (((ts < ? OR ts > ?) AND instance = ?) "
                f"OR (ts < ? AND {away.text}))",
                (
                    *(before_ts, now_ms + AHEAD_MS, instance),
                    *(now_ms - instances.AWAY_MS, *away.args),
                ),
            )
        # The literal is that of the index. A run as a whole goes on.
        txn.execute(
            "UPDATE federation_admin_audit SET outcome = ?, ended_ts = ? "  # noqa: S608
            "WHERE outcome = 'pending' "
            f"AND (run_id IS NULL OR ended_ts IS NOT NULL) AND {which.text}",
            (AUDIT_INTERRUPTED, self._homeserver.now_ms(), *which.args),
        )

    def _away(self, txn: LoggingTransaction) -> Sql:
        """Return the condition for what this process has to end in another's stead.

        That is what a process began that is away, as one that was renamed, or taken out
        of the configuration: where background tasks are run.
        """
        if not self._homeserver.runs_background_tasks:
            return Sql("1 = 0")
        those = instances.away(txn, self._homeserver.instance_name)
        return Sql(f"instance IN {those.text}", those.args)

    def cleared_txn(
        self, txn: LoggingTransaction, after: AuditPosition | None, limit: int
    ) -> list[AuditEntry]:
        """Return entries of which this process has to find out what comes of them.

        That is: `pending`, with an `ended_ts`, when the retry timings were cleared; its
        own, and those of processes that are away.

        Args:
            txn: The transaction.
            after: The position behind which to begin, oldest first; None: at the start.
            limit: The most to return.
        """
        beyond = "" if after is None else "AND (ts, entry_id) > (?, ?)"
        away = self._away(txn)
        txn.execute(
            f"SELECT {_SELECTED} FROM federation_admin_audit "  # noqa: S608
            f"WHERE outcome = 'pending' AND (instance = ? OR {away.text}) "
            f"AND ended_ts IS NOT NULL {beyond} ORDER BY ts, entry_id LIMIT ?",
            (self._homeserver.instance_name, *away.args, *(after or ()), limit),
        )
        return [_to_entry(row) for row in txn.fetchall()]

    async def has_cleared(self, run_id: str) -> bool:
        """Tell whether there is such an entry of a run."""
        one = Sql(
            "SELECT 1 FROM federation_admin_audit WHERE outcome = 'pending' "
            "AND instance = ? AND run_id = ? AND ended_ts IS NOT NULL LIMIT 1",
            (self._homeserver.instance_name, run_id),
        )
        return bool(await self.tables.run("federation_admin_audit", one.select_txn))

    async def note(
        self, notes: Mapping[str, Mapping[str, object]], column: str = "destination"
    ) -> None:
        """Add to the details of such entries. Raises what the database raises."""
        await self.tables.run(
            "federation_admin_audit",
            lambda txn: self.note_txn(txn, notes, column),
            read_committed=True,
        )

    def note_txn(
        self,
        txn: LoggingTransaction,
        notes: Mapping[str, Mapping[str, object]],
        column: str = "destination",
    ) -> None:
        """Add to the details of such entries, by what is in a column of theirs."""
        wanted = any_of(column, list(notes))
        lock = "FOR UPDATE" if self._homeserver.is_postgres else ""
        txn.execute(
            f"SELECT entry_id, {column}, details FROM federation_admin_audit "  # noqa: S608
            f"WHERE {wanted.text} AND outcome = 'pending' AND ended_ts IS NOT NULL "
            f"ORDER BY entry_id {lock}",
            wanted.args,
        )
        txn.execute_batch(
            "UPDATE federation_admin_audit SET details = ? WHERE entry_id = ?",
            [
                (_to_json({**json.loads(before), **notes[about]}), entry_id)
                for entry_id, about, before in txn.fetchall()
            ],
        )

    def works_txn(self, txn: LoggingTransaction, names: Collection[str]) -> None:
        """Note that destinations work: what was cleared of them was of use."""
        if names:
            self.note_txn(txn, dict.fromkeys(names, TAKEN))

    def interrupt_cleared_txn(
        self, txn: LoggingTransaction, names: Collection[str]
    ) -> None:
        """End such entries of destinations: nobody will know what comes of them."""
        wanted = any_of("destination", names)
        txn.execute(
            "UPDATE federation_admin_audit SET outcome = ?, ended_ts = ? "  # noqa: S608
            "WHERE outcome = 'pending' AND ended_ts IS NOT NULL "
            f"AND {wanted.text}",
            (AUDIT_INTERRUPTED, self._homeserver.now_ms(), *wanted.args),
        )

    async def read(
        self, wanted: AuditFilter, after: AuditPosition | None, limit: int
    ) -> list[AuditEntry]:
        """Read the next entries, the newest first.

        Args:
            wanted: Which ones.
            after: The position behind which to begin; None is at the start.
            limit: The most entries to return.
        """
        conditions = _conditions(wanted)
        if after is not None:
            conditions.append(Sql("(ts, entry_id) < (?, ?)", after))
        which = where(conditions)

        def read_txn(txn: LoggingTransaction) -> list[AuditEntry]:
            txn.execute(
                f"SELECT {_SELECTED} FROM federation_admin_audit {which.text} "  # noqa: S608
                "ORDER BY ts DESC, entry_id DESC LIMIT ?",
                (*which.args, limit),
            )
            return [_to_entry(row) for row in txn.fetchall()]

        return await self.tables.run("federation_admin_read_audit", read_txn)


def _conditions(wanted: AuditFilter) -> list[Sql]:
    found = [
        Sql(f"{column} {compared} ?", (value,))
        for column, compared, value in (
            ("run_id", "=", wanted.run_id),
            ("destination", "=", wanted.destination),
            ("outcome", "=", wanted.outcome),
            ("ts", ">=", wanted.since_ts),
            ("ts", "<", wanted.until_ts),
        )
        if value is not None
    ]
    if wanted.actions:
        actions = tuple(sorted(action.value for action in wanted.actions))
        found.append(Sql(f"action IN ({marks(actions)})", actions))
    if wanted.user_id is not None:
        user = (wanted.user_id, wanted.user_id)
        found.append(Sql("(user_id = ? OR puppeted_by = ?)", user))
    return found


def _to_row(entry: AuditEntry) -> tuple[str | int | None, ...]:
    found = attr.asdict(entry, recurse=False)
    found |= attr.asdict(entry.actor) | {"details": _to_json(entry.details)}
    if entry.destination is not None and len(entry.destination) > limits.SERVER_NAME:
        # A longer one does not fit into the index.
        found["destination"] = f"{entry.destination[: limits.SERVER_NAME - 3]}..."
    return tuple(found[column] for column in _COLUMNS)


def _to_entry(row: Sequence[Any]) -> AuditEntry:
    found = dict(zip(_COLUMNS, row, strict=True))
    return AuditEntry(
        actor=Actor(found.pop("user_id"), found.pop("puppeted_by")),
        details=json.loads(found.pop("details")),
        **found,
    )


def _to_json(details: Mapping[str, object]) -> str:
    return json.dumps(details, separators=(",", ":"))


def _log(entries: Collection[AuditEntry]) -> None:
    # A line for all destinations to which the same has happened in a run: where the
    # disk of the log is full, each line holds everybody up.
    alike: dict[tuple[str | None, str], list[AuditEntry]] = {}
    for entry in entries:
        is_begun = entry.outcome == AUDIT_PENDING and entry.ended_ts is None
        # What may take long is in the log when it begins, too.
        if is_begun and not entry.action.startswith(WHOLE):
            continue
        is_of_many = entry.run_id is not None and entry.destination is not None
        of = (entry.run_id, entry.outcome) if is_of_many else (None, entry.entry_id)
        alike.setdefault(of, []).append(entry)
    for entry, *others in alike.values():
        # As JSON, in ASCII: whatever a remote server or an admin has put into a name
        # or a reason, it is one line.
        said: dict[str, object] = {
            "action": entry.action,
            "outcome": entry.outcome,
            "destination": entry.destination,
            "user": entry.actor.user_id,
            "puppeted_by": entry.actor.puppeted_by,
            "reason": entry.reason,
            "run_id": entry.run_id,
        }
        if others:
            said["destination"] = [each.destination for each in (entry, *others)]
        else:
            said |= {"entry_id": entry.entry_id, **entry.details}
        logger.info("Audit: %s", _to_json({k: v for k, v in said.items() if v}))
