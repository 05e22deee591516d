# SPDX-License-Identifier: Apache-2.0
"""Many destinations are reconnected: what a run contacts, counts and leaves."""

from typing import Any
from unittest import mock

import pytest
from module_case import quote
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, V2, ProbeTestCase
from synapse.types import TaskStatus
from twisted.internet import error

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair import bulk as module
from synapse_federation_admin.repair.runs import RunStore

RUNS = f"{V2}/reconnects"
REFUSED = error.ConnectionRefusedError()

COUNTS = ("matched", "done", "connected", "still_failing")


class BulkTestCase(ProbeTestCase):
    def post(self, **body: Any) -> Any:
        return self.ask("POST", RUNS, content=body)

    def begin(self, **body: Any) -> str:
        """Begin a run, and return its ID."""
        channel = self.post(**body)
        self.assertEqual(channel.code, 200, channel.result)
        return channel.json_body["id"]

    def run_of(self, run_id: str) -> dict[str, Any]:
        return self.get_json(f"{RUNS}/{run_id}")

    def counts(self, run_id: str) -> tuple[int, ...]:
        run = self.run_of(run_id)
        return tuple(run[name] for name in COUNTS)

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        for _ in range(max(int(seconds / 0.1), 1)):
            self.pump(0.001)

    def add_failing(self, *names: str) -> None:
        for name in names:
            self.add_destination(name, *LONG_FAILING)

    def add_outbox(self, name: str) -> None:
        self.get_success(
            self.store.db_pool.simple_insert(
                "device_federation_outbox",
                {
                    "destination": name,
                    "stream_id": 1,
                    "queued_ts": 1,
                    "messages_json": "{}",
                },
            )
        )

    def entries(self, run_id: str) -> dict[str, list[str]]:
        """Return the outcomes in the audit of a run, by destination."""
        found: dict[str, list[str]] = {}
        for entry in self.audit(f"?run_id={run_id}&action=reconnect&limit=1000"):
            found.setdefault(entry["destination"], []).append(entry["outcome"])
        return found

    def left_in_queue(self) -> int:
        return self.get_success(
            self.store.db_pool.simple_select_one_onecol(
                "federation_admin_run_queue", None, "COUNT(*)"
            )
        )


