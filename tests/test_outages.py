# SPDX-License-Identifier: Apache-2.0
"""How outages begin and end: what the job makes of rows, audit and what is recorded."""

from typing import Any, NamedTuple

import pytest
from module_case import NAME, ModuleTestCase
from synapse.api.errors import RequestSendFailed
from synapse.federation.transport.server._base import Authenticator
from synapse.module_api import LoggingTransaction
from synapse.server import HomeServer
from synapse.util.clock import Clock
from twisted.internet import error
from twisted.internet.testing import MemoryReactor

from synapse_federation_admin import limits
from synapse_federation_admin.history.outages import Outages
from synapse_federation_admin.history.recorder import Recorder
from synapse_federation_admin.storage.outage_ends import changed_since, ended_outages
from synapse_federation_admin.storage.outages import OPEN_OUTAGES, begin_missing_txn

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]

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

    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        super().prepare(reactor, clock, hs)
        reactor.advance(10 * DAY / 1000)
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


class BeginTestCase(OutagesTestCase):
    """When an outage begins, where no process has written that it did."""

    def test_begins(self) -> None:
        """What fails has an outage since then, what does not has none.

        Also since before recording began; and where Synapse does not know since when it
        fails, since the last try. Looking again begins no other one.
        """
        for row, expected in (
            ((DAY + 1, 600_000, DAY), [(DAY, None, None)]),
            ((DAY, 600_000, None), [(DAY, None, None)]),
            ((0, 0, None), []),
            ((), []),
        ):
            self.forget_all()
            self.add_destination(NAME, *row)
            for _ in range(2):
                self.look()
                self.assert_recorded(expected, row)

    def test_kind(self) -> None:
        """It has the kind of the last failure since, and no older one's."""
        for kind, ts, kinds in (
            ("dns_not_found", self.began - HOUR, []),
            ("tls_expired", self.began + 1, ["tls_expired"]),
        ):
            self.forget_all()
            self.failing(self.began)
            self.failed(kind, ts)
            self.look()
            self.assertEqual(self.shown()[0]["kinds"], kinds)

    def test_no_rows(self) -> None:
        """What Synapse's row says takes no row of ours; availability counts it."""
        self.failing(self.began)
        self.pass_time(HOUR)
        self.look()
        self.assertEqual(self.count("federation_admin_outages"), 0)
        page = self.get_json(
            "/_synapse/admin/v2/federation/destinations?include=availability"
        )
        self.assertEqual(page["destinations"][0]["availability"]["share"], 0)

    def test_recording_dropped(self) -> None:
        """Since when it is recorded is there again after the tables were dropped."""
        self.run_sql("DELETE FROM federation_admin_recording")
        self.look()
        self.assertEqual(self.count("federation_admin_recording"), 1)

    def test_plan(self) -> None:
        """A look at what was written lately reads no more of the audit than a day."""
        which = changed_since(self.now)
        over = ended_outages(OPEN_OUTAGES, which, self.now)

        def plan(txn: LoggingTransaction) -> str:
            if not self.homeserver.is_postgres:
                txn.execute(f"EXPLAIN QUERY PLAN {over.text}", over.args)
                return "\n".join(row[3] for row in txn.fetchall())
            for other in ("seqscan", "bitmapscan"):
                txn.execute(f"SET LOCAL enable_{other} = off")
            txn.execute(f"EXPLAIN {over.text}", over.args)
            return "\n".join(row[0] for row in txn.fetchall())

        found = self.get_success(self.tables.run("test", plan))
        self.assertIn("federation_admin_audit_ts", found)
        self.assertNotIn("SCAN federation_admin_audit", found)

    def test_many_end(self) -> None:
        """However many have worked again, each outage ends."""
        count = limits.OUTAGES_ENDED + 1
        self.run_sql(
            "INSERT INTO federation_admin_outages (destination, start_ts, kinds) "
            f"WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n "
            f"WHERE n < {count}) SELECT 'd' || n, 1, '' FROM n"
        )
        self.look()
        self.assertEqual(self.count("federation_admin_outages WHERE end_ts > 0"), count)

    def count(self, rows: str) -> int:
        ((found,),) = self.run_sql(f"SELECT COUNT(*) FROM {rows}")
        return int(found)


