# SPDX-License-Identifier: Apache-2.0
"""Tables cut into pieces by a time, so that on SQLite none takes long."""

from collections.abc import AsyncIterator, Awaitable, Callable

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage.sql import Sql

# Runs a function in a transaction.
Run = Callable[[Callable[[LoggingTransaction], int | None]], Awaitable[int | None]]


async def pieces_since(
    run: Run, source: str, column: str, since_ts: int, size: int
) -> AsyncIterator[Sql]:
    """Yield conditions that each hold for some of the rows since a time.

    Args:
        run: Runs a function in a transaction.
        source: What stands behind FROM: the table, and WHERE with a condition.
        column: The column with the time, for which there is an index.
        since_ts: The time.
        size: How many rows one of them holds for, and those of the same time as the
            last.
    """
    begin_ts: int | None = since_ts
    while begin_ts is not None:

        def end_txn(txn: LoggingTransaction, begin_ts: int = begin_ts) -> int | None:
            txn.execute(
                f"SELECT {column} FROM {source} AND {column} >= ? "  # noqa: S608
                f"ORDER BY {column} LIMIT 1 OFFSET ?",
                (begin_ts, size - 1),
            )
            row = txn.fetchone()
            return int(row[0]) if row else None

        end_ts = await run(end_txn)
        if end_ts is None:
            yield Sql(f"{column} >= ?", (begin_ts,))
            return
        yield Sql(f"{column} >= ? AND {column} <= ?", (begin_ts, end_ts))
        begin_ts = end_ts + 1
