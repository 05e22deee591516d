# SPDX-License-Identifier: Apache-2.0
"""Keeps each outage of a destination: when it began, when it ended, and how.

An outage begins with a request that fails, which `recorder` writes. It ends with the
last thing that made Synapse take the destination as working again: a request that got
through, a reset, or that its row was deleted. Which of these it was, this job finds out
once a minute, in SQL, by Synapse's rows, what `recorder` has written, and the audit. It
also begins the outages that `recorder` does not: at once that of what fails anew, noted
while the outage before it seemed to last; at the start, and then every five minutes,
those of what was failing before, and of what a killed process could not write.

Only the process that runs background tasks does this.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.query import FAILING
from synapse_federation_admin.destinations.statements import last_row_id
from synapse_federation_admin.destinations.values import MAX_NAME
from synapse_federation_admin.history.chunking import pieces_since
from synapse_federation_admin.history.ending import MOMENT_MS, SETTLED_MS, end_outages
from synapse_federation_admin.history.kinds import bits_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.outages import OutageEnd
from synapse_federation_admin.storage.schema import Tables
from synapse_federation_admin.storage.sql import Sql

T = TypeVar("T")

logger = logging.getLogger(__name__)

# How often it is looked what has ended, and how soon after the start; and each how many
# times what has begun: for that there is the recorder, and the table is large.
_EVERY_MS = 60_000
_FIRST_MS = 2000
_BEGIN_EACH = 5

# What one transaction looks at on SQLite: some 10 ms.
_ROWS = 40_000
_OPEN = 2000

# How many outages one transaction begins: on SQLite, again some 10 ms. On PostgreSQL
# most of what fails, or it would look for the outages of each by itself.
_BEGUN_AT_ONCE = 50_000
_BEGUN_AT_ONCE_ON_SQLITE = 500

# How many one transaction has go on.
_REOPENED_AT_ONCE = 100

# What a reset was followed by within this time may still turn out to have been in vain.
_IN_VAIN_MS = 86_400_000


class Outages:
    """Finds out how outages begin and end."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, *, contact_timeout_ms: int
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._settled_ms = contact_timeout_ms + SETTLED_MS
        # Looks left until those that nobody has begun are looked for.
        self._left = 0

    def start(self) -> None:
        """Begin to look once a minute, if this process runs background tasks."""
        if self._homeserver.runs_background_tasks:
            self._homeserver.every(
                "federation_admin_outages",
                _EVERY_MS,
                self._look_as_often,
                first_after_ms=_FIRST_MS,
            )

    async def _look_as_often(self) -> None:
        await self.look(begins=self._left == 0)
        self._left = (self._left or _BEGIN_EACH) - 1

    async def look(self, *, begins: bool = True) -> None:
        """Bring the outages up to date. Raises what the database raises.

        Args:
            begins: Look for those that nobody has begun, too.
        """
        now_ts = self._homeserver.now_ms()
        await self._reopen(now_ts - _IN_VAIN_MS)
        await self._each_open(
            lambda which: end_outages(which, now_ts, now_ts - self._settled_ms)
        )
        most = _BEGUN_AT_ONCE
        if not self._homeserver.is_postgres:
            most = _BEGUN_AT_ONCE_ON_SQLITE
        # What fails anew was noted while the outage before it seemed to last.
        ended = _ended_since(now_ts - self._settled_ms - 2 * _EVERY_MS)
        while await self._run(partial(_execute, _begin(ended, most))) == most:
            pass
        if not begins:
            return
        await self._run(partial(_begin_recording_txn, now_ts=now_ts))
        await self._each_destination(lambda rows: _begin(rows, most), most)

    def end_txn(self, txn: LoggingTransaction, destinations: Sequence[str]) -> None:
        """End those outages of some destinations that are over, in a transaction.

        For before what tells so is deleted. The tables have to be there.
        """
        now_ts = self._homeserver.now_ms()
        marks = ", ".join("?" * len(destinations))
        which = Sql(f"o.destination IN ({marks})", tuple(destinations))
        _execute(end_outages(which, now_ts, now_ts - self._settled_ms), txn)

    async def _reopen(self, since_ts: int) -> None:
        """Have outages go on that a reset since a time has ended in vain."""
        reset = f"federation_admin_outages WHERE ended = '{OutageEnd.RESET.value}'"
        async for piece in pieces_since(self._run, reset, "end_ts", since_ts, _OPEN):
            most = reopened = _REOPENED_AT_ONCE
            while reopened == most:
                reopened = await self._run(
                    partial(_in_vain_txn, piece=piece, most=most)
                )

    async def _each_open(self, statement: Callable[[Sql], Sql]) -> None:
        """Run a statement over all open outages AS o."""
        if self._homeserver.is_postgres:
            await self._run(partial(_execute, statement(Sql("TRUE"))))
            return
        after: str | None = ""
        while after is not None:

            def piece_txn(txn: LoggingTransaction, after: str = after) -> str | None:
                txn.execute(
                    "SELECT destination FROM federation_admin_outages "
                    "WHERE end_ts IS NULL AND destination > ? "
                    "ORDER BY destination LIMIT 1 OFFSET ?",
                    (after, _OPEN - 1),
                )
                row = txn.fetchone()
                which = Sql("o.destination > ?", (after,))
                if row is not None:
                    upto = " AND o.destination <= ?"
                    which = Sql(which.text + upto, (after, row[0]))
                _execute(statement(which), txn)
                return row[0] if row is not None else None

            after = await self._run(piece_txn)

    async def _each_destination(
        self, statement: Callable[[Sql], Sql], most: int
    ) -> None:
        """Run a statement over all rows of `destinations` AS d, until it is done.

        Args:
            statement: Returns the statement for some of the rows.
            most: How many rows it changes if there may be more to change.
        """
        pieces = [Sql("TRUE")]
        if not self._homeserver.is_postgres:
            last = await self._run(last_row_id)
            pieces = [
                Sql("d.rowid > ? AND d.rowid <= ?", (begin, begin + _ROWS))
                for begin in range(0, last, _ROWS)
            ]
        for piece in pieces:
            while await self._run(partial(_execute, statement(piece))) == most:
                pass

    async def _run(self, func: Callable[[LoggingTransaction], T]) -> T:
        return await self._tables.run(
            "federation_admin_outages", func, read_committed=True
        )


