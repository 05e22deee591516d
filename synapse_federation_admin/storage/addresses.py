# SPDX-License-Identifier: Apache-2.0
"""Where destinations lead that began to fail together: `federation_admin_addresses`.

It has a row for each destination that was looked up. This file alone names the table.
"""

import json
from collections.abc import Mapping, Sequence

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage.sql import Sql, delete_of, delete_some

_TABLE = "federation_admin_addresses"

# The rows, for statements of others; `addresses` is a list, as JSON.
ADDRESSES = f"(SELECT destination, looked_ts, addresses FROM {_TABLE})"  # noqa: S608


def write_txn(
    txn: LoggingTransaction, found: Mapping[str, Sequence[str]], looked_ts: int
) -> None:
    """Write to which addresses destinations lead, each in place of what was before."""
    txn.execute_batch(
        f"INSERT INTO {_TABLE} (destination, looked_ts, addresses) "  # noqa: S608
        "VALUES (?, ?, ?) ON CONFLICT (destination) DO UPDATE SET "
        "looked_ts = EXCLUDED.looked_ts, addresses = EXCLUDED.addresses",
        [
            (destination, looked_ts, json.dumps(addresses))
            for destination, addresses in found.items()
        ],
    )


def prune_txn(txn: LoggingTransaction, before_ts: int, limit: int) -> int:
    """Delete rows of what was looked up before a time; return how many."""
    old = Sql("looked_ts < ?", (before_ts,))
    return delete_some(txn, _TABLE, "destination", old, limit)


def delete_txn(txn: LoggingTransaction, destinations: Sequence[str]) -> None:
    """Delete those of some destinations."""
    delete_of(txn, _TABLE, destinations)