@pytest.mark.database
class RunTestCase(BulkTestCase):
    def test_all_failing(self) -> None:
        """All that fail are contacted; those that answer are cleared, the others stay.

        Counts, errors, audit and rows agree.
        """
        up = [f"up{number}.example" for number in range(7)]
        down = [f"down{number}.example" for number in range(20)]
        self.add_failing(*up, *down)
        self.add_destination("fine.example", 0, 0, None, 3)
        self.answers.update(dict.fromkeys(up, ANSWER))
        self.answers.update(dict.fromkeys(down, REFUSED))
        run_id = self.begin(all_failing=True, per_second=50, reason="power is back")
        self.wait(3)

        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete")
        self.assertEqual(self.counts(run_id), (27, 27, 7, 20))
        self.assertEqual((run["no_longer_failing"], run["skipped"]), (0, 0))
        self.assertEqual(run["errors"]["connection_refused"]["count"], 20)
        recent = run["errors"]["connection_refused"]["recent"]
        self.assertEqual(len(recent), 5)
        self.assertLessEqual({error["destination"] for error in recent}, set(down))
        self.assertEqual(run["criteria"], {"all_failing": True})
        self.assertEqual(run["user_id"], "@admin:test")
        self.assertEqual(run["reason"], "power is back")
        self.assertIsNone(run["estimated_end_ts"])
        self.assertLessEqual(run["created_ts"], run["started_ts"])
        self.assertLessEqual(run["started_ts"], run["ended_ts"])
        self.assertEqual(sorted(self.probed), sorted([*up, *down]))
        for name in up:
            self.assertEqual(self.row(name), (0, 0, None, 7))
        for name in down:
            self.assertEqual(self.row(name), LONG_FAILING)
        self.assertEqual(
            self.entries(run_id),
            {
                **{name: ["connected"] for name in up},
                **{name: ["still_failing"] for name in down},
            },
        )
        (entry,) = self.audit("?action=bulk_reconnect")
        self.assertEqual(entry["outcome"], "complete")
        self.assertEqual(entry["run_id"], run_id)
        self.assertEqual(entry["reason"], "power is back")
        self.assertEqual(entry["details"]["connected"], 7)
        self.assertEqual(entry["details"]["done"], 27)
        self.assertEqual(self.left_in_queue(), 0)
        (task,) = self.get_success(
            self.hs.get_task_scheduler().get_tasks(actions=[module._ACTION])
        )
        self.assertEqual(task.status, TaskStatus.COMPLETE)

    def test_most_valuable_first(self) -> None:
        """First what has to-device messages, then rooms, then device lists waiting."""
        names = ["a.example", "b.example", "c.example", "d.example", "e.example"]
        self.add_failing(*names)
        self.add_outbox("d.example")
        self.add_room("c.example", "!waits:test", 8)
        # Delivered already.
        self.add_room("b.example", "!done:test", 7)
        self.get_success(
            self.store.db_pool.simple_insert(
                "device_lists_outbound_pokes",
                {
                    "destination": "e.example",
                    "stream_id": 1,
                    "user_id": "@user:test",
                    "device_id": "D",
                    "sent": False,
                    "ts": 1,
                },
            )
        )
        self.answers.update(dict.fromkeys(names, ANSWER))
        self.begin(destinations=names, per_second=100)
        self.wait(2)
        self.assertEqual([name[0] for name in self.probed], ["d", "c", "e", "a", "b"])

    def test_pace(self) -> None:
        """So many are begun per second as was asked for, evenly; five by default."""
        names = [f"host{number:03}.example" for number in range(40)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names, REFUSED))
        run_id = self.begin(all_failing=True)
        self.wait(1)
        before = len(self.probes)
        self.wait(4)
        self.assertLess(abs(len(self.probes) - before - 20), 2 + 0.01)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "running")
        self.assertLess(abs(run["rate_per_second"] - 5), 1 + 0.01)
        left_s = (run["estimated_end_ts"] - self.clock.time_msec()) / 1000
        self.assertLess(abs(left_s - (40 - len(self.probes)) / 5), 2 + 0.01)

    def test_hanging_does_not_hold_up(self) -> None:
        """What does not answer does not hold the others up; the end waits for it."""
        names = [f"host{number:03}.example" for number in range(30)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names[1:], REFUSED))
        run_id = self.begin(destinations=names, per_second=30)
        self.wait(3)
        self.assertEqual(self.counts(run_id), (30, 29, 0, 29))
        self.assertEqual(self.run_of(run_id)["status"], "running")
        self.answer(which=0)
        self.wait(1)
        self.assertEqual(self.counts(run_id), (30, 30, 1, 29))
        self.assertEqual(self.run_of(run_id)["status"], "complete")

    def test_bounded_in_flight(self) -> None:
        """No more than a bound are under way at once."""
        names = [f"host{number:03}.example" for number in range(30)]
        self.add_failing(*names)
        with mock.patch.object(module, "MAX_IN_FLIGHT", 4):
            self.begin(all_failing=True, per_second=100)
            self.wait(2)
            self.assertEqual(len(self.probes), 4)
            for which in range(4):
                self.answer(which=which)
            self.wait(1)
            self.assertEqual(len(self.probes), 8)

    def test_no_longer_failing(self) -> None:
        """What recovers by itself before its turn is not contacted."""
        names = [f"host{number:03}.example" for number in range(10)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names, REFUSED))
        run_id = self.begin(destinations=names, per_second=1)
        self.wait(0.5)
        self.add_destination("host009.example", 0, 0, None, 9)
        self.wait(11)
        run = self.run_of(run_id)
        self.assertEqual((run["no_longer_failing"], run["still_failing"]), (1, 9))
        self.assertNotIn("host009.example", self.probed)
        self.assertEqual(self.entries(run_id)["host009.example"], ["no_longer_failing"])

    def test_skipped(self) -> None:
        """What can't be contacted is skipped, and the audit says why."""
        self.add_failing("a.example", "gone.example", "no server", "shut.example")
        self.add_failing("z.example")
        self.answers.update({"a.example": ANSWER, "z.example": ANSWER})
        allowed = mock.patch.object(
            Homeserver, "is_allowed", staticmethod(lambda name: name != "shut.example")
        )
        with allowed:
            run_id = self.begin(all_failing=True, per_second=1)
            self.wait(0.1)
            self.get_success(
                self.store.db_pool.simple_delete(
                    "destinations", {"destination": "gone.example"}, "test"
                )
            )
            self.wait(4)
        run = self.run_of(run_id)
        self.assertEqual((run["skipped"], run["connected"]), (3, 2))
        self.assertEqual(self.probed, ["a.example", "z.example"])
        notes = {
            entry["destination"]: entry["details"].get("note")
            for entry in self.audit(f"?run_id={run_id}&outcome=skipped")
        }
        self.assertIn("no valid server name", notes["no server"])
        self.assertIn("federation_domain_whitelist", notes["shut.example"])
        self.assertIn("no row", notes["gone.example"])

    def test_forgotten_meanwhile(self) -> None:
        """A destination that is removed during its contact does not come back by it."""
        self.add_failing("a.example")
        run_id = self.begin(all_failing=True)
        self.wait(0.5)
        self.get_success(
            self.store.db_pool.simple_delete(
                "destinations", {"destination": "a.example"}, "test"
            )
        )
        self.answer()
        self.wait(1)
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))
        self.assertEqual(self.names(), [])

    def test_not_failing(self) -> None:
        """What is not failing, but in the list, is contacted, and its row stays."""
        self.add_destination("new.example")
        self.answers["new.example"] = ANSWER
        run_id = self.begin(destinations=["new.example"])
        self.wait(1)
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))
        self.assertEqual(self.row("new.example"), (None, None, None, None))

    def test_nothing_matches(self) -> None:
        """A run for nothing is complete at once."""
        run_id = self.begin(all_failing=True)
        self.wait(0.5)
        self.assertEqual(self.run_of(run_id)["status"], "complete")
        self.assertEqual(self.counts(run_id), (0, 0, 0, 0))

    @parameterized.expand(
        [
            ({"destination": "2."}, ["a2.example", "b2.example"]),
            ({"destination": "?2.*"}, ["a2.example", "b2.example"]),
            ({"status": "backing_off"}, ["a1.example", "a2.example", "b2.example"]),
            ({"status": ["retry_due", "online"]}, ["due.example", "fine.example"]),
            ({"status": "online"}, ["fine.example"]),
            (
                {"failing_for": "1s"},
                ["a1.example", "a2.example", "b2.example", "due.example"],
            ),
            ({"failing_for": "1s", "destination": "due"}, ["due.example"]),
            ({"failing_for": "1h"}, []),
        ]
    )
    def test_filter(self, given: Any, expected: list[str]) -> None:
        """A filter keeps what the list keeps; with no status only what is failing."""
        self.reactor.advance(10)
        self.add_failing("a1.example", "a2.example", "b2.example")
        self.add_destination("due.example", 1000, 2000, 500, 7)
        self.add_destination("fine.example", 0, 0, None, 3)
        dry = self.post(filter=given, dry_run=True)
        self.assertEqual(
            dry.json_body,
            {"dry_run": True, "matched": len(expected), "sample": expected},
        )
        self.answers.update(dict.fromkeys(expected, ANSWER))
        run_id = self.begin(filter=given, per_second=100)
        self.wait(2)
        self.assertEqual(sorted(self.probed), expected)
        self.assertEqual(self.run_of(run_id)["matched"], len(expected))

    def test_dry_run(self) -> None:
        """A dry run says what would be done and does nothing."""
        names = [f"host{number:03}.example" for number in range(25)]
        self.add_failing(*names)
        body = self.post(all_failing=True, dry_run=True).json_body
        self.assertEqual((body["matched"], body["sample"]), (25, names[:10]))
        body = self.post(destinations=names[:3], dry_run=True).json_body
        self.assertEqual((body["matched"], body["sample"]), (3, names[:3]))
        self.wait(2)
        self.assertEqual(self.probes, [])
        self.assertEqual(self.audit(), [])
        self.assertEqual(self.get_json(RUNS)["reconnects"], [])

    def test_unusable_names(self) -> None:
        """Unknown and invalid names in a list are named, and nothing is changed.

        With `ignore_unknown` they are left out.
        """
        self.add_failing("a.example", "b.example")
        names = ["a.example", "no.example", "no server", "a.example", "A.example"]
        channel = self.post(destinations=names)
        self.assertEqual(channel.code, 400)
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
        self.assertEqual(channel.json_body["unknown"], ["no.example", "A.example"])
        self.assertEqual(channel.json_body["invalid"], ["no server"])
        self.assertIn("no.example", channel.json_body["error"])
        self.assertIn("no server", channel.json_body["error"])
        self.assertEqual(self.get_json(RUNS)["reconnects"], [])

        self.answers["a.example"] = ANSWER
        channel = self.post(destinations=names, ignore_unknown=True)
        self.assertEqual(channel.code, 200)
        self.assertEqual(channel.json_body["ignored"], {"unknown": 2, "invalid": 1})
        self.wait(1)
        self.assertEqual(self.probed, ["a.example"])
        self.assertEqual(self.counts(channel.json_body["id"]), (1, 1, 1, 0))