def _ended_since(since_ts: int) -> Sql:
    """Return the rows d of destinations of which an outage has ended since a time."""
    return Sql(
        "d.destination IN "
        "(SELECT destination FROM federation_admin_outages WHERE end_ts > ?)",
        (since_ts,),
    )


def _execute(statement: Sql, txn: LoggingTransaction) -> int:
    txn.execute(statement.text, statement.args)
    return txn.rowcount


def _begin_recording_txn(txn: LoggingTransaction, now_ts: int) -> None:
    txn.execute(
        "INSERT INTO federation_admin_recording (only_row, since_ts) VALUES (1, ?) "
        "ON CONFLICT DO NOTHING",
        (now_ts,),
    )


def _in_vain_txn(txn: LoggingTransaction, piece: Sql, most: int) -> int:
    """Have outages go on that a reset has seemed to end; return how many.

    When a reset turns out to have been in vain, the destination is given the time since
    when it really fails: that is before the reset.
    """
    txn.execute(
        "SELECT o.destination, o.start_ts FROM federation_admin_outages AS o "  # noqa: S608
        "JOIN destinations AS d ON d.destination = o.destination "
        f"WHERE o.ended = '{OutageEnd.RESET.value}' AND {piece.text} AND {FAILING} "
        "AND d.failure_ts < o.end_ts - ? AND d.failure_ts > o.start_ts - ? LIMIT ?",
        (*piece.args, MOMENT_MS, MOMENT_MS, most),
    )
    found = txn.fetchall()
    for destination, start_ts in found:
        # What has been taken for another one since.
        txn.execute(
            "SELECT kinds, last_kind FROM federation_admin_outages "
            "WHERE destination = ? AND start_ts > ? ORDER BY start_ts",
            (destination, start_ts),
        )
        kinds, last_kind = 0, None
        for later_kinds, later_kind in txn.fetchall():
            kinds, last_kind = kinds | later_kinds, later_kind or last_kind
        txn.execute(
            "DELETE FROM federation_admin_outages "
            "WHERE destination = ? AND start_ts > ?",
            (destination, start_ts),
        )
        txn.execute(
            "UPDATE federation_admin_outages SET end_ts = NULL, ended = NULL, "
            "kinds = kinds | CAST(? AS BIGINT), last_kind = COALESCE(?, last_kind) "
            "WHERE destination = ? AND start_ts = ?",
            (kinds, last_kind, destination, start_ts),
        )
    return len(found)


def _begin(rows: Sql, most: int) -> Sql:
    """Return what begins outages of destinations that fail, of some rows d.

    In the recorder's order, so that none waits for the other in a circle.
    """
    return Sql(
        f"""
        INSERT INTO federation_admin_outages (destination, start_ts, kinds, last_kind)
        SELECT destination, start_ts, {bits_of("last_kind")}, last_kind
        FROM (
            SELECT d.destination,
                COALESCE(
                    (
                        SELECT MAX(before.end_ts) + 1
                        FROM federation_admin_outages AS before
                        WHERE before.destination = d.destination
                        AND before.end_ts > d.failure_ts
                    ),
                    d.failure_ts,
                    d.retry_last_ts
                ) AS start_ts,
                (
                    SELECT f.kind FROM federation_admin_failures AS f
                    WHERE f.destination = d.destination
                    AND f.last_ts >= COALESCE(d.failure_ts, d.retry_last_ts) - ?
                    ORDER BY f.last_ts DESC LIMIT 1
                ) AS last_kind
            FROM destinations AS d
            WHERE {FAILING} AND {rows.text}
            AND LENGTH(d.destination) <= {MAX_NAME}
            AND NOT EXISTS (
                SELECT 1 FROM federation_admin_outages AS o
                WHERE o.destination = d.destination AND o.end_ts IS NULL
            )
            LIMIT ?
        ) AS new
        WHERE TRUE
        ORDER BY destination
        ON CONFLICT DO NOTHING
        """,  # noqa: S608
        (MOMENT_MS, *rows.args, most),
    )