class Case(NamedTuple):
    """How an outage ends that began an hour ago. All times are in s from now.

    Attributes:
        row: What Synapse's row says: it works, is gone, fails as before, or fails since
            some time after it began.
        done: What is in the audit, with commas in between: action, outcome, and when.
        got: When a request got through.
        end: When it has ended; None if it has not.
        ended: How.
    """

    row: str
    done: str = ""
    got: int | None = None
    end: int | None = None
    ended: str | None = None


# Before the outage.
BEFORE = -3601

ENDS = [
    # What was done in vain.
    Case("fails", "reconnect still_failing -3000, reconnect pending -9"),
    # Requests that fail side by side each write their own time.
    Case("side by side"),
    Case("fails", got=BEFORE),
    Case("works", got=BEFORE, end=0, ended="recovered"),
    Case("works", got=-5, end=-5, ended="recovered"),
    # Nobody knows why.
    Case("works", end=0, ended="recovered"),
    Case("works", "reset reset -90", end=-90, ended="reset"),
    Case("works", "reconnect connected -1", end=-1, ended="reset"),
    # Nor what came of what was cleared.
    Case("works", "reset interrupted -90"),
    Case("works", "reset interrupted -90", got=-5, end=-5, ended="recovered"),
    Case("works", "reset interrupted -90, reconnect connected -9", None, -9, "reset"),
    Case("gone", "reset interrupted -90, forget forgotten -5", None, -5, "forgotten"),
    # Of what was forced it is not known whether it works.
    Case("works", "reconnect forced -60", end=0, ended="recovered"),
    Case("works", "reset pending -3000"),
    # Who has made it is gone: nobody will write what came of it.
    Case("works", "reset pending -3605"),
    Case("works", "reset pending -3605", got=-90, end=-90, ended="recovered"),
    # What gets through within a second of a reset, or was on its way.
    *(Case("works", "reset reset -120", t, -120, "reset") for t in (-121, -119, -70)),
    Case("works", "reset reset -600", got=-300, end=-300, ended="recovered"),
    Case(
        "works",
        f"reset reset {BEFORE}, forget forgotten {BEFORE}",
        None,
        0,
        "recovered",
    ),
    Case(
        "works",
        "reconnect still_failing -1800, forget failed -1800",
        None,
        0,
        "recovered",
    ),
    Case("gone", "forget forgotten -5", end=-5, ended="forgotten"),
    # Nobody says why.
    Case("gone", end=0, ended="forgotten"),
    Case("gone", "forget forgotten -5", got=-9, end=-9, ended="recovered"),
    Case("gone", "reset reset -1800, forget forgotten -5", None, -5, "forgotten"),
]


