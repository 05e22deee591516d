# SPDX-License-Identifier: Apache-2.0
"""What processes write of a server in turn, and the outages that are made of it."""

from typing import Any, NamedTuple

import pytest
from module_case import NAME
from outages_case import GONE, HOUR, MINUTE, NO_DNS, OUTAGES, REFUSED, OutagesTestCase

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]


class GoesOnTestCase(OutagesTestCase):
    """What fails anew soon after an outage is that outage."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
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
            says from now on (`fails`, `fails since a`, `works`; or it is `gone`); that
            the outage is written, as it is before the row is cleared (`written`); what
            a process has noted and writes (`one refused`, `one no dns`, `one
            recovered`, `one writes`); what is in the audit (`reset connected`, or
            `forget forgotten a` if that was at another time); what is recorded
            (`failure`, `recovery`, or `recovery a`); a `look`, one for what has ended
            (`look ends`), and one that finds that it lasts since a (`lasts`); and a
            name for the time (`a:`).
        outages: With commas in between: when each began, and how and when it ended.
    """

    proves: str
    steps: str
    outages: str


# How an outage ends that has lasted for an hour: what happens then, and what has ended
# it, and when. Just before it began was z.
ENDS = [
    # What was done in vain.
    ("reconnect still_failing, 49 m, reconnect pending, 9 s", ""),
    ("recovery z", ""),
    ("works, recovery z, b:", "recovered b"),
    ("b:, recovery, 5 s, works", "recovered b"),
    ("recovery, 5 s, failure, 5 s, works, b:", "recovered b"),
    # Nobody knows why.
    ("works, b:", "recovered b"),
    ("b:, reset reset, works", "reset b"),
    ("b:, reconnect connected, 1 s, works", "reset b"),
    # Nor what came of what was cleared.
    ("reset interrupted, 90 s, works", ""),
    ("reset interrupted, 85 s, b:, recovery, 5 s, works", "recovered b"),
    ("reset interrupted, 81 s, b:, reconnect connected, 9 s, works", "reset b"),
    ("reset interrupted, 85 s, b:, forget forgotten, 5 s, gone", "forgotten b"),
    # Of what was forced it is not known whether it works.
    ("reconnect forced, 60 s, works, b:", "recovered b"),
    ("reset pending, 50 m, works", ""),
    ("reconnect pending, 50 m, works", ""),
    # Who has made it is gone: nobody will write what came of it.
    ("reset pending, 3605 s, works", ""),
    ("reset pending, 3515 s, b:, recovery, 90 s, works", "recovered b"),
    # What gets through within a second of a reset, or was on its way.
    ("c:, 1 s, b:, reset connected, recovery c, 2 m, works", "reset b"),
    ("b:, reset connected, 1 s, recovery, 119 s, works", "reset b"),
    ("b:, reset connected, 50 s, recovery, 70 s, works", "reset b"),
    ("reset connected, 5 m, b:, recovery, 5 m, works", "recovered b"),
    ("reset connected z, forget forgotten z, works, b:", "recovered b"),
    ("reconnect still_failing, forget failed, 30 m, works, b:", "recovered b"),
    ("b:, forget forgotten, 5 s, gone", "forgotten b"),
    # Nobody says why.
    ("gone, b:", "forgotten b"),
    ("b:, recovery, 4 s, forget forgotten, 5 s, gone", "recovered b"),
    ("reset connected, 30 m, b:, forget forgotten, 5 s, gone", "forgotten b"),
]

STORIES = [
    *(
        Story(
            "it ends by what Synapse's row says, and by the last thing that may have "
            "ended it",
            f"z:, 0.001 s, a:, fails, written, 1 h, {steps}",
            f"a {ended}".strip(),
        )
        for steps, ended in ENDS
    ),
    Story(
        "requests that fail side by side each write their own time",
        "a:, fails, written, 5 s, b:, 1 h, fails since b",
        "a",
    ),
    Story(
        "a reset in vain ends nothing, whatever the row says meanwhile",
        "a:, fails, written, 1 h, reset pending, works, lasts, 5 s, fails, lasts, "
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
            "reset connected, 2 s, fails, lasts, 1 m",
            "reset connected, works, 2 m, look, one refused, fails, one writes",
            "works, 2 s, fails, one refused, 3 s, one writes",
            "works, one recovered, one writes, look, 1 m, fails, written",
            "forget forgotten b, 2 m, one refused, fails, one writes",
        )
    ),
    Story(
        "a look before it is written that it has recovered finds no reset: requests "
        "have failed since, so that was in vain",
        "a:, fails, written, 1 h, reset connected, 5 s, failure, fails since a, 10 m, "
        "look, 1.5 s, fails, 0.5 s, lasts, b:, works",
        "a recovered b",
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
        elif first == "gone":
            self.run_sql(GONE)
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
        elif first in ("reset", "reconnect", "forget"):
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