@pytest.mark.database
class OneAtATimeTestCase(BulkTestCase):
    def test_second(self) -> None:
        """A second run is 409, and names the first."""
        self.add_failing("a.example")
        first = self.begin(all_failing=True)
        channel = self.post(all_failing=True)
        self.assertEqual(channel.code, 409)
        self.assertEqual(channel.json_body["id"], first)
        self.assertIn(first, channel.json_body["error"])
        self.wait(0.5)
        self.answer()
        self.wait(1)
        second = self.begin(all_failing=True)
        self.assertNotEqual(second, first)

    def test_list(self) -> None:
        """Runs are listed with the newest first, by page."""
        made = []
        for _ in range(5):
            made.append(self.begin(all_failing=True))
            self.wait(0.5)
        found: list[str] = []
        query = "?limit=2"
        while query:
            body = self.get_json(RUNS + query)
            found += [run["id"] for run in body["reconnects"]]
            token = body.get("next_token")
            query = f"?limit=2&from={quote(token)}" if token else ""
        self.assertEqual(found, made[::-1])
        channel = self.ask("GET", f"{RUNS}?from=abc")
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")

    def test_cancel(self) -> None:
        """A cancelled run begins no contact within a second, and changes nothing more.

        What it was to do is deleted; the audit knows who cancelled it.
        """
        names = [f"host{number:03}.example" for number in range(60)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names[1:], ANSWER))
        run_id = self.begin(destinations=names, per_second=10)
        self.wait(2)
        channel = self.ask("DELETE", f"{RUNS}/{run_id}")
        self.assertEqual(channel.code, 200)
        self.assertEqual(channel.json_body["status"], "cancelled")
        done = channel.json_body["done"]
        self.assertIsNotNone(channel.json_body["ended_ts"])
        self.wait(1)
        begun = len(self.probes)
        self.assertLessEqual(begun, done + 12)
        # One that was under way answers only now.
        self.answer(which=0)
        self.wait(5)
        self.assertEqual(len(self.probes), begun)
        self.assertEqual(self.row(names[0]), LONG_FAILING)
        run = self.run_of(run_id)
        self.assertEqual((run["status"], run["done"]), ("cancelled", done))
        self.assertEqual(len(self.entries(run_id)), done)
        (entry,) = self.audit("?action=cancel")
        self.assertEqual(entry["run_id"], run_id)
        (entry,) = self.audit("?action=bulk_reconnect")
        self.assertEqual(entry["outcome"], "cancelled")
        self.assertEqual(self.left_in_queue(), 0)
        # Again: it stays as it is. And there may be another one now.
        again = self.ask("DELETE", f"{RUNS}/{run_id}")
        self.assertEqual(again.json_body["ended_ts"], run["ended_ts"])
        self.assertEqual(len(self.audit("?action=cancel")), 1)
        self.begin(all_failing=True)

    def test_cancel_before_it_begins(self) -> None:
        """A run that no process has begun yet can be cancelled, and never begins."""
        self.add_failing("a.example")
        with mock.patch.object(Homeserver, "schedule_task"):
            run_id = self.begin(all_failing=True)
        self.assertEqual(self.run_of(run_id)["status"], "scheduled")
        self.assertEqual(
            self.ask("DELETE", f"{RUNS}/{run_id}").json_body["status"], "cancelled"
        )
        self.wait(20)
        self.assertEqual(self.probes, [])

    def test_unknown(self) -> None:
        """A run that there is not is 404."""
        for run_id in ("abc", "", "%00", "%25"):
            for method in ("GET", "DELETE"):
                channel = self.ask(method, f"{RUNS}/{run_id}")
                self.assertEqual(channel.code, 404, channel.result)
                self.assertEqual(channel.json_body["errcode"], "M_NOT_FOUND")


