# SPDX-License-Identifier: Apache-2.0
"""A homeserver of which a test says what fails, and looks for outages itself."""

from typing import Any

from module_case import NAME, ModuleTestCase
from synapse.api.errors import RequestSendFailed
from twisted.internet import error

from synapse_federation_admin.history.outages import Outages
from synapse_federation_admin.history.recorder import Recorder
from synapse_federation_admin.storage.outages import begin_missing_txn

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
OUTAGES = f"/_synapse/admin/v2/federation/destinations/{NAME}/outages"
GONE = "DELETE FROM destinations"
REFUSED = RequestSendFailed(error.ConnectionRefusedError(), can_retry=False)
NO_DNS = RequestSendFailed(error.DNSLookupError(), can_retry=False)


class OutagesTestCase(ModuleTestCase):
    """At first nothing is failing. The time is `self.now`, in ms.

    Another process runs background tasks: nobody looks but the test.
    """

    def default_config(self) -> dict[str, Any]:
        return {
            **super().default_config(),
            "instance_map": {
                "main": {"host": "127.0.0.1", "port": 1},
                "worker": {"host": "127.0.0.1", "port": 2},
            },
            "run_background_tasks_on": "worker",
        }

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.reactor.advance(10 * DAY / 1000)
        self.job = Outages(self.homeserver, self.tables)
        self.look()
        self.began = self.now

    @property
    def now(self) -> int:
        return self.homeserver.now_ms()

    def look(self, *, at_all: bool = True) -> None:
        self.get_success(self.job.look(at_all=at_all))

    def pass_time(self, duration_ms: int) -> None:
        """Let time pass, or set the clock back."""
        self.reactor.rightNow += duration_ms / 1000

    def forget_all(self) -> None:
        """Have nothing be known."""
        for table in ("audit", "successes", "failures", "outages"):
            self.run_sql(f"DELETE FROM federation_admin_{table}")
        self.run_sql(GONE)

    def failing(self, since_ts: int | None, last_ts: int | None = None) -> None:
        """Write a row that is failing."""
        self.add_destination(NAME, last_ts or since_ts, 600_000, since_ts)
        self.forget_timings()

    def working(self) -> None:
        """Write a row that is not failing."""
        self.add_destination(NAME, 0, 0, None)
        self.forget_timings()

    def forget_timings(self) -> None:
        """Have Synapse's cache know nothing of the row."""
        self.hs.get_datastores().main.get_destination_retry_timings.invalidate_all()

    def outage(
        self,
        start_ts: int,
        end_ts: int | None = None,
        ended: str | None = None,
        kind: str | None = "connection_refused",
    ) -> None:
        """Write an outage that is recorded."""
        self.insert(
            "federation_admin_outages",
            destination=NAME,
            start_ts=start_ts,
            end_ts=end_ts,
            ended=ended,
            kinds=kind or "",
            last_kind=kind,
        )

    def recovered(self, ts: int) -> None:
        """Write that a request got through after others had failed."""
        self.insert(
            "federation_admin_successes", destination=NAME, last_ts=ts, recovered_ts=ts
        )

    def failed(self, kind: str, ts: int) -> None:
        """Write that a request failed."""
        self.insert_failure(NAME, kind, ts, instance="master")

    def done(
        self, action: str, outcome: str, ts: int, ended_ts: int | None = None
    ) -> None:
        """Write into the audit what somebody has done."""
        self.insert(
            "federation_admin_audit",
            destination=NAME,
            entry_id=f"{action} {outcome} {ts}",
            ts=ts,
            action=action,
            user_id="@admin:test",
            instance="master",
            outcome=outcome,
            ended_ts=ts if ended_ts is None else ended_ts,
            details="{}",
        )

    def recorder(self) -> Recorder:
        """Return what takes note of the requests of a process."""
        return Recorder(self.homeserver, self.tables)

    def write_outage(self) -> None:
        """Have the outage written, as before the row is cleared."""
        self.get_success(
            self.tables.run(
                "test", lambda txn: begin_missing_txn(txn, [NAME], self.now)
            )
        )

    def write(self, recorder: Recorder) -> None:
        self.get_success(recorder.write())

    def assert_recorded(
        self, expected: list[tuple[int, int | None, str | None]], about: object = None
    ) -> None:
        """Compare starts, ends, and how they ended, oldest first.

        Each request to the harness's database takes some milliseconds of its clock.
        """
        shown = self.shown()
        told = (shown, expected, about)
        self.assertEqual([o["ended"] for o in shown], [e[2] for e in expected], told)
        for outage, (start_ts, end_ts, _) in zip(shown, expected, strict=True):
            self.assertLess(abs(outage["start_ts"] - start_ts), 200, told)
            self.assertEqual(outage["end_ts"] is None, end_ts is None, told)
            if end_ts is not None:
                self.assertLess(abs(outage["end_ts"] - end_ts), 200, told)

    def shown(self) -> list[dict[str, Any]]:
        return self.get_json(OUTAGES)["outages"][::-1]  # type: ignore[no-any-return]
