# SPDX-License-Identifier: Apache-2.0
"""Many destinations are reconnected: what a run contacts, counts and leaves."""

import errno
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from module_case import V2
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, ProbeTestCase
from run_case import RUNS, RunsTestCase
from twisted.internet import error

from synapse_federation_admin import limits
from synapse_federation_admin.failures import classify
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair import reconnect_many, runner
from synapse_federation_admin.storage.run_queue import Job

REFUSED = error.ConnectionRefusedError()

COUNTS = ("matched", "done", "connected", "still_failing")

# How a run on a real Synapse goes, on each release, the end-to-end tests show.
pytestmark = pytest.mark.one_synapse


class ManyTestCase(RunsTestCase, ProbeTestCase):
    def counts(self, run_id: str) -> tuple[int, ...]:
        run = self.run_of(run_id)
        found = {**run, **run["outcomes"]}
        return tuple(found.get(name, 0) for name in COUNTS)

    def add_failing(self, *names: str, answer: Any = None) -> None:
        """Write destinations that fail, and how they answer at once."""
        for name in names:
            self.add_destination(name, *LONG_FAILING)
        if answer is not None:
            self.answers.update(dict.fromkeys(names, answer))

    def add_hosts(self, count: int, answer: Any = None) -> list[str]:
        """Write so many of them, and return their names."""
        names = [f"host{number:03}.example" for number in range(count)]
        self.add_failing(*names, answer=answer)
        return names


