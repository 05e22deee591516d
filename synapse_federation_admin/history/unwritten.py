# SPDX-License-Identifier: Apache-2.0
"""What came of requests and waits to be written, and how it is written."""

from collections import Counter
from collections.abc import Mapping, MutableMapping
from typing import TypeVar

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage import outages, records
from synapse_federation_admin.storage.records import (
    AS_LARGE,
    RecordedFailure,
    RecordedSuccess,
)

# A destination, and a kind.
Key = tuple[str, str]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Unwritten:
    """What waits to be written, or what of it one transaction writes.

    Attributes:
        failures: Failures, by destination and kind.
        answers: Answers, by destination.
        since: Of those that have answered, since when they were failing.
        up_ms: For how long those were not failing that fail, since they had recovered.
    """

    failures: dict[Key, RecordedFailure] = attr.Factory(dict)
    answers: dict[str, RecordedSuccess] = attr.Factory(dict)
    since: dict[str, int] = attr.Factory(dict)
    up_ms: Counter[str] = attr.Factory(Counter)

    def write_txn(self, txn: LoggingTransaction) -> None:
        """Write it.

        All is sorted, so that transactions of other processes rarely wait for each
        other in a circle; then Synapse runs one of them again.
        """
        failed, answered = self.failures, self.answers
        # For how long an outage was over that the job has ended is known when it goes
        # on.
        outages.add_up_txn(txn, dict(sorted(self.up_ms.items())))
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

    def add_failure(self, destination: str, failure: RecordedFailure) -> None:
        """Add a failure to those of its kind."""
        _add(self.failures, (destination, failure.kind), failure)

    def add_answer(self, answer: RecordedSuccess) -> None:
        """Add that a destination has answered, which may disprove what it refused."""
        _add(self.answers, answer.destination, answer)
        key = (answer.destination, FailureKind.TOO_LARGE.value)
        failure = self.failures.get(key)
        if failure and answer.accepted_bytes >= AS_LARGE * (failure.refused_bytes or 0):
            self.failures[key] = attr.evolve(failure, refused_bytes=None)

    def take(self) -> "Unwritten":
        """Take some of it, the oldest."""
        failed, answered = _take(self.failures), _take(self.answers)
        since, up_ms = self.since, self.up_ms
        return Unwritten(
            failed,
            answered,
            {name: since.pop(name) for name in answered if name in since},
            Counter({n: up_ms.pop(n) for n in {n for n, _ in failed} if n in up_ms}),
        )

    def put_back(self, taken: "Unwritten") -> None:
        """Put back what could not be written, before what has come meanwhile."""
        _put_back(self.failures, taken.failures)
        _put_back(self.answers, taken.answers)
        self.since.update(taken.since)
        self.up_ms.update(taken.up_ms)


K = TypeVar("K")
R = TypeVar("R", RecordedFailure, RecordedSuccess)


def _take(waiting: MutableMapping[K, R]) -> dict[K, R]:
    some = tuple(waiting)[: limits.RECORDS_WRITTEN]
    return {key: waiting.pop(key) for key in some}


def _add(waiting: MutableMapping[K, R], key: K, later: R) -> None:
    known = waiting.get(key)
    waiting[key] = later if known is None else known.before(later)


def _put_back(waiting: MutableMapping[K, R], taken: Mapping[K, R]) -> None:
    for key, earlier in taken.items():
        later = waiting.get(key)
        waiting[key] = earlier if later is None else earlier.before(later)
