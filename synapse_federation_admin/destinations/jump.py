# SPDX-License-Identifier: Apache-2.0
"""Finds a row far into a long list, in transactions that are short each.

For SQLite, where the homeserver has one connection: to sort half a million names in one
statement takes over a second, in which nobody else has it.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.order import Segment
from synapse_federation_admin.destinations.query import (
    BEYOND,
    DESTINATION_COLUMNS,
    by_name,
    names_between,
)
from synapse_federation_admin.destinations.values import Destination, Direction
from synapse_federation_admin.storage.sql import Sql, where

T = TypeVar("T")

# Through how many rows of the table one statement may go by name.
_ROWS = 50_000


class Run(Protocol):
    """Runs a transaction."""

    def __call__(self, func: Callable[[LoggingTransaction], T], /) -> Awaitable[T]: ...  # noqa: D102


async def row_at(
    run: Run, parts: Sequence[Segment], kept: Sequence[Sql], skipped: int
) -> Destination | None:
    """Return the row of a sorted list behind some others; None if there is none.

    Args:
        run: Runs a transaction.
        parts: The segments of the list.
        kept: The conditions for its rows.
        skipped: How many rows lie before.
    """
    for segment in parts:
        which = [*segment.where, *kept]
        count = await run(partial(_count_txn, which=which))
        if count <= skipped:
            skipped -= count
            continue
        if segment.value is not None:
            order = f"{segment.value} {BEYOND[segment.direction][1]}"
            value = await run(
                partial(
                    _at_txn,
                    columns=segment.value,
                    which=which,
                    order=order,
                    skipped=skipped,
                )
            )
            if value is None:
                return None
            # Rows with the same value are sorted by their names.
            is_before = ">" if segment.direction is Direction.BACKWARDS else "<"
            before = Sql(f"{segment.value} {is_before} ?", value)
            skipped -= await run(partial(_count_txn, which=[*which, before]))
            which.append(Sql(f"{segment.value} = ?", value))
        return await _row_by_name(run, which, segment.names, max(0, skipped))
    return None


async def _row_by_name(
    run: Run, which: Sequence[Sql], names: Direction, skipped: int
) -> Destination | None:
    """Return the row behind some others of a list that is sorted by name."""
    after: str | None = None
    # Between how many rows of the whole table it lies.
    low, high = 0, await run(partial(_count_txn, which=()))
    while high - low > _ROWS:
        middle = (low + high) // 2
        found = await run(
            partial(
                _at_txn,
                columns="destination",
                which=(),
                order=by_name(names),
                skipped=middle - 1,
            )
        )
        if found is None:
            return None
        between = names_between(after, found[0], names)
        count = await run(partial(_count_txn, which=[*which, *between]))
        if count <= skipped:
            low, after, skipped = middle, found[0], skipped - count
        else:
            high = middle
    row = await run(
        partial(
            _at_txn,
            columns=DESTINATION_COLUMNS,
            which=[*which, *names_between(after, None, names)],
            order=by_name(names),
            skipped=skipped,
        )
    )
    return None if row is None else Destination(*row)


def _count_txn(txn: LoggingTransaction, which: Sequence[Sql]) -> int:
    kept = where(which)
    # The primary key would lead it to each row, all over the file.
    source = "destinations NOT INDEXED" if which else "destinations"
    txn.execute(f"SELECT COUNT(*) FROM {source} {kept.text}", kept.args)  # noqa: S608
    ((count,),) = txn.fetchall()
    return int(count)


def _at_txn(
    txn: LoggingTransaction,
    columns: str,
    which: Sequence[Sql],
    order: str,
    skipped: int,
) -> tuple[Any, ...] | None:
    """Return some columns of the row behind some others; None if there is none."""
    kept = where(which)
    txn.execute(
        f"SELECT {columns} FROM destinations {kept.text} "  # noqa: S608
        f"ORDER BY {order} LIMIT 1 OFFSET ?",
        (*kept.args, skipped),
    )
    return txn.fetchone()