class EndTestCase(OutagesTestCase):
    """How an outage ends, that began an hour ago, and when."""

    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        super().prepare(reactor, clock, hs)
        self.failing(self.began)
        self.write_outage()
        self.pass_time(HOUR)

    def start_anew(self) -> None:
        """Have nothing be known but that it began to fail an hour ago."""
        self.forget_all()
        self.outage(self.began)
        self.failing(self.began)

    def assert_ended(self, end_ts: int | None, ended: str | None) -> None:
        self.look()
        self.assert_recorded([(self.began, end_ts, ended)])

    def assert_open(self) -> None:
        self.assert_ended(None, None)

    def test_how_it_ends(self) -> None:
        """By what Synapse's row says, and by the last thing that may have ended it."""
        for case in ENDS:
            self.start_anew()
            if case.row == "gone":
                self.run_sql(GONE)
            elif case.row == "works":
                self.working()
            elif case.row == "side by side":
                self.failing(self.began + 5000)
            for done in filter(None, case.done.split(", ")):
                action, outcome, at = done.split()
                self.done(action, outcome, self.at(int(at)))
            if case.got is not None:
                self.recovered(self.at(case.got))
            self.look()
            self.assert_recorded([(self.began, self.at(case.end), case.ended)], case)

    def at(self, seconds: int | None) -> Any:
        """Return the time that a case means."""
        if seconds is None:
            return None
        return self.began - 1 if seconds == BEFORE else self.now + 1000 * seconds

    def test_not_known_yet(self) -> None:
        """Until it is known what comes of a reset, it is not known to be over."""
        for action in ("reset", "reconnect"):
            self.working()
            self.done(action, "pending", self.now)
            self.pass_time(20 * MINUTE)
            self.assert_open()
        self.run_sql("UPDATE federation_admin_audit SET outcome = 'connected'")
        self.assert_ended(self.now - 20 * MINUTE, "reset")

    def test_clock_set_back(self) -> None:
        """No outage ends before it began, though the clock was set back meanwhile."""
        self.pass_time(-65 * MINUTE)
        self.working()
        self.recovered(self.now)
        self.assert_ended(self.began, "recovered")
        self.assertEqual(self.shown()[0]["duration_ms"], 0)

    def test_clock_set_back_open(self) -> None:
        """An outage that begins in the future makes no share of a day exceed 1."""
        self.pass_time(-2 * HOUR)
        self.run_sql(f"UPDATE federation_admin_recording SET since_ts = {DAY}")
        page = self.get_json(
            "/_synapse/admin/v2/federation/destinations?include=availability"
        )
        (found,) = page["destinations"]
        self.assertEqual(found["availability"]["share"], 1)


class GoesOnTestCase(OutagesTestCase):
    """What fails anew soon after an outage is that outage."""

    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        super().prepare(reactor, clock, hs)
        self.end_ts = self.now + HOUR
        self.pass_time(2 * HOUR)

    def test_goes_on(self) -> None:
        """It goes on if the server fails since before it ended, or soon after.

        Not if the server works, or fails since later. Nor does an earlier outage.
        """
        for ended in ("reset", "recovered", "forgotten"):
            last = (self.began, self.end_ts, ended)
            earlier = (self.began - HOUR, self.began - 20 * MINUTE, ended)
            goes_on = (self.began, None, None)
            soon_ts, later_ts = self.end_ts + 9 * MINUTE, self.end_ts + 11 * MINUTE
            for known, since_ts, expected, up_ms in (
                ([last], self.began, [goes_on], 0),
                ([earlier, last], self.began, [earlier, goes_on], 0),
                ([last], self.began - HOUR, [goes_on], 0),
                ([last], soon_ts, [goes_on], 9 * MINUTE),
                ([last], later_ts, [last, (later_ts, None, None)], 0),
                ([last], None, [last], 0),
            ):
                for who in ("before it is cleared", "recorder"):
                    self.forget_all()
                    for outage in known:
                        self.outage(*outage)
                    if since_ts is None:
                        self.working()
                    else:
                        self.failing(since_ts, self.now)
                        if who == "recorder":
                            recorder = self.recorder()
                            recorder.failed(NAME, REFUSED)
                            self.write(recorder)
                        else:
                            self.write_outage()
                    self.look()
                    self.assert_recorded(expected, (known, since_ts, who))
                    self.assertLess(abs(self.shown()[-1]["up_ms"] - up_ms), 100)

    def test_flapping(self) -> None:
        """A server that fails and works in turn has one outage; if seldom, a few a day.

        Its availability is told as it is, whether the job looks in each cycle or once a
        minute.
        """
        for down, up, hours, most in (
            (1, 1, 1 / 5, 1),
            (10, 5, 1 / 2, 1),
            (300, 900, 30, 12),
        ):
            self.forget_all()
            self.run_sql(f"UPDATE federation_admin_recording SET since_ts = {self.now}")
            recorder = self.recorder()
            cycles = int(hours * 3600 / (down + up))
            wrote_ts = looked_ts = self.now
            for _ in range(cycles):
                self.failing(self.now)
                recorder.failed(NAME, REFUSED)
                self.pass_time(down * 1000)
                self.working()
                recorder.recovered(NAME)
                self.pump()
                if self.now - wrote_ts > 3000:
                    self.write(recorder)
                    wrote_ts = self.now
                if self.now - looked_ts > MINUTE:
                    self.look(at_all=False)
                    looked_ts = self.now
                self.pass_time(up * 1000)
            rows = self.run_sql("SELECT * FROM federation_admin_outages")
            self.assertLessEqual(len(rows), most)
            found = self.get_json(f"{OUTAGES.removesuffix('/outages')}")
            share = up / (down + up)
            self.assertLess(
                abs(found["availability"]["share"] - share), 0.1, (rows, found)
            )


