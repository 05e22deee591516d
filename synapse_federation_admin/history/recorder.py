# SPDX-License-Identifier: Apache-2.0
"""Keeps what comes of real federation requests, of this process's.

What is taken from the traffic costs some microseconds and stays in memory; every three
seconds it is written, in one small transaction. So `kill -9` loses three seconds of it
at most, and however many requests fail, there are as many transactions.

All is bounded: in memory `limits.WAITING_RECORDS` failures, of different destinations
and kinds, wait to be written, and as many answers; in the table each destination has
one row for each kind. Old rows are deleted
(`synapse_federation_admin.repair.housekeeping`).
"""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import attr
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import (
    OWN_KINDS,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.responses import http_failure
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.history.owners import owner_of
from synapse_federation_admin.history.second_looks import SecondLooks
from synapse_federation_admin.history.unwritten import Unwritten
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import FAILURES
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.homeserver.transactions import Transaction, Transactions
from synapse_federation_admin.storage.records import (
    SUCCESS_EVERY_MS,
    RecordedFailure,
    RecordedSuccess,
)
from synapse_federation_admin.storage.schema import Tables, TablesUnusableError

K = TypeVar("K")

logger = logging.getLogger(__name__)

# How long what was taken may wait until it is written.
_WRITE_EVERY_MS = 3000

# Synapse waits for longer before it sends a transaction again.
_SENT_AGAIN_MS = 1000

# What an answer of 2xx is that cannot be read, has no end, or says something else.
_NO_ANSWER = (
    FailureKind.INVALID_RESPONSE,
    FailureKind.RESPONSE_TIMEOUT,
    FailureKind.HTTP_ERROR,
)


class Recorder:
    """Takes note of what comes of this process's federation requests."""

    def __init__(
        self, homeserver: Homeserver, tables: Tables, *, looks_twice: bool = True
    ) -> None:
        """Take note of nothing yet.

        Args:
            homeserver: Reaches Synapse.
            tables: The tables.
            looks_twice: Whether to ask a server, or the DNS, where that tells more of a
                failure.
        """
        self._homeserver = homeserver
        self._tables = tables
        self._looks_twice = looks_twice
        self._unwritten = Unwritten()
        # By destination, the newest last: when it recovered, until it fails again; and
        # when an answer of it was last noted, and to how large a request at the most.
        self._recovered_ts: dict[str, int] = {}
        self._noted: dict[str, tuple[int, int]] = {}
        # Those that have refused a transaction so that Synapse does not back off.
        self._refusing: dict[str, bool] = {}
        self._second_looks = SecondLooks(homeserver, self._take_found)
        self._under_way: Callable[[str], Transaction | None] = lambda _: None
        # Whether it has been said that there is no room.
        self._has_said_full = False

    def start(self) -> None:
        """Begin to take note; what has not been written is when Synapse shuts down."""
        for kind in FailureKind:
            if kind not in OWN_KINDS:
                self._homeserver.metrics(FAILURES, kind.value)
        self._homeserver.observe_traffic(self)
        self._homeserver.every(
            "federation_admin_record",
            _WRITE_EVERY_MS,
            self.write,
            first_after_ms=_WRITE_EVERY_MS,
            rests=False,
        )
        self._homeserver.before_shutdown("federation_admin_record", self.write)

    def watch(self, transactions: Transactions) -> None:
        """Begin to take note of what comes of this process's transactions, too."""
        self._under_way = transactions.under_way
        transactions.observe(self.transaction_ended)
        transactions.observe_refused(self.transaction_refused)

    # -- what is taken from the traffic, on the reactor ------------------------------

    def failed(
        self, destination: str, error: BaseException, size_bytes: int = 0
    ) -> None:
        """Take note of a failure."""
        if len(destination) > limits.SERVER_NAME:
            return
        # If the request itself was called off, it is not theirs.
        failure = (
            Failure(FailureKind.OTHER, Reason.CALLED_OFF)
            if isinstance(error, CancelledError)
            else failure_of(error)
        )
        if failure.is_ours or failure.kind in OWN_KINDS:
            # What fails on this side tells nothing of the other server.
            return
        now_ts = self._homeserver.now_ms()
        if self._looks_twice:
            failure = self._second_looks.better(destination, failure)
        self._noted.pop(destination, None)
        key = (destination, failure.kind.value)
        recovered_ts = self._recovered_ts.pop(destination, None)
        if not self._has_room(self._unwritten.failures, key):
            return
        if recovered_ts is not None:
            # Longer ago, the job has found that the outage has ended.
            up_ms = now_ts - recovered_ts
            if up_ms < limits.OUTAGES_APART_MS:
                self._unwritten.up_ms[destination] += max(0, up_ms)
        is_too_large = failure.kind is FailureKind.TOO_LARGE
        self._record(
            destination,
            failure,
            now_ts,
            issuer=failure.facts.issuer,
            refused_bytes=size_bytes or None if is_too_large else None,
        )

    def transaction_ended(self, transaction: Transaction) -> None:
        """Take note of what was taken; or answered with 2xx, and is no answer.

        Synapse takes the status for a success, reads the rest, and has sent nothing. It
        does not back off. Any other failure was told before this.
        """
        name = transaction.destination
        if transaction.error is None:
            self._refusing.pop(name, None)
            self._answered(name, transaction.bytes or 0)
            return
        if not transaction.is_answered:
            return
        failure = failure_of(transaction.error)
        if failure.kind in _NO_ANSWER:
            self._record_refused(name, failure)

    def transaction_refused(self, transaction: Transaction) -> None:
        """Take note of what is answered with 5xx, and is sent again.

        Synapse waits before it does, for minutes in all. Only then it backs off. 429 is
        left to that: whoever takes one transaction at a time says so to a second one.
        """
        if transaction.status == HTTPStatus.TOO_MANY_REQUESTS:
            return
        self._homeserver.run_in_background(
            "federation_admin_refused", self._refused, transaction, transaction.begun_ts
        )

    async def _refused(self, transaction: Transaction, begun_ts: int) -> None:
        await self._homeserver.sleep_ms(_SENT_AGAIN_MS)
        name, status = transaction.destination, transaction.status
        if transaction.has_ended or transaction.begun_ts != begun_ts or status is None:
            # If it was given up, that is told.
            return
        self._record_refused(name, http_failure(status, b"").but(Reason.SENT_AGAIN))

    def _record_refused(self, name: str, failure: Failure) -> None:
        """Take note of a failure for which Synapse does not back off."""
        if self._has_room(self._unwritten.failures, (name, failure.kind.value)):
            self._noted.pop(name, None)
            keep_newest(self._refusing, name, True, limits.ANSWERING_DESTINATIONS)
            self._record(name, failure, self._homeserver.now_ms(), backs_off=False)

    def _record(self, name: str, failure: Failure, now_ts: int, **more: Any) -> None:
        """Take note of one failure, to be written soon."""
        recorded = RecordedFailure(
            kind=failure.kind.value,
            message=message_of(failure),
            first_ts=now_ts,
            last_ts=now_ts,
            count=1,
            instance=self._homeserver.instance_name,
            **more,
        )
        self._unwritten.add_failure(name, recorded)

    def _take_found(self, destination: str, failure: Failure, found: Failure) -> None:
        """Take note of what a failure really is that may wait to be written."""
        key = (destination, failure.kind.value)
        waiting = self._unwritten.failures.pop(key, None)
        if waiting is not None:
            really = attr.evolve(
                waiting, message=message_of(found), kind=found.kind.value
            )
            self._unwritten.add_failure(destination, really)

    def recovered(self, destination: str, *, has_answered: bool = True) -> None:
        """Take note that a destination which was failing has answered.

        Or that it has asked us something, which proves nothing of our requests.
        """
        now_ts = self._homeserver.now_ms()
        if has_answered:
            # Synapse has backed off since it refused a transaction, if it has.
            self._refusing.pop(destination, None)
        keep_newest(
            self._recovered_ts, destination, now_ts, limits.ANSWERING_DESTINATIONS
        )
        # At once: Synapse clears the row next.
        self._homeserver.run_in_background(
            "federation_admin_recovered", self._recovered, destination, has_answered
        )

    async def _recovered(self, destination: str, has_answered: bool) -> None:
        now_ts = self._homeserver.now_ms()
        timings = self._homeserver.retry_timings
        since_ts = await timings.failing_since_ts(destination)
        last_ts = now_ts if has_answered else now_ts - 1
        if self._add_success(destination, last_ts, now_ts) and since_ts is not None:
            # No failure of it may be recorded: then Synapse's row, which it clears
            # now, is all that there is.
            # If it has failed and answered several times, the first counts.
            self._unwritten.since.setdefault(destination, min(since_ts, now_ts))

    def answered(self, destination: str, size_bytes: int = 0) -> None:
        """Take note that a destination has answered.

        Whether it has taken a transaction is known once its answer was read. Of one
        that has refused the last, and from which Synapse does not back off, no other
        request proves that messages arrive.
        """
        sent = self._under_way(destination)
        is_sent = sent is not None and sent.is_answered
        if not is_sent and destination not in self._refusing:
            self._answered(destination, size_bytes)

    def taken(self, destination: str) -> None:
        """Take note that a destination has taken a contact.

        At once: another process may have met a failure since its last answer here.
        """
        self._refusing.pop(destination, None)
        self._noted.pop(destination, None)
        self._answered(destination, 0)

    def _answered(self, destination: str, size_bytes: int) -> None:
        now_ts = self._homeserver.now_ms()
        noted_ts, most_bytes = self._noted.get(destination, (None, 0))
        is_noted = noted_ts is not None and now_ts - noted_ts < SUCCESS_EVERY_MS
        # A larger one may disprove that it refuses what is large.
        if is_noted and size_bytes <= most_bytes:
            return
        if self._add_success(destination, now_ts, None, size_bytes):
            noted = now_ts, max(size_bytes, most_bytes)
            keep_newest(self._noted, destination, noted, limits.ANSWERING_DESTINATIONS)

    def _add_success(
        self, name: str, ts: int, recovered_ts: int | None, accepted_bytes: int = 0
    ) -> bool:
        """Have an answer be written, if there is room for it; return whether."""
        if len(name) > limits.SERVER_NAME:
            return False
        if not self._has_room(self._unwritten.answers, name):
            return False
        self._unwritten.add_answer(
            RecordedSuccess(name, ts, recovered_ts, owner_of(name), accepted_bytes)
        )
        return True

    def _has_room(self, waiting: Mapping[K, Any], key: K) -> bool:
        if key in waiting or len(waiting) < limits.WAITING_RECORDS:
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

    def _is_kept(self, error: BaseException) -> bool:
        """Tell whether what an error has kept from being written may be later.

        If that is a bug, it would be one again.
        """
        return isinstance(
            error, (TablesUnusableError, CancelledError)
        ) or self._homeserver.is_database_away(error)

    async def write(self) -> None:
        """Write all that has been taken note of. Raises what the database raises.

        What could not be written because the database is away is kept.
        """
        for _ in range(2 * limits.WAITING_RECORDS // limits.RECORDS_WRITTEN):
            batch = self._unwritten.take()
            if not (batch.failures or batch.answers):
                return
            try:
                await self._tables.run(
                    "federation_admin_record",
                    batch.write_txn,
                    read_committed=True,
                )
            except BaseException as e:
                if self._is_kept(e):
                    self._unwritten.put_back(batch)
                raise
            self._has_said_full = False
            for failure in batch.failures.values():
                if failure.backs_off:
                    self._homeserver.metrics(FAILURES, failure.kind).inc(failure.count)
