# SPDX-License-Identifier: Apache-2.0
"""What has changed since the last answer, on both databases."""

from typing import Any
from unittest import mock

import pytest
from module_case import FAILING, NAME, V2, ResetTestCase

from synapse_federation_admin import limits
from synapse_federation_admin.history.outages import Outages

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]


class ChangesTestCase(ResetTestCase):
    """GET changes."""

    def setUp(self) -> None:
        # It would bring what is written here up to date.
        self.patch(Outages, "start", lambda _: None)
        super().setUp()
        self.reactor.advance(1000 * 24 * 3600)

    def changes(self, since: int, *, after_s: int = 6) -> Any:
        """Ask when what was read before is too old."""
        self.reactor.advance(after_s)
        return self.get_json(f"{V2}/changes?since={since}")

    def add_failure(self, name: str, ago_ms: int = 1000) -> None:
        ts = self.clock.time_msec() - ago_ms
        self.insert_failure(name, "dns_failed", ts)

    def add_end(self, name: str, ahead_ms: int = 0) -> None:
        now_ms = self.clock.time_msec() + ahead_ms
        self.insert(
            "federation_admin_outages",
            destination=name,
            start_ts=now_ms - 5000,
            end_ts=now_ms - 1000,
            ended="recovered",
            kinds="",
        )

    def test_once(self) -> None:
        """Each change is told once to who asks with the time of the last answer."""
        first = self.changes(0)
        self.assertEqual((first["failed"], first["audit"]), ([], []))
        # It goes no further back than some minutes.
        self.assertFalse(first["is_complete"])
        since = first["as_of_ts"]
        # Written late, as what a busy process has met.
        self.add_failure("a.example", ago_ms=60_000)
        self.add_end("b.example")
        # By a clock that was ahead.
        self.add_failure("c.example", ago_ms=-3_600_000)
        self.add_end("d.example", ahead_ms=3_600_000)
        self.add_destination(NAME, *FAILING)
        self.assertEqual(self.reset().code, 200)
        found = self.changes(since)
        self.assertTrue(found["is_complete"])
        told = [(each["destination"], each["kind"]) for each in found["failed"]]
        self.assertEqual(told, [("a.example", "dns_failed")])
        back = [(each["destination"], each["ended"]) for each in found["came_back"]]
        self.assertIn(("b.example", "recovered"), back)
        self.assertNotIn(("d.example", "recovered"), back)
        self.assertEqual([e["destination"] for e in found["audit"]], [NAME])
        self.assertEqual(found["runs"], [])
        nothing = self.changes(found["as_of_ts"])
        for key in ("failed", "came_back", "runs", "audit"):
            self.assertEqual(nothing[key], [], key)
        self.assertEqual(self.changes(since, after_s=0)["failed"], found["failed"])

    def test_answers_again(self) -> None:
        """That a server has answered is told before its outage's end is written, which
        is found once a minute; while it fails, or has failed since, it is not."""
        now_ms = self.clock.time_msec()
        for name in ("up.example", "row.example", "since.example", "cleared.example"):
            self.add_destination(name, *(FAILING if name == "row.example" else (0, 0)))
            self.insert(
                "federation_admin_outages",
                destination=name,
                start_ts=now_ms - 9000,
                kinds="",
            )
            self.insert(
                "federation_admin_successes",
                destination=name,
                last_ts=now_ms - 2000,
                recovered_ts=None if name == "cleared.example" else now_ms - 2000,
            )
        self.add_failure("since.example")
        told = {"destination": "up.example", "ended": "recovered", "ts": now_ms - 2000}
        self.assertEqual(self.changes(0)["came_back"], [told])

    def test_run(self) -> None:
        """A run is told when it is made, and again when it has changed."""
        since = self.changes(0)["as_of_ts"]
        self.add_destination(NAME, *FAILING)
        run = self.post_json(f"{V2}/cap_backoff", max_retry_interval_ms=1)
        found = self.changes(since)
        self.assertEqual([each["id"] for each in found["runs"]], [run["id"]])
        actions = [entry["action"] for entry in found["audit"]]
        self.assertIn("bulk_cap_backoff", actions)

    def test_shared(self) -> None:
        """Many who ask within some seconds cost the database no more than one."""
        self.changes(0)
        self.add_failure("a.example")
        changes = "synapse_federation_admin.history.changes.ChangesStore._refresh"
        with mock.patch(changes) as refresh:
            for _ in range(10):
                self.assertEqual(self.changes(0, after_s=0)["failed"], [])
        refresh.assert_not_called()

    def test_bounded(self) -> None:
        """Where there is more than is told, the answer says so."""
        since = self.changes(0)["as_of_ts"]
        for number in range(3):
            self.add_failure(f"{number}.example")
        with mock.patch.object(limits, "TOLD_CHANGES", 2):
            found = self.changes(since)
        self.assertEqual((len(found["failed"]), found["is_complete"]), (2, False))
