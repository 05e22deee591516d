# SPDX-License-Identifier: Apache-2.0
"""Keeps what comes of real federation requests, of this process's.

What is taken from the traffic costs some microseconds and stays in memory; every three
seconds it is written, in one small transaction. So `kill -9` loses three seconds of it
at most, and however many requests fail, there are as many transactions.

All is bounded: in memory `_MAX_WAITING` failures, of different destinations and kinds,
wait to be written, and as many answers; in the table each destination has one row for
each kind. Old rows are deleted (`synapse_federation_admin.repair.housekeeping`).
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import attr
from synapse.module_api import LoggingTransaction
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.query import Sql
from synapse_federation_admin.failure import describe, failure_of
from synapse_federation_admin.history.ending import SETTLED_MS, end_outages
from synapse_federation_admin.history.kinds import to_bits
from synapse_federation_admin.history.sql import rows_of_json
from synapse_federation_admin.homeserver import (
    Homeserver,
    UntrustedCertificateError,
    led_to_blocked_addresses,
)
from synapse_federation_admin.models import SUCCESS_EVERY_MS, FailureKind
from synapse_federation_admin.tables import Tables

logger = logging.getLogger(__name__)

# How long what was taken may wait until it is written; and at most, while that fails.
_WRITE_EVERY_MS = 3000
_RARELY_MS = 60_000

# The longest name that a server can have, with its port. Synapse takes longer ones,
# which lead nowhere, and which PostgreSQL would not take into an index.
_MAX_NAME = 261

# How much one transaction writes, and how much may wait.
_WRITTEN_AT_ONCE = 1000
_MAX_WAITING = 20_000

# Of how many destinations it is known when it was written that they answer: of more it
# is written more often than each SUCCESS_EVERY_MS.
_MAX_KNOWN = 50_000


@attr.s(slots=True, auto_attribs=True, eq=False)
class _Failures:
    """Failures of one kind of one destination, not written yet."""

    first_ts: int
    last_ts: int
    count: int
    message: str
    issuer: str


# Kinds of failures that are because of a certificate that is not trusted.
_UNTRUSTED = (
    FailureKind.TLS_EXPIRED,
    FailureKind.TLS_NOT_YET_VALID,
    FailureKind.TLS_UNTRUSTED,
)

# A destination, and a kind.
_Key = tuple[str, FailureKind]


class Recorder:
    """Takes note of what comes of this process's federation requests."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, *, contact_timeout_ms: int
    ) -> None:
        self._homeserver = homeserver
        self._tables = tables
        self._settled_ms = contact_timeout_ms + SETTLED_MS
        self._failures: dict[_Key, _Failures] = {}
        # When a destination answered, and when it did so after it had failed.
        self._successes: dict[str, int] = {}
        self._recoveries: dict[str, int] = {}
        # When it was last taken note of that a destination answered, the newest last.
        self._known: dict[str, int] = {}
        self._is_writing = False
        # Whether it has been said that there is no room, and that nothing is written.
        self._has_said_full = False
        self._has_said_failing = False

    def start(self) -> None:
        """Begin to take note; what has not been written is when Synapse shuts down."""
        self._homeserver.metrics.show_failures(kind.value for kind in FailureKind)
        self._homeserver.observe_traffic(self)
        self._homeserver.before_shutdown("federation_admin_record", self.write)

    # -- what is taken from the traffic, on the reactor ------------------------------

    def failed(self, destination: str, error: BaseException) -> None:
        """Take note of a failure."""
        if len(destination) > _MAX_NAME:
            return
        # If the request itself was called off, it is not theirs.
        failure = (
            describe(FailureKind.OTHER, "this homeserver called the request off")
            if isinstance(error, CancelledError)
            else failure_of(error, led_to_blocked_addresses)
        )
        now_ts = self._homeserver.now_ms()
        self._homeserver.metrics.count_failure(failure.kind.value)
        self._known.pop(destination, None)
        key = (destination, failure.kind)
        known = self._failures.get(key)
        if known is not None:
            known.last_ts = now_ts
            known.count += 1
            known.message = failure.message
            known.issuer = _issuer_of(error, failure.kind)
        elif self._has_room(self._failures):
            self._failures[key] = _Failures(
                now_ts, now_ts, 1, failure.message, _issuer_of(error, failure.kind)
            )
            self._write_soon()

    def recovered(self, destination: str) -> None:
        """Take note that a destination which was failing has answered."""
        if len(destination) > _MAX_NAME:
            return
        if destination in self._recoveries or self._has_room(self._recoveries):
            self._recoveries[destination] = self._homeserver.now_ms()
            self._write_soon()

    def answered(self, destination: str) -> None:
        """Take note that a destination has answered."""
        now_ts = self._homeserver.now_ms()
        known_ts = self._known.get(destination)
        if known_ts is not None and now_ts - known_ts < SUCCESS_EVERY_MS:
            return
        if len(destination) > _MAX_NAME or not self._has_room(self._successes):
            return
        self._successes[destination] = now_ts
        self._known.pop(destination, None)
        self._known[destination] = now_ts
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._write_soon()

    def _has_room(self, waiting: Mapping[Any, Any]) -> bool:
        if len(waiting) < _MAX_WAITING:
            return True
        if not self._has_said_full:
            self._has_said_full = True
            logger.warning(
                "What came of federation requests to %s destinations waits to be "
                "written: that of others is not recorded until it is",
                len(waiting),
            )
        return False

    # -- what is written --------------------------------------------------------------

    def _write_soon(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._homeserver.run_in_background(
                "federation_admin_record", self._write_while_any
            )

    @property
    def _has_any(self) -> bool:
        return bool(self._failures or self._recoveries or self._successes)

    async def _write_while_any(self) -> None:
        wait_ms = _WRITE_EVERY_MS
        try:
            while self._has_any:
                await self._homeserver.sleep_ms(wait_ms)
                try:
                    await self.write()
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    # It is kept, and the database will be back.
                    wait_ms = min(2 * wait_ms, _RARELY_MS)
                    if not self._has_said_failing:
                        self._has_said_failing = True
                        logger.warning("Cannot record federation failures yet: %s", e)
                else:
                    wait_ms = _WRITE_EVERY_MS
                    self._has_said_full = self._has_said_failing = False
        finally:
            self._is_writing = False

    async def write(self) -> None:
        """Write all that has been taken note of. Raises what the database raises.

        What could not be written is kept.
        """
        if not self._has_any:
            return
        await self._tables.ready()
        for _ in range(2 * _MAX_WAITING // _WRITTEN_AT_ONCE):
            failures = _take(self._failures)
            recoveries = _take(self._recoveries)
            successes = _take(self._successes)
            if not (failures or recoveries or successes):
                return
            batch = _Batch.make(
                failures, recoveries, successes, self._homeserver.instance_name
            )
            now_ts = self._homeserver.now_ms()
            try:
                await self._homeserver.run_read_committed(
                    "federation_admin_record",
                    partial(
                        _write_txn,
                        batch,
                        self._homeserver.is_postgres,
                        now_ts,
                        now_ts - self._settled_ms,
                    ),
                )
            except BaseException:
                self._put_back(failures, recoveries, successes)
                raise

    def _put_back(
        self,
        failures: dict[_Key, _Failures],
        recoveries: dict[str, int],
        successes: dict[str, int],
    ) -> None:
        for key, found in failures.items():
            later = self._failures.get(key)
            if later is None:
                self._failures[key] = found
            else:
                later.first_ts = found.first_ts
                later.count += found.count
        self._recoveries = {**recoveries, **self._recoveries}
        self._successes = {**successes, **self._successes}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Batch:
    """What one transaction writes, each a list of objects as JSON; "" for none.

    As one parameter each, so that a thousand rows cost the process that sends them
    hardly more than one. All are sorted, so that transactions of other processes rarely
    wait for each other in a circle; then Synapse runs one of them again.
    """

    successes: str
    failures: str
    outages: str

    @classmethod
    def make(
        cls,
        failures: dict[_Key, _Failures],
        recoveries: dict[str, int],
        successes: dict[str, int],
        instance: str,
    ) -> "_Batch":
        """Make the rows."""
        answered = [
            {"destination": name, "ts": ts, "recovered": recoveries.get(name)}
            # One that has recovered has answered.
            for name, ts in sorted({**successes, **recoveries}.items())
        ]
        failed = []
        by_name: dict[str, list[tuple[FailureKind, _Failures]]] = {}
        for (name, kind), found in failures.items():
            by_name.setdefault(name, []).append((kind, found))
            failed.append(
                {
                    "destination": name,
                    "kind": kind.value,
                    "instance": instance,
                    "message": found.message,
                    "issuer": found.issuer,
                    "first_ts": found.first_ts,
                    "last_ts": found.last_ts,
                    "count": found.count,
                }
            )
        failed.sort(key=lambda row: (row["destination"], row["kind"]))
        down = [
            {
                "destination": name,
                "first_ts": min(failure.first_ts for _, failure in found),
                "last_ts": max(failure.last_ts for _, failure in found),
                "kind": max(found, key=lambda one: one[1].last_ts)[0].value,
                "kinds": to_bits(kind.value for kind, _ in found),
            }
            for name, found in sorted(by_name.items())
        ]
        return cls(
            *(json.dumps(rows) if rows else "" for rows in (answered, failed, down))
        )


def _take(waiting: dict[Any, Any]) -> dict[Any, Any]:
    """Take some of what waits, the oldest."""
    taken = dict(zip(tuple(waiting)[:_WRITTEN_AT_ONCE], waiting.values(), strict=False))
    for key in taken:
        del waiting[key]
    return taken


def _issuer_of(error: BaseException | None, kind: FailureKind) -> str:
    """Return who issued the certificate because of which a request failed."""
    if kind not in _UNTRUSTED:
        return ""
    todo: list[Any] = [error]
    for _ in range(20):
        if not todo:
            break
        found = todo.pop()
        if isinstance(found, UntrustedCertificateError):
            return found.issuer
        inner = getattr(found, "inner_exception", None)
        todo += [] if inner is None else [inner]
        todo += [reason.value for reason in getattr(found, "reasons", ())]
    return ""


def _write_txn(
    batch: _Batch,
    is_postgres: bool,
    now_ts: int,
    settled_ts: int,
    txn: LoggingTransaction,
) -> None:
    # What fails anew is no part of an outage that is over.
    over = end_outages(Sql(_FAILS_ANEW, (batch.outages,)), now_ts, settled_ts)
    for rows, columns, statements in (
        (batch.successes, _SUCCESS_COLUMNS, (Sql(_WRITE_SUCCESSES),)),
        (batch.failures, _FAILURE_COLUMNS, (Sql(_WRITE_FAILURES),)),
        (
            batch.outages,
            _OUTAGE_COLUMNS,
            (over, Sql(_BEGIN_OUTAGES), Sql(_WRITE_KINDS)),
        ),
    ):
        if rows:
            source = rows_of_json("new", columns, is_postgres)
            for statement in statements:
                txn.execute(
                    statement.text.replace("{new}", source), statement.args or (rows,)
                )


_SUCCESS_COLUMNS = {"destination": "text", "ts": "bigint", "recovered": "bigint"}
_FAILURE_COLUMNS = {
    "destination": "text",
    "kind": "text",
    "instance": "text",
    "message": "text",
    "issuer": "text",
    "first_ts": "bigint",
    "last_ts": "bigint",
    "count": "bigint",
}
_OUTAGE_COLUMNS = {
    "destination": "text",
    "first_ts": "bigint",
    "last_ts": "bigint",
    "kind": "text",
    "kinds": "bigint",
}

_WRITE_SUCCESSES = """
    INSERT INTO federation_admin_successes AS known
        (destination, last_ts, recovered_ts)
    SELECT new.destination, new.ts, new.recovered FROM {new} WHERE TRUE
    ON CONFLICT (destination) DO UPDATE SET
        last_ts = CASE WHEN EXCLUDED.last_ts > known.last_ts
            THEN EXCLUDED.last_ts ELSE known.last_ts END,
        recovered_ts = CASE WHEN known.recovered_ts IS NULL
                OR EXCLUDED.recovered_ts > known.recovered_ts
            THEN EXCLUDED.recovered_ts ELSE known.recovered_ts END
"""

# What was said last is kept of what several processes say.
_WRITE_FAILURES = """
    INSERT INTO federation_admin_failures AS known
        (destination, kind, message, first_ts, last_ts, count, instance, issuer)
    SELECT new.destination, new.kind, new.message, new.first_ts, new.last_ts,
        new.count, new.instance, new.issuer
    FROM {new} WHERE TRUE
    ON CONFLICT (destination, kind) DO UPDATE SET
        message = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.message ELSE known.message END,
        instance = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.instance ELSE known.instance END,
        issuer = CASE WHEN EXCLUDED.last_ts >= known.last_ts
            THEN EXCLUDED.issuer ELSE known.issuer END,
        first_ts = CASE WHEN EXCLUDED.first_ts < known.first_ts
            THEN EXCLUDED.first_ts ELSE known.first_ts END,
        last_ts = CASE WHEN EXCLUDED.last_ts > known.last_ts
            THEN EXCLUDED.last_ts ELSE known.last_ts END,
        count = known.count + EXCLUDED.count
"""

_FAILS_ANEW = """
    o.destination IN (SELECT new.destination FROM {new})
    AND d.retry_last_ts <> 0 AND d.failure_ts IS NOT NULL
"""

# Since when it fails Synapse's row knows best; but where that is about an outage that
# has ended, this is another one. What is written only after the outage has ended in
# which it failed, because another process or the job was quicker, begins none.
_BEGIN_OUTAGES = """
    INSERT INTO federation_admin_outages (destination, start_ts, kinds)
    SELECT new.destination,
        CASE
            WHEN d.failure_ts < new.first_ts AND NOT EXISTS (
                SELECT 1 FROM federation_admin_outages AS before
                WHERE before.destination = new.destination
                AND before.end_ts > d.failure_ts
            ) THEN d.failure_ts
            ELSE COALESCE(
                (
                    SELECT MAX(before.end_ts) + 1
                    FROM federation_admin_outages AS before
                    WHERE before.destination = new.destination
                    AND before.end_ts > new.first_ts
                ),
                new.first_ts
            )
        END,
        0
    FROM {new} LEFT JOIN destinations AS d ON d.destination = new.destination
    WHERE NOT EXISTS (
        SELECT 1 FROM federation_admin_outages AS o
        WHERE o.destination = new.destination
        AND (o.end_ts IS NULL OR o.end_ts >= new.last_ts)
    )
    ON CONFLICT DO NOTHING
"""

_WRITE_KINDS = """
    UPDATE federation_admin_outages AS o
    SET last_kind = new.kind, kinds = o.kinds | new.kinds
    FROM {new}
    WHERE o.destination = new.destination AND o.end_ts IS NULL
    AND (
        o.last_kind IS NULL OR o.last_kind <> new.kind
        OR o.kinds <> (o.kinds | new.kinds)
    )
"""
