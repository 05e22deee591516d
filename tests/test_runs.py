# SPDX-License-Identifier: Apache-2.0
"""Runs, of whichever action: begun once, resumed anywhere, counted once, cancelled."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any
from unittest import mock

import pytest
from parameterized import parameterized
from probe_case import ProbeTestCase
from run_case import RUNS, RunsTestCase
from twisted.internet import error

from synapse_federation_admin import limits
from synapse_federation_admin.repair import cap_backoff, forget_many, runner
from synapse_federation_admin.storage.run_queue import Job

# Every Synapse has the runs of test_cap_backoff.py and test_e2e_cluster.py.
pytestmark = [pytest.mark.database, pytest.mark.one_synapse]

NAMES = [f"host{number:03}.example" for number in range(30)]
FILTER = {"destination": "host"}

# How each action is asked for, at ten destinations per second where it can be said, and
# the outcome that all of them have.
ACTIONS: dict[str, dict[str, Any]] = {
    "reconnect": {"filter": FILTER, "per_second": 10},
    "forget": {"filter": FILTER, "force": True, "dry_run": False},
    "cap_backoff": {"max_retry_interval_ms": 1000},
}
OUTCOMES = {
    "reconnect": "still_failing",
    "forget": "forgotten",
    "cap_backoff": "capped",
}
EVERY_ACTION = [(action,) for action in ACTIONS]


@contextmanager
def ten_per_second() -> Iterator[None]:
    """Have the other actions do ten destinations per second, too."""
    with ExitStack() as stack:
        for module in (forget_many, cap_backoff):
            stack.enter_context(mock.patch.object(module, "_PAUSE_MS", 100))
        stack.enter_context(mock.patch.object(limits, "DESTINATIONS_FORGOTTEN", 1))
        stack.enter_context(mock.patch.object(limits, "BACKOFFS_CAPPED", 1))
        yield


class RunnerTestCase(RunsTestCase, ProbeTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in NAMES:
            self.add_destination(name, 1000, 10**12, 500, 7)
            self.answers[name] = error.ConnectionRefusedError()

    def make(self, action: str) -> str:
        return self.begin(action, reason="spring", **ACTIONS[action])

    def is_done(self, action: str, name: str) -> bool:
        """Tell whether a destination is as it is after its turn."""
        if action == "forget":
            return name not in self.names(f"?destination={name}")
        if action == "cap_backoff":
            return bool(self.row(name)[1] == 1000)
        return name in self.probed

    def assert_whole(self, run: dict[str, Any]) -> None:
        """Counts, audit and destinations agree: each was done, and counted once.

        The run has all of its times, and says who made it and why.
        """
        action = run["action"]
        self.assertEqual((run["user_id"], run["reason"]), ("@admin:test", "spring"))
        self.assertLessEqual(run["created_ts"], run["started_ts"])
        self.assertLessEqual(run["started_ts"], run["ended_ts"])
        for key in ("error", "rate_per_second", "estimated_end_ts"):
            self.assertIsNone(run[key], key)
        self.assertEqual((run["matched"], run["done"]), (30, 30))
        self.assertEqual(run["outcomes"], {OUTCOMES[action]: 30})
        self.assertEqual(
            self.entries(run), {name: [OUTCOMES[action]] for name in NAMES}
        )
        for name in NAMES:
            self.assertTrue(self.is_done(action, name), name)
        (whole,) = self.audit(f"?action=bulk_{action}")
        self.assertEqual((whole["outcome"], whole["run_id"]), ("complete", run["id"]))
        self.assertEqual(whole["details"]["outcomes"], run["outcomes"])
        self.assertEqual(self.left_in_queue(), 0)

    def test_one_of_each(self) -> None:
        """Actions run side by side; a second run of one is 409, and names the first."""
        with ten_per_second():
            made = {action: self.make(action) for action in ("cap_backoff", "forget")}
            self.wait(1)
            for action, run_id in made.items():
                channel = self.post(action, **ACTIONS[action])
                self.assertEqual(channel.code, 409)
                self.assertEqual(channel.json_body["id"], run_id)
                self.assertIn(run_id, channel.json_body["error"])
                self.assertEqual(self.run_of(run_id)["status"], "running")
            self.wait(8)
        for action, run_id in made.items():
            self.assertEqual(self.run_of(run_id)["status"], "complete")
            self.assertNotEqual(self.make(action), run_id)

    def test_list(self) -> None:
        """Runs are listed with the newest first, by page."""
        made = []
        for action in ("reconnect", "cap_backoff", "forget", "cap_backoff", "forget"):
            made.append(self.make(action))
            self.wait(5 if action == "reconnect" else 1)
        pages = self.pages(f"{RUNS}?limit=2")
        found = [run["id"] for page in pages for run in page["runs"]]
        self.assertEqual(found, made[::-1])
        channel = self.ask("GET", f"{RUNS}?from=abc")
        self.assert_error(channel, 400, "M_INVALID_PARAM")

    @parameterized.expand(EVERY_ACTION)
    def test_cancel(self, action: str) -> None:
        """A cancelled run changes nothing more, within a second it does nothing more.

        What it has not done is deleted; the audit says who cancelled it.
        """
        with ten_per_second():
            run_id = self.make(action)
            self.wait(1.5)
            channel = self.ask("DELETE", f"{RUNS}/{run_id}")
            self.assertEqual(channel.code, 200)
            cancelled = channel.json_body
            self.assertEqual(cancelled["status"], "cancelled")
            self.assertIn(cancelled["done"], range(5, 25))
            self.wait(5)
        run = self.run_of(run_id)
        self.assertEqual(run["done"], cancelled["done"])
        self.assertEqual(len(self.entries(run)), run["done"])
        changed = [name for name in NAMES if self.is_done(action, name)]
        self.assertLessEqual(len(changed), run["done"] + (action == "reconnect") * 12)
        (entry,) = self.audit("?action=cancel")
        self.assertEqual(entry["run_id"], run_id)
        (entry,) = self.audit(f"?action=bulk_{action}")
        self.assertEqual(entry["outcome"], "cancelled")
        self.assertEqual(self.left_in_queue(), 0)
        # Again: it stays as it is. And there may be another one now.
        again = self.ask("DELETE", f"{RUNS}/{run_id}").json_body
        self.assertEqual(again["ended_ts"], cancelled["ended_ts"])
        self.assertEqual(len(self.audit("?action=cancel")), 1)
        self.make(action)

    def test_unknown(self) -> None:
        """A run that there is not is 404."""
        for run_id in ("abc", "", "%00", "%25"):
            for method in ("GET", "DELETE"):
                channel = self.ask(method, f"{RUNS}/{run_id}")
                self.assert_error(channel, 404, "M_NOT_FOUND")

    def test_no_signal(self) -> None:
        """A run of which its process was not told is found within a minute."""
        with mock.patch.object(self.runner, "_wake", side_effect=RuntimeError("no")):
            run_id = self.make("forget")
        self.assertEqual(self.run_of(run_id)["status"], "scheduled")
        self.look()
        self.wait(1)
        self.assertEqual(self.run_of(run_id)["status"], "complete")

    @parameterized.expand(EVERY_ACTION)
    def test_killed(self, action: str) -> None:
        """What another process takes over goes on from where it was.

        Each destination is done and counted once; the first process, if it should still
        live, writes nothing more.
        """
        with ten_per_second():
            run_id = self.make(action)
            self.wait(1.5)
            self.assertIn(self.run_of(run_id)["done"], range(5, 25))
            # As after a restart: nothing is known. The first one goes on.
            self.runner._working.clear()
            self.runner._woken()
            self.wait(8)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete")
        self.assert_whole(run)
        repeated = {name for name in NAMES if self.probed.count(name) > 1}
        self.assertLessEqual(len(repeated), 3)

    @parameterized.expand(EVERY_ACTION)
    def test_prepared_in_pieces(self, action: str) -> None:
        """A run that is ended while it is prepared finds the rest, and none twice."""
        add = Job.add
        calls = []

        async def add_some(job: Job, *args: Any) -> Any:
            calls.append(args)
            if len(calls) == 3:
                raise self.database_away
            return await add(job, *args)

        with (
            mock.patch.object(limits, "DESTINATIONS_QUEUED", 10),
            mock.patch.object(Job, "add", add_some),
        ):
            run_id = self.make(action)
            self.wait(12)
        self.assertEqual(len(calls), 4)
        self.assert_whole(self.run_of(run_id))

    @parameterized.expand(EVERY_ACTION)
    def test_database_away(self, action: str) -> None:
        """While the database is away the run waits, and then it goes on.

        A commit of which it did not hear is not counted twice.
        """
        record = Job.record
        calls = []

        async def fail_after_commit(job: Job, *args: Any) -> bool:
            calls.append(args)
            found = await record(job, *args)
            if len(calls) in (2, 3, 4, 5, 6, 7, 9):
                raise self.database_away
            return found

        with (
            ten_per_second(),
            mock.patch.object(Job, "record", fail_after_commit),
        ):
            run_id = self.make(action)
            self.wait(40)
        self.assertEqual(self.run_of(run_id)["status"], "complete")
        self.assert_whole(self.run_of(run_id))
        if action == "reconnect":
            self.assertEqual(sorted(self.probed), NAMES)

    @parameterized.expand(EVERY_ACTION)
    def test_all_or_nothing(self, action: str) -> None:
        """If the audit can't be written, nothing is changed, counted or taken off."""
        with self.nobody_begins():
            run_id = self.make(action)
        self.refuse_changes("federation_admin_audit")
        self.look()
        self.wait(1.5)
        before = self.run_of(run_id)
        self.assertEqual((before["matched"], before["done"]), (30, 0))
        self.assertEqual(self.left_in_queue(), 30)
        if action != "reconnect":
            self.assertFalse(any(self.is_done(action, name) for name in NAMES))
        self.accept_changes("federation_admin_audit")
        self.wait(8)
        self.assert_whole(self.run_of(run_id))

    @parameterized.expand(
        zip(cycle(ACTIONS), ("take", "add", "record", "complete"), strict=False)
    )
    def test_fails(self, action: str, method: str) -> None:
        """A bug is not tried again for ever: the run fails, and says why."""
        broken = mock.patch.object(Job, method, side_effect=TypeError("a bug"))
        with broken as called, self.assertLogs(runner.__name__, "ERROR") as logged:
            run_id = self.make(action)
            self.wait(20)
            self.reactor.advance(120)
        self.assertEqual(called.call_count, runner._MOST_FAILURES)
        self.assertIn("Traceback", logged.output[0])
        run = self.run_of(run_id)
        self.assertEqual((run["status"], run["error"]), ("failed", "TypeError: a bug"))
        self.assertIsNotNone(run["ended_ts"])
        (entry,) = self.audit(f"?action=bulk_{action}")
        self.assertEqual(entry["outcome"], "failed")
        self.assertEqual(entry["details"]["error"], "TypeError: a bug")
        self.assertEqual(self.left_in_queue(), 0)
        # And there may be another one.
        self.assertNotEqual(self.make(action), run_id)

    def test_another_has_taken_it(self) -> None:
        """A bug here does not end a run that another process has taken meanwhile."""

        async def is_taken(job: Job, *_: Any) -> bool:
            self.run_sql("UPDATE federation_admin_runs SET runner = 'another'")
            raise TypeError("a bug")

        with mock.patch.object(Job, "record", is_taken), self.assertLogs(level="ERROR"):
            run_id = self.make("cap_backoff")
            self.wait(20)
        run = self.run_of(run_id)
        self.assertEqual((run["status"], run["error"]), ("running", None))

    def test_of_a_later_version(self) -> None:
        """What a later version has written is shown as it is, and left alone."""
        changes = {
            "action": "polish",
            "criteria": '{"filter": {"colour": "red"}}',
            "status": "paused",
            "options": '{"drop_to_device": false, "on_sundays": true}',
            "outcomes": '{"shining": 3}',
        }
        for column, value in changes.items():
            with self.nobody_begins():
                run_id = self.make("forget")
            self.run_sql(
                f"UPDATE federation_admin_runs SET {column} = '{value}' "
                f"WHERE run_id = '{run_id}'"
            )
            if column != "outcomes":
                self.look()
                self.wait(1)
                self.assertEqual(self.audit(f"?run_id={run_id}&action=forget"), [])
            shown = json.loads(value) if value[0] == "{" else value
            self.assertEqual(self.run_of(run_id)[column], shown)
            self.assertEqual(self.get_json(RUNS)["runs"][0][column], shown)
            cancelled = self.ask("DELETE", f"{RUNS}/{run_id}").json_body
            self.assertEqual(cancelled["status"], "cancelled")

    def test_old_tasks(self) -> None:
        """Tasks of an earlier version go from Synapse's scheduler; others stay."""
        for action in ("federation_admin_reconnects", "purge_history"):
            values = {"id": action, "action": action, "status": "active"}
            self.insert("scheduled_tasks", **values, timestamp=1)
        self.reactor.advance(3601)
        self.wait(1)
        left = self.run_sql("SELECT action FROM scheduled_tasks")
        self.assertIn(("purge_history",), left)
        self.assertNotIn(("federation_admin_reconnects",), left)