class Story(NamedTuple):
    """What happens, one step after the other, and the outages that are recorded.

    Attributes:
        proves: What that proves.
        steps: With commas in between: a time that passes (`5 s`); what Synapse's row
            says from now on (`fails`, `fails since a`, `works`); that the outage is
            written, as it is before the row is cleared (`written`); what a process
            has noted and writes (`one refused`, `one no dns`, `one recovered`, `one
            writes`); what is in the audit (`reset reset`, or `forget forgotten a` if
            that was at another time); what is recorded (`failure`, `recovery`, or
            `recovery a`); a `look`, one for what has ended (`look ends`), and one that
            finds that it lasts since a (`lasts`); and a name for the time (`a:`).
        outages: With commas in between: when each began, and how and when it ended.
    """

    proves: str
    steps: str
    outages: str


STORIES = [
    Story(
        "a reset in vain ends nothing, whatever the row says meanwhile",
        "a:, fails, written, 1 h, reset reset, works, lasts, 5 s, fails, lasts, "
        "fails since a, lasts, 1 h, lasts, works, recovery, b:",
        "a recovered b",
    ),
    *(
        Story(
            "what fails anew soon after is the same outage, whatever has ended it, and "
            "whoever looks when",
            f"a:, fails, written, 1 h, b:, {steps}, look",
            "a",
        )
        for steps in (
            "reset reset, 2 s, fails, lasts, 1 m",
            "reset reset, works, 2 m, look, one refused, fails, one writes",
            "works, 2 s, fails, one refused, 3 s, one writes",
            "works, one recovered, one writes, look, 1 m, fails, written",
            "forget forgotten b, 2 m, one refused, fails, one writes",
        )
    ),
    *(
        Story(
            "a look before it is written that it has recovered finds no reset: "
            "requests have failed since, so that was in vain",
            f"a:, fails, written, 1 h, reset {outcome}, 5 s, failure, fails since a, "
            "10 m, look, 1.5 s, fails, 0.5 s, lasts, b:, works",
            "a recovered b",
        )
        for outcome in ("reset", "connected")
    ),
    Story(
        "what Synapse has never met has a row some time after its first failure",
        "a:, one refused, one writes, 59 s, lasts",
        "a",
    ),
    Story(
        "if it has none by then, it is gone",
        "a:, one refused, one writes, 61 s, b:",
        "a forgotten b",
    ),
    Story(
        "an outage begins with the failure that a process notices, of its kind",
        "a:, one refused, 3 s, one writes, fails since a",
        "a",
    ),
    Story(
        "what fails in one process and recovers in another has recovered, though the "
        "one that has seen it fail writes last",
        "a:, one refused, fails, 1 s, two recovered, works, b:, two writes, 0.5 s, "
        "look, one writes, 0.5 s, look",
        "a recovered b",
    ),
    Story(
        "a failure of an outage that is over begins no other one within it",
        "a:, fails, written, 1 h, one refused, 1 s, two recovered, works, b:, "
        "two writes, look, 1 s, one writes",
        "a recovered b",
    ),
    Story(
        "what has failed since before anything was recorded recovers",
        "a:, fails, 1 h, one recovered, b:, works, 3 s, one writes, look ends",
        "a recovered b",
    ),
    Story(
        "kinds of a failure after a recovery are not those of the outage before",
        "a:, one refused, fails, 3 s, one writes, one recovered, works, b:, 3 s, "
        "one writes, look, 1 h, c:, one no dns, fails, 3 s, one writes",
        "a recovered b, c",
    ),
]