@pytest.mark.database
class ResumeTestCase(BulkTestCase):
    """Whatever goes wrong, a run goes on where it was, and counts nothing twice."""

    def test_nobody_works_on_it(self) -> None:
        """A run that was made, but never scheduled, is found and worked on."""
        self.add_failing("a.example")
        self.answers["a.example"] = ANSWER
        failing = mock.patch.object(
            Homeserver, "schedule_task", side_effect=RuntimeError("no")
        )
        with failing:
            run_id = self.begin(all_failing=True)
        self.wait(20)
        self.assertEqual(self.run_of(run_id)["status"], "complete")
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))

    def test_killed(self) -> None:
        """What another process takes over goes on from where it was.

        Each destination is counted once, also one whose contact was under way then; the
        first process, if it should still live, writes nothing any more.
        """
        names = [f"host{number:03}.example" for number in range(30)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names[1:], REFUSED))
        run_id = self.begin(destinations=names, per_second=10)
        self.wait(1.5)
        done = self.run_of(run_id)["done"]
        self.assertGreater(done, 5)
        self.assertLess(done, 25)
        # As after a restart: nothing is known, and the task is still active.
        self.bulk._working.clear()
        self.answers[names[0]] = ANSWER
        homeserver = self.bulk._homeserver
        homeserver.run_in_background("test", self.bulk._work, run_id)
        self.wait(4)
        # The answer to the first process's contact comes late.
        self.answer(which=0)
        self.wait(1)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete")
        self.assertEqual(self.counts(run_id), (30, 30, 1, 29))
        self.assertEqual(
            {name: len(found) for name, found in self.entries(run_id).items()},
            dict.fromkeys(names, 1),
        )
        repeated = {n for n in names if self.probed.count(n) > 1}
        self.assertLessEqual(len(repeated), 3)

    def test_prepared_in_pieces(self) -> None:
        """A run that is killed while it is prepared finds the rest, and none twice."""
        names = [f"host{number:03}.example" for number in range(60)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names, REFUSED))
        for criteria in ({"destinations": names}, {"all_failing": True}):
            add = RunStore.add
            calls = []

            async def add_some(store: RunStore, *args: Any, add=add, calls=calls):
                calls.append(args)
                if len(calls) == 3:
                    raise RuntimeError("the database is gone")
                return await add(store, *args)

            self.probes.clear()
            with (
                mock.patch.object(module, "_PREPARED_AT_ONCE", 20),
                mock.patch.object(RunStore, "add", add_some),
            ):
                run_id = self.begin(**criteria, per_second=100)
                self.wait(10)
            self.assertEqual(self.counts(run_id), (60, 60, 0, 60))
            self.assertEqual(sorted(self.probed), names)
            self.assertEqual(len(calls), 4)

    def test_database_goes_away(self) -> None:
        """While results can't be written the run waits, and then it goes on.

        A commit of which it did not hear is not counted twice.
        """
        names = [f"host{number:03}.example" for number in range(30)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names, REFUSED))
        record = RunStore.record
        state = {"calls": 0}

        async def fail_after_commit(store: RunStore, *args: Any) -> bool:
            state["calls"] += 1
            found = await record(store, *args)
            if state["calls"] in (2, 3, 5):
                raise RuntimeError("connection lost")
            return found

        with mock.patch.object(RunStore, "record", fail_after_commit):
            run_id = self.begin(all_failing=True, per_second=10)
            self.wait(15)
        self.assertEqual(self.counts(run_id), (30, 30, 0, 30))
        self.assertEqual(self.run_of(run_id)["status"], "complete")
        self.assertEqual(sorted(self.probed), names)
        self.assertEqual(
            {name: len(found) for name, found in self.entries(run_id).items()},
            dict.fromkeys(names, 1),
        )

    def test_contact_breaks(self) -> None:
        """A destination whose contact broke without an outcome is contacted again."""
        names = [f"host{number:03}.example" for number in range(5)]
        self.add_failing(*names)
        self.answers.update(dict.fromkeys(names, REFUSED))
        broken = [True]

        async def probe(*args: Any, **kwargs: Any) -> Any:
            if args[1] == names[2] and broken:
                broken.pop()
                raise RuntimeError("bug")
            return await real(*args, **kwargs)

        real = module.probe
        with mock.patch.object(module, "probe", probe):
            run_id = self.begin(all_failing=True, per_second=10)
            self.wait(10)
        self.assertEqual(self.run_of(run_id)["status"], "complete")
        self.assertEqual(self.counts(run_id), (5, 5, 0, 5))
        self.assertEqual(sorted(self.entries(run_id)), names)

    def test_all_or_nothing(self) -> None:
        """If the audit can't be written, nothing is cleared, counted or taken off."""
        self.add_failing("a.example")
        run_id = self.begin(all_failing=True)
        self.wait(0.5)
        self.refuse_changes("federation_admin_audit")
        self.answer()
        self.wait(3)
        self.assertEqual(self.counts(run_id), (1, 0, 0, 0))
        self.assertEqual(self.row("a.example"), LONG_FAILING)
        self.assertEqual(self.left_in_queue(), 1)
        self.accept_changes("federation_admin_audit")
        self.wait(8)
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))
        self.assertEqual(self.row("a.example"), (0, 0, None, 7))

    @property
    def bulk(self) -> module.BulkReconnect:
        """The one that the module has made."""
        action = self.hs.get_task_scheduler()._actions[module._ACTION]
        (run,) = [
            cell.cell_contents
            for cell in action.__closure__  # type: ignore[attr-defined]
            if callable(cell.cell_contents)
        ]
        return run.__self__