@pytest.mark.database
class RunTestCase(ManyTestCase):
    def test_seen_through(self) -> None:
        """Nobody is connected for whom something waits, until the first of it is taken.

        What is found out after the end of the run is counted in it all the same.
        """
        names = ["takes.example", "refuses.example", "silent.example"]
        self.add_failing(*names, answer=ANSWER)
        for name in names:
            self.add_to_device(name)
        run_id = self.begin("reconnect", all_failing=True, per_second=50)
        self.wait(2)
        self.assertEqual(self.run_of(run_id)["outcomes"], {"pending": 3})
        self.take("takes.example")
        self.wait(20)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete")
        self.assertEqual(run["outcomes"], {"connected": 1, "pending": 2})
        self.store_failure("refuses.example", 9000)
        self.wait(20)
        run = self.run_of(run_id)
        self.assertEqual(run["outcomes"], {"connected": 1, "pending": 1, "refused": 1})
        self.assertEqual(self.entries(run)["refuses.example"], ["refused"])
        self.assertEqual(self.row("refuses.example")[2], LONG_FAILING[2])

    def test_most_valuable_first(self) -> None:
        """First what has to-device messages, then rooms, then device lists waiting."""
        names = ["a.example", "b.example", "c.example", "d.example", "e.example"]
        self.add_failing(*names, answer=ANSWER)
        self.add_to_device("d.example")
        self.add_room("c.example", "!waits:test", 8)
        # Delivered already.
        self.add_room("b.example", "!done:test", 7)
        self.add_poke("e.example")
        self.begin("reconnect", destinations=names, per_second=100)
        self.wait(2)
        self.assertEqual([name[0] for name in self.probed], ["d", "c", "e", "a", "b"])

    def test_pace(self) -> None:
        """So many are begun per second as was asked for, evenly; five by default."""
        self.add_hosts(40, REFUSED)
        run_id = self.begin("reconnect", all_failing=True)
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
        names = self.add_hosts(30)
        self.answers.update(dict.fromkeys(names[1:], REFUSED))
        run_id = self.begin("reconnect", destinations=names, per_second=30)
        self.wait(3)
        self.assertEqual(self.counts(run_id), (30, 29, 0, 29))
        self.assertEqual(self.run_of(run_id)["status"], "running")
        self.answer(which=0)
        self.wait(1)
        self.assertEqual(self.counts(run_id), (30, 30, 1, 29))
        self.assertEqual(self.run_of(run_id)["status"], "complete")

    def test_bounded_in_flight(self) -> None:
        """No more than a bound are under way at once."""
        self.add_hosts(30)
        with mock.patch.object(limits, "CONTACTS_OF_A_RUN", 4):
            self.begin("reconnect", all_failing=True, per_second=100)
            self.wait(2)
            self.assertEqual(len(self.probes), 4)
            for which in range(4):
                self.answer(which=which)
            self.wait(1)
            self.assertEqual(len(self.probes), 8)

    def test_no_longer_failing(self) -> None:
        """What recovers by itself before its turn is not contacted."""
        names = self.add_hosts(10, REFUSED)
        run_id = self.begin("reconnect", destinations=names, per_second=1)
        self.wait(0.5)
        self.add_destination("host009.example", 0, 0, None, 9)
        self.wait(11)
        run = self.run_of(run_id)
        self.assertEqual(run["outcomes"], {"no_longer_failing": 1, "still_failing": 9})
        self.assertNotIn("host009.example", self.probed)
        self.assertEqual(self.entries(run)["host009.example"], ["no_longer_failing"])

    def test_many_no_longer_failing(self) -> None:
        """What needs no contact is not read faster than its results are written."""
        names = [f"host{number:04}.example" for number in range(2000)]
        self.add_failing(*names)
        ahead = [0, 0]
        read, record = Job.next, Job.record
        recovered = "UPDATE destinations SET retry_last_ts = 0, retry_interval = 0"

        async def counted_read(job: Job, *args: Any) -> Any:
            found = await read(job, *args)
            ahead[0] += len(found)
            ahead[1] = max(ahead)
            return found

        async def counted_record(job: Job, results: Any, *args: Any) -> bool:
            ahead[0] -= len(results)
            return await record(job, results, *args)

        with (
            mock.patch.object(Job, "next", counted_read),
            mock.patch.object(Job, "record", counted_record),
            self.once_prepared(lambda: self.run_sql(recovered)),
        ):
            run_id = self.begin("reconnect", all_failing=True, per_second=500)
            self.wait(10)
        self.assertEqual(self.run_of(run_id)["outcomes"], {"no_longer_failing": 2000})
        self.assertLess(ahead[1], 500)

    def test_skipped(self) -> None:
        """What can't be contacted is skipped, and the audit says why."""
        self.add_failing("a.example", "gone.example", "no server", "shut.example")
        self.add_failing("z.example")
        self.answers.update({"a.example": ANSWER, "z.example": ANSWER})
        allowed = mock.patch.object(
            Homeserver, "is_allowed", staticmethod(lambda name: name != "shut.example")
        )
        with allowed:
            run_id = self.begin("reconnect", all_failing=True, per_second=1)
            self.wait(0.1)
            self.run_sql("DELETE FROM destinations WHERE destination = 'gone.example'")
            self.wait(4)
        self.assertEqual(
            self.run_of(run_id)["outcomes"], {"skipped": 3, "connected": 2}
        )
        self.assertEqual(self.probed, ["a.example", "z.example"])
        notes = {
            entry["destination"]: entry["details"].get("note")
            for entry in self.audit(f"?run_id={run_id}&outcome=skipped")
        }
        self.assertIn("Invalid server name", notes["no server"])
        self.assertIn("federation_domain_whitelist", notes["shut.example"])
        self.assertIn("no row", notes["gone.example"])

    def test_names_of_no_server(self) -> None:
        """What a diagnosis calls invalid is skipped, and reconnected at no cost."""
        names = [
            *(f"{'a' * 64}.example", "a..example", "a.example.", "a_.example"),
            *("my_host.example", "a.example:99999", "[::1", "m\u00fcller.example"),
        ]
        self.add_failing(*names)
        run_id = self.begin("reconnect", all_failing=True, per_second=100)
        self.wait(2)
        self.assertEqual(self.run_of(run_id)["outcomes"], {"skipped": len(names)})
        for name in names:
            path = f"{V2}/destinations/{quote(name, safe='')}/reconnect"
            channel = self.ask("POST", path, content={})
            self.assertEqual(
                channel.json_body["contact"]["error"]["kind"], "invalid_name"
            )
        self.assertEqual(self.probed, [])

    @parameterized.expand([(365 * 86_400,), (-365 * 86_400,)])
    def test_clock_jumps(self, seconds: int) -> None:
        """The clock of the host is set: the pace stays what it was."""
        self.add_hosts(60, REFUSED)
        shift = [0]

        def now_s(_: object) -> float:
            return self.reactor.seconds() + shift[0]

        with mock.patch.object(reconnect_many._Contacts, "_now_s", now_s):
            run_id = self.begin("reconnect", all_failing=True)
            self.wait(2)
            before = len(self.probes)
            shift[0] = seconds
            self.wait(4)
            # Up to two seconds are made up for.
            self.assertGreater(len(self.probes) - before, 17)
            self.assertLess(len(self.probes) - before, 33)
            self.assertGreater(self.counts(run_id)[1], before + 15)

    def test_nothing_left(self) -> None:
        """That this process has no descriptor left fails nobody: it is tried again."""
        names = self.add_hosts(20)
        out = OSError(errno.EMFILE, "Too many open files")
        self.answers.update(dict.fromkeys(names, out))
        run_id = self.begin("reconnect", all_failing=True, per_second=100)
        self.wait(3.5)
        # It rests in between.
        self.assertLess(len(self.probes), 12)
        self.assertEqual(self.counts(run_id), (20, 0, 0, 0))
        self.assertIn("no file descriptor", self.run_of(run_id)["error"])
        self.answers.update(dict.fromkeys(names, REFUSED))
        self.wait(4)
        run = self.run_of(run_id)
        self.assertIsNone(run["error"])
        self.assertEqual(run["outcomes"], {"still_failing": 20})
        ((kind, errors),) = run["errors"].items()
        self.assertEqual((kind, errors["count"]), ("connection_refused", 20))
        self.assertEqual(len({each["destination"] for each in errors["recent"]}), 5)

    def test_forgotten_meanwhile(self) -> None:
        """A destination that is removed during its contact does not come back by it."""
        self.add_failing("a.example")
        run_id = self.begin("reconnect", all_failing=True)
        self.wait(0.5)
        self.run_sql("DELETE FROM destinations")
        self.answer()
        self.wait(1)
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))
        self.assertEqual(self.names(), [])

    def test_not_sent(self) -> None:
        """Where the sender was never started, nobody is counted as connected."""
        self.run_sql("DELETE FROM federation_stream_position")
        self.add_failing("a.example")
        self.answers["a.example"] = ANSWER
        run_id = self.begin("reconnect", all_failing=True)
        self.wait(1)
        self.assertEqual(self.run_of(run_id)["outcomes"], {"not_sent": 1})
        self.assertEqual(self.row("a.example"), (0, 0, None, 7))

    def test_recorded_before(self) -> None:
        """What fails anew, while a commit is not heard of, is not cleared once more."""
        record = Job.record
        calls = []

        async def fail_after_commit(job: Job, *args: Any) -> bool:
            calls.append(args)
            found = await record(job, *args)
            if len(calls) == 1:
                await self.store.set_destination_retry_timings("a.example", 9, 9, 60)
                raise self.database_away
            return found

        self.add_failing("a.example", answer=ANSWER)
        with mock.patch.object(Job, "record", fail_after_commit):
            run_id = self.begin("reconnect", all_failing=True)
            self.wait(10)
        self.assertGreater(len(calls), 1)
        self.assertEqual(self.run_of(run_id)["outcomes"], {"connected": 1})
        self.assertEqual(self.row("a.example"), (9, 60, 9, 7))

    def test_not_failing(self) -> None:
        """What is not failing, but in the list, is contacted, and its row stays."""
        self.add_destination("new.example")
        self.answers["new.example"] = ANSWER
        run_id = self.begin("reconnect", destinations=["new.example"])
        self.wait(1)
        self.assertEqual(self.counts(run_id), (1, 1, 1, 0))
        self.assertEqual(self.row("new.example"), (None, None, None, None))

    def test_nothing_matches(self) -> None:
        """A run for nothing is complete at once."""
        self.add_destination("fine.example", 0, 0, None, 3)
        criteria: dict[str, Any]
        for criteria in ({"all_failing": True}, {"destinations": []}):
            run_id = self.begin("reconnect", **criteria)
            self.wait(0.5)
            self.assertEqual(self.run_of(run_id)["status"], "complete")
            self.assertEqual(self.counts(run_id), (0, 0, 0, 0))
        self.assertEqual(self.probes, [])

    def test_filter(self) -> None:
        """A filter keeps what the list keeps; with no status only what is failing."""
        self.reactor.advance(10)
        failing = ["a1.example", "a2.example", "b2.example"]
        self.add_failing(*failing)
        self.add_destination("due.example", 1000, 2000, 500, 7)
        self.add_destination("fine.example", 0, 0, None, 3)
        given: dict[str, Any]
        for given, expected in (
            ({"destination": "?2.*"}, ["a2.example", "b2.example"]),
            ({"status": ["backing_off"]}, failing),
            ({"status": ["retry_due", "online"]}, ["due.example", "fine.example"]),
            ({"status": ["online"]}, ["fine.example"]),
            ({"failing_for": "1s"}, [*failing, "due.example"]),
            ({"failing_for": "1s", "destination": "due"}, ["due.example"]),
            ({"failing_for": "1h"}, []),
            # The last is done, too.
            ({"destination": "2."}, ["a2.example", "b2.example"]),
        ):
            dry = self.post("reconnect", filter=given, dry_run=True)
            self.assertEqual(
                dry.json_body,
                {"dry_run": True, "matched": len(expected), "sample": expected},
            )
        self.answers.update(dict.fromkeys(expected, ANSWER))
        run_id = self.begin("reconnect", filter=given, per_second=100)
        self.wait(2)
        self.assertEqual(sorted(self.probed), expected)
        self.assertEqual(self.run_of(run_id)["matched"], len(expected))

    def test_dry_run(self) -> None:
        """A dry run says what would be done and does nothing."""
        names = self.add_hosts(25)
        body = self.post("reconnect", all_failing=True, dry_run=True).json_body
        self.assertEqual((body["matched"], body["sample"]), (25, names[:10]))
        body = self.post("reconnect", destinations=names, dry_run=True).json_body
        self.assertEqual((body["matched"], body["sample"]), (25, names[:10]))
        self.wait(2)
        self.assertEqual(self.probes, [])
        self.assertEqual(self.audit(), [])
        self.assertEqual(self.get_json(RUNS)["runs"], [])

    def test_unusable_names(self) -> None:
        """Unknown and invalid names in a list are named, and nothing is changed.

        With `ignore_unknown` they are left out.
        """
        self.add_failing("a.example", "b.example")
        names = ["a.example", "no.example", "no server", "a.example", "A.example"]
        # Synapse takes them for valid; nothing can be sent to them.
        nowhere = ["b.example:65536", f"{'b' * 64}.example"]
        names += nowhere
        channel = self.post("reconnect", destinations=names)
        self.assert_error(channel, 400, "M_INVALID_PARAM", "no.example")
        self.assertEqual(channel.json_body["unknown"], ["no.example", "A.example"])
        self.assertEqual(channel.json_body["invalid"], ["no server", *nowhere])
        self.assertIn("no server", channel.json_body["error"])
        self.assertEqual(self.get_json(RUNS)["runs"], [])

        self.answers["a.example"] = ANSWER
        channel = self.post("reconnect", destinations=names, ignore_unknown=True)
        self.assertEqual(channel.code, 200)
        self.assertEqual(channel.json_body["ignored"], {"unknown": 2, "invalid": 3})
        self.wait(1)
        self.assertEqual(self.probed, ["a.example"])
        self.assertEqual(self.counts(channel.json_body["id"]), (1, 1, 1, 0))

    def test_error_of_ours(self) -> None:
        """A bug of ours in a contact is counted apart, and changes no destination."""
        names = self.add_hosts(5, ANSWER)
        self.answers[names[2]] = RuntimeError("bug")
        with self.assertLogs(classify.__name__, "ERROR") as logged:
            run_id = self.begin("reconnect", all_failing=True, per_second=10)
            self.wait(3)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete")
        self.assertEqual(run["outcomes"], {"connected": 4, "internal": 1})
        (error,) = run["errors"]["internal"]["recent"]
        self.assertEqual(error["destination"], names[2])
        self.assertEqual(self.row(names[2]), LONG_FAILING)
        (entry,) = self.audit(f"?run_id={run_id}&outcome=internal")
        self.assertEqual(entry["details"]["contact"]["error"]["kind"], "internal")
        self.assertIn("RuntimeError: bug", logged.output[0])

    def test_bug_beside_a_contact(self) -> None:
        """A bug in what is done with a contact is not tried again for ever."""
        self.add_failing("a.example")
        self.answers["a.example"] = ANSWER
        with (
            mock.patch.object(reconnect_many, "shown_contact", side_effect=TypeError),
            self.assertLogs(runner.__name__, "ERROR"),
        ):
            run_id = self.begin("reconnect", all_failing=True)
            self.wait(20)
            self.reactor.advance(120)
        self.assertEqual(self.run_of(run_id)["status"], "failed")
        self.assertEqual(self.row("a.example"), LONG_FAILING)