class StoriesTestCase(OutagesTestCase):
    """What processes write, in any order, and the job's part in it."""

    def test_stories(self) -> None:
        """The outages are those that there were."""
        for story in STORIES:
            self.forget_all()
            self.times: dict[str, int] = {}
            self.processes = {"one": self.recorder(), "two": self.recorder()}
            for step in story.steps.split(", "):
                self.take(*step.split())
            self.look()
            expected = []
            for outage in story.outages.split(", "):
                began, ended, end = (*outage.split(), None, None)[:3]
                expected.append(
                    (self.times[str(began)], self.times.get(end or ""), ended)
                )
            self.assert_recorded(expected, story)
            if "no dns" in story.steps:
                self.assertEqual(
                    [outage["kinds"] for outage in self.shown()],
                    [["connection_refused"], ["dns_not_found"]],
                )

    def take(self, first: str, *more: str) -> None:
        """Take one step of a story."""
        at = self.times.get(more[-1], self.now) if more else self.now
        if first.endswith(":"):
            self.times[first[:-1]] = self.now
        elif first == "works":
            self.working()
        elif first == "fails":
            self.failing(at, self.now)
        elif first == "written":
            self.write_outage()
        elif first == "look":
            self.look(at_all=not more)
        elif first == "lasts":
            self.look()
            self.assert_recorded([(self.times["a"], None, None)], self.times)
        elif first == "failure":
            self.failed("connection_refused", at)
        elif first == "recovery":
            self.recovered(at)
        elif first in ("reset", "forget"):
            self.done(first, more[0], at)
        elif first in self.processes:
            process = self.processes[first]
            if more[0] == "writes":
                self.write(process)
            elif more[0] == "recovered":
                process.recovered(NAME)
            else:
                process.failed(NAME, REFUSED if more[0] == "refused" else NO_DNS)
        else:
            (unit,) = more
            self.pass_time(
                int(float(first) * {"s": 1000, "m": MINUTE, "h": HOUR}[unit])
            )


class NeverRecordedTestCase(OutagesTestCase):
    """What fails since before anything was recorded, and ends."""

    def test_written(self) -> None:
        """Its outage is written though Synapse has cleared the row by then."""
        self.failing(self.began)
        self.pass_time(HOUR)
        recorder = self.recorder()
        recovered_ts = self.now
        recorder.recovered(NAME)
        self.pump()
        self.working()
        self.get_success(recorder.write())
        self.look(at_all=False)
        self.assert_recorded([(self.began, recovered_ts, "recovered")])

    def test_asks(self) -> None:
        """A destination that asks something of us has recovered in that moment."""
        self.failing(self.began)
        self.pass_time(HOUR)
        asked_ts = self.now
        self.get_success(Authenticator(self.hs).reset_retry_timings(NAME))
        self.reactor.advance(4)
        self.look(at_all=False)
        self.assert_recorded([(self.began, asked_ts, "recovered")])

    def test_reset(self) -> None:
        """A reset ends it, once it is known that something was taken."""
        self.failing(self.began)
        self.pass_time(HOUR)
        reset_ts = self.now
        path = f"/_synapse/admin/v1/federation/destinations/{NAME}/reset_connection"
        self.assertEqual(self.ask("POST", path).code, 200)
        self.pass_time(90_000)
        self.look(at_all=False)
        self.assert_recorded([(self.began, None, None)])
        self.run_sql("UPDATE federation_admin_audit SET outcome = 'connected'")
        self.look(at_all=False)
        self.assert_recorded([(self.began, reset_ts, "reset")])
