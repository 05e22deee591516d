# SPDX-License-Identifier: Apache-2.0
"""What came of requests and waits to be written, and how it is written."""

from collections.abc import MutableMapping
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage import outages, records
from synapse_federation_admin.storage.records import RecordedFailure, RecordedSuccess

# A destination, and a kind.
Key = tuple[str, str]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class UpTime:
    """For how long a destination that fails was not failing, since it has recovered.

    Attributes:
        until_ms: Until the first failure that waits to be written.
        within_ms: Between that one and others.
    """

    until_ms: int
    within_ms: int

    def before(self, later: "UpTime") -> "UpTime":
        """Return this and what follows, written together."""
        within_ms = self.within_ms + later.until_ms + later.within_ms
        return UpTime(self.until_ms, within_ms)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Unwritten:
    """What waits to be written, or what of it one transaction writes.

    Attributes:
        failures: Failures, by destination and kind.
        answers: Answers, by destination.
        since: Of those that have answered, since when they were failing.
        up: For how long those were not failing that fail.
    """

    failures: dict[Key, RecordedFailure] = attr.Factory(dict)
    answers: dict[str, RecordedSuccess] = attr.Factory(dict)
    since: dict[str, int] = attr.Factory(dict)
    up: dict[str, UpTime] = attr.Factory(dict)

    def write_txn(self, txn: LoggingTransaction) -> None:
        """Write it.

        All is sorted, so that transactions of other processes rarely wait for each
        other in a circle; then Synapse runs one of them again.
        """
        up, failed, answered = self.up, self.failures, self.answers
        # For how long an outage was over that the job has ended is known when it goes
        # on.
        outages.add_up_txn(txn, {name: up[name].until_ms for name in sorted(up)})
        if self.since:
            outages.begin_since_txn(txn, self.since)
        if answered:
            records.add_successes_txn(
                txn, [answered[name] for name in sorted(answered)]
            )
        by_destination: dict[str, list[RecordedFailure]] = {}
        for key in sorted(failed, key=lambda key: (key[0], failed[key].last_ts)):
            by_destination.setdefault(key[0], []).append(failed[key])
        if failed:
            records.add_failures_txn(txn, by_destination)
            backed_off = {
                name: [failure for failure in of if failure.backs_off]
                for name, of in by_destination.items()
            }
            outages.record_txn(txn, {name: of for name, of in backed_off.items() if of})
        outages.add_up_txn(txn, {name: up[name].within_ms for name in sorted(up)})

    def add_failure(self, destination: str, failure: RecordedFailure) -> None:
        """Add a failure to those of its kind."""
        _add(self.failures, (destination, failure.kind), failure)

    def add_answer(self, answer: RecordedSuccess) -> None:
        """Add that a destination has answered."""
        _add(self.answers, answer.destination, answer)

    def add_since(self, destination: str, since_ts: int) -> None:
        """Add since when a destination was failing that has answered.

        If it has failed and answered several times, the first counts.
        """
        self.since.setdefault(destination, since_ts)

    def add_up(self, destination: str, up_ms: int) -> None:
        """Add for how long a destination that fails anew was not failing."""
        waits = any((destination, kind.value) in self.failures for kind in FailureKind)
        up = UpTime(0, up_ms) if waits else UpTime(up_ms, 0)
        _add(self.up, destination, up)

    def take(self) -> "Unwritten":
        """Take some of it, the oldest."""
        failed, answered = _take(self.failures), _take(self.answers)
        since, up = self.since, self.up
        return Unwritten(
            failed,
            answered,
            {name: since.pop(name) for name in answered if name in since},
            {name: up.pop(name) for name in {n for n, _ in failed} if name in up},
        )

    def put_back(self, taken: "Unwritten") -> None:
        """Put back what could not be written, before what has come meanwhile."""
        for key, failure in taken.failures.items():
            _add_before(self.failures, key, failure)
        for name, answer in taken.answers.items():
            _add_before(self.answers, name, answer)
        for name, up in taken.up.items():
            _add_before(self.up, name, up)
        self.since.update(taken.since)


K = TypeVar("K")
R = TypeVar("R", RecordedFailure, RecordedSuccess, UpTime)


def _take(waiting: MutableMapping[K, R]) -> dict[K, R]:
    some = tuple(waiting)[: limits.RECORDS_WRITTEN]
    return {key: waiting.pop(key) for key in some}


def _add(waiting: MutableMapping[K, R], key: K, later: R) -> None:
    known = waiting.get(key)
    waiting[key] = later if known is None else known.before(later)


def _add_before(waiting: MutableMapping[K, R], key: K, earlier: R) -> None:
    known = waiting.get(key)
    waiting[key] = earlier if known is None else earlier.before(known)