class InputTestCase(BulkTestCase):
    """Bad criteria change nothing, and the error names what is wrong."""

    @parameterized.expand(
        [
            ({}, "'all_failing'"),
            ({"all_failing": False}, "'all_failing'"),
            ({"all_failing": 1}, "'all_failing'"),
            ({"all_failing": True, "destinations": ["a"]}, "only one"),
            ({"filter": {}}, "'filter'"),
            ({"filter": []}, "'filter'"),
            ({"filter": {"destination": ""}}, "'filter'"),
            ({"filter": {"staus": "online"}}, "'filter.staus'"),
            ({"filter": {"status": "offline"}}, "'filter.status'"),
            ({"filter": {"status": 1}}, "'filter.status'"),
            ({"filter": {"status": []}}, "'filter'"),
            ({"filter": {"failing_for": "7"}}, "'filter.failing_for'"),
            ({"filter": {"failing_for": 7}}, "'filter.failing_for'"),
            ({"filter": {"destination": 1}}, "'filter.destination'"),
            ({"destinations": "a.example"}, "'destinations'"),
            ({"destinations": [1]}, "'destinations'"),
            ({"destinations": ["\ud800"]}, "'destinations'"),
            ({"filter": {"status": "\ud800"}}, "'filter.status'"),
            ({"filter": {"destination": "\ud800"}}, "'filter.destination'"),
            ({"filter": {"\ud800": 1}}, "ud800"),
            ({"destinations": ["a"] * 50_001}, "'destinations'"),
            ({"all_failing": True, "per_second": 0}, "'per_second'"),
            ({"all_failing": True, "per_second": 501}, "'per_second'"),
            ({"all_failing": True, "per_second": "5"}, "'per_second'"),
            ({"all_failing": True, "per_second": True}, "'per_second'"),
            ({"all_failing": True, "timeout_ms": 999}, "'timeout_ms'"),
            ({"all_failing": True, "dryrun": True}, "'dryrun'"),
            ({"all_failing": True, "dry_run": "true"}, "'dry_run'"),
            ({"all_failing": True, "ignore_unknown": 1}, "'ignore_unknown'"),
        ]
    )
    def test_body(self, body: Any, named: str) -> None:
        """400 M_INVALID_PARAM, and there is no run."""
        self.add_failing("a.example")
        channel = self.post(**body)
        self.assertEqual(channel.code, 400, channel.result)
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
        self.assertIn(named, channel.json_body["error"])
        self.assertEqual(self.get_json(RUNS)["reconnects"], [])

    def test_empty_list(self) -> None:
        """An empty list is a run for nothing."""
        self.add_failing("a.example")
        run_id = self.begin(destinations=[])
        self.wait(0.5)
        self.assertEqual(self.counts(run_id), (0, 0, 0, 0))
        self.assertEqual(self.probes, [])


class CeilingTestCase(BulkTestCase):
    config = {"contact_on_reset": False, "bulk": {"max_per_second": 3}}

    def test_ceiling(self) -> None:
        """No run is faster than the configuration allows, nor by default."""
        channel = self.post(all_failing=True, per_second=4)
        self.assertEqual(channel.code, 400)
        self.assertIn("from 0.1 to 3", channel.json_body["error"])
        run = self.post(all_failing=True).json_body
        self.assertEqual(run["per_second"], 3)
