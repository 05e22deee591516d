# SPDX-License-Identifier: Apache-2.0
"""What has come of federation requests, as one transaction writes it."""

from collections.abc import Mapping

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.storage import failures, outages, successes
from synapse_federation_admin.storage.failures import RecordedFailure
from synapse_federation_admin.storage.successes import RecordedSuccess


@attr.s(slots=True, auto_attribs=True, eq=False)
class WaitingFailures:
    """Failures of one kind of one destination, not written yet."""

    first_ts: int
    last_ts: int
    count: int
    message: str
    issuer: str
    # Whether there was no connection in time; and whether it is known why.
    is_unconnected: bool = False
    is_settled: bool = False


# A destination, and a kind.
Key = tuple[str, FailureKind]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Batch:
    """What one transaction writes.

    All is sorted, so that transactions of other processes rarely wait for each other in
    a circle; then Synapse runs one of them again.

    Attributes:
        failures: By destination, at most one of each kind, the last one last.
        successes: When destinations answered.
    """

    failures: dict[str, list[RecordedFailure]]
    successes: list[RecordedSuccess]

    @classmethod
    def make(
        cls,
        failures: Mapping[Key, WaitingFailures],
        recoveries: Mapping[str, int],
        answers: Mapping[str, int],
        instance: str,
    ) -> "Batch":
        """Make the rows."""
        failed: dict[str, list[RecordedFailure]] = {}
        for (name, kind), found in sorted(
            failures.items(), key=lambda item: (item[0][0], item[1].last_ts)
        ):
            failed.setdefault(name, []).append(
                RecordedFailure(
                    *(kind.value, found.message, found.first_ts, found.last_ts),
                    *(found.count, instance, found.issuer),
                )
            )
        return cls(
            failures=failed,
            successes=[
                RecordedSuccess(name, ts, recoveries.get(name))
                # One that has recovered has answered.
                for name, ts in sorted({**answers, **recoveries}.items())
            ],
        )

    def write_txn(
        self,
        txn: LoggingTransaction,
        *,
        is_postgres: bool,
        now_ts: int,
        settled_ts: int,
    ) -> None:
        """Write it; see `synapse_federation_admin.storage.outages.record_txn`."""
        if self.successes:
            successes.add_txn(txn, self.successes, is_postgres=is_postgres)
        if self.failures:
            failures.add_txn(txn, self.failures, is_postgres=is_postgres)
            outages.record_txn(
                txn,
                self.failures,
                is_postgres=is_postgres,
                now_ts=now_ts,
                settled_ts=settled_ts,
            )