class InputTestCase(ManyTestCase):
    """Bad criteria change nothing, and the error names what is wrong."""

    def test_criteria(self) -> None:
        """400 M_INVALID_PARAM, and there is no run. (More: test_bad_input.py.)"""
        self.add_failing("a.example")
        bodies: list[tuple[dict[str, Any], str]] = [
            ({}, "'all_failing'"),
            ({"all_failing": False}, "'all_failing'"),
            ({"all_failing": True, "destinations": ["a"]}, "only one"),
            ({"filter": {}}, "'filter'"),
            ({"filter": {"destination": ""}}, "'filter'"),
            ({"filter": {"status": []}}, "'filter'"),
            ({"all_failing": True, "per_second": 501}, "'per_second'"),
        ]
        for body, named in bodies:
            channel = self.post("reconnect", **body)
            self.assert_error(channel, 400, "M_INVALID_PARAM", named)
        self.assertEqual(self.get_json(RUNS)["runs"], [])


class CeilingTestCase(ManyTestCase):
    config = {"contact_on_reset": False, "bulk": {"max_per_second": 3}}

    def test_ceiling(self) -> None:
        """No run is faster than the configuration allows, nor by default."""
        channel = self.post("reconnect", all_failing=True, per_second=4)
        self.assert_error(channel, 400, "M_INVALID_PARAM", "from 0.1 to 3")
        run = self.post("reconnect", all_failing=True).json_body
        self.assertEqual(run["options"]["per_second"], 3)
