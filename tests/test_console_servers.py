# SPDX-License-Identifier: Apache-2.0
"""The console's overview, its list of servers, and the page of one server."""

import html
import json
import re
from typing import Any
from unittest import mock
from urllib.parse import quote, urljoin

import pytest
from console_case import CONSOLE, ConsoleTestCase, words_of
from history_case import DAY, HOUR, MINUTE, HistoryTestCase
from markupsafe import escape
from module_case import V2, MembersTestCase, SenderTestCase

from synapse_federation_admin import limits
from synapse_federation_admin.console.render import strip
from synapse_federation_admin.destinations.reader import DestinationList
from synapse_federation_admin.diagnosis.diagnose import Diagnoses
from synapse_federation_admin.diagnosis.support import (
    Support,
    SupportContact,
    SupportFiles,
)
from synapse_federation_admin.failures.kinds import FAILURE_KINDS
from synapse_federation_admin.history.outlook import CorrelationVerdict
from synapse_federation_admin.homeserver.background import Turn
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.instances import InstanceState
from synapse_federation_admin.wording import causes, outcomes, servers
from synapse_federation_admin.wording.verdict import verdict_of

pytestmark = pytest.mark.one_synapse

PAGE_BYTES = 60_000

# A name that no server can have, but a row; and what a server may say.
HOSTILE = "<script>alert(1)</script>&\u202e" + "x" * 300
SAID = 'https://evil.example/ <img src=x onerror="alert(1)"> \u202e\x07' + "y" * 2000


class PagesTest(ConsoleTestCase, SenderTestCase, HistoryTestCase, MembersTestCase):
    def pass_time(self, seconds: int) -> None:
        """Have it be later for whoever asks what time it is."""
        self.now += seconds * 1000
        self.patch(Homeserver, "now_ms", lambda _: self.now)

    def add_fleet(self, count: int = 60) -> None:
        """Write servers that fail with every kind, some that do not, and a name."""
        self.record_since(20 * DAY)
        kinds = list(FAILURE_KINDS)
        ages = (MINUTE, 5 * HOUR, 3 * DAY, 20 * DAY, 90 * DAY)
        for number in range(count):
            name = f"server{number:03}.example"
            kind = kinds[number * number % len(kinds)]
            self.add_failing(name, kind, ages[number % len(ages)])
            self.add_failure(name, kind, message=SAID)
        self.add_destination(HOSTILE, self.now - 5, HOUR, self.now - DAY)
        for number in range(5):
            self.add_destination(f"fine{number}.example", None, None, None, 1)
            self.add_success(f"fine{number}.example", worked=9 * DAY)
        self.add_outage("fine0.example", 2 * DAY, DAY, kinds="tls_expired")
        self.add_to_device("server000.example", self.now - DAY)
        self.add_poke("server000.example")

    def test_calm(self) -> None:
        """Where nothing fails and nothing waits, one line says so, and no table."""
        self.assertIn("No server is known yet.", self.text("/"))
        self.assertIn("Synapse knows no other server yet", self.text("/servers"))
        self.add_destination("fine.example", None, None, None, 1)
        page = self.page("/")
        text = words_of(page)
        self.assertIn("is not failing. Nothing is known to be wrong.", text)
        self.assertIn('class="verdict good"', page)
        for absent in ("by cause and age", "What waits", "Who needs you"):
            self.assertNotIn(absent, text)

    def test_overview(self) -> None:
        """Every number is that of the API, and leads to the list of so many servers."""
        self.add_fleet()
        summary = self.get_json(f"{V2}/summary")
        page = self.page("/")
        text = words_of(page)
        self.assertIn("61 of 66 servers are failing. Nothing suggests", text)
        self.assertLess(len(page.encode()), PAGE_BYTES)
        for kind, count in summary["failing_by_kind"].items():
            link = f"{CONSOLE}/servers?failure={kind}"
            self.assertIn(f'<a href="{link}">{count}</a>', page)
        # The causes of most servers are seen at once, the others where it is opened.
        first, _, folded = page.partition("<details>")
        self.assertEqual(first.count('<th scope="row">'), 8)
        rest = len(summary["failing_by_kind"]) - 8
        self.assertIn(f"<summary>{rest} more causes, ", folded)
        self.assertEqual(folded.count('<th scope="row">'), rest)
        links = re.findall(r'<a class="h\d" href="(.*?)">(\d+)</a>', page)
        self.assertGreater(len(links), 20)
        for link, number in links[::7]:
            path = html.unescape(link).removeprefix(CONSOLE)
            server = "server" if number == "1" else "servers"
            self.assertIn(f"{number} {server} that match", self.text(path))
        self.assertIn("To-device messages 1 the oldest for 1 d", text)
        needs = self.get_json(f"{V2}/attention")["destinations"]
        self.assertIn('/servers/server000.example/reconnect"', self.page("/"))
        (row,) = (each for each in needs if each["waiting"])
        self.assertEqual(row["destination"], "server000.example")
        self.assertRegex(self.text("/"), r"server000.example ✗ down .* 0 1 message, ")

    def test_done(self) -> None:
        """What is done, and what was, stands on the overview and at the server."""
        self.add_fleet(2)
        self.assertEqual(self.reset("server000.example").code, 200)
        done = r"Reset (server000.example )?@admin:test \W+ not known yet"
        self.assertRegex(self.text("/"), done)
        self.assertRegex(self.text("/servers/server000.example"), done)
        names = ["server001.example"]
        run = self.post_json(f"{V2}/reconnect", destinations=names, per_second=0.1)
        page = self.page("/")
        self.assertIn(f'href="{CONSOLE}/runs/{run["id"]}">Reconnect</a>', page)
        self.assertIn("Run under way", words_of(page))

    def test_servers(self) -> None:
        """The list: what the API answers, in words; filters, order and pages by URL."""
        self.add_fleet()
        with mock.patch.object(Turn, "end_if_long", autospec=True) as others:
            page = self.page("/servers?failing_for=0s&failure=&order_by=failure_ts")
        # It is made in pieces, between which others have their turn.
        self.assertGreater(others.await_count, 100)
        self.assertLess(len(page.encode()), PAGE_BYTES)
        self.assertEqual(page.count("<tr data-row>"), 50)
        text = words_of(page)
        self.assertIn("61 servers that match", text)
        self.assertIn("down for 90 d , next try in 59 min", text)
        rows = self.get_json(
            f"{V2}/destinations?failing_for=0s&limit=50&order_by=failure_ts"
        )["destinations"]
        names = re.findall(r'name="name" value="(.*?)"', page)
        self.assertEqual(names, [html.escape(row["destination"]) for row in rows])
        for row in rows:
            shapes = page.split(f'value="{html.escape(row["destination"])}"')[1]
            self.assertLessEqual(shapes.partition("</tr>")[0].count("<path"), 4)
        more = self.next_page(page)
        self.assertEqual(more.count("<tr data-row>"), 11)
        self.assertNotIn('rel="next"', more)
        self.assertIn("No server matches.", self.text("/servers?destination=nobody"))
        self.assertIn("1 device change", self.text("/servers?destination=server000"))

    def test_long_names(self) -> None:
        """A page whose names are as long and hostile as can be has fewer rows.

        Those that match are counted once for it.
        """
        counts = mock.Mock(side_effect=DestinationList.count)
        counting = mock.patch.object(DestinationList, "count", lambda it: counts(it))
        for character, length, least in (("'", 255, 15), ("é", 120, 20), ("y", 80, 50)):
            names = [
                f"{character}{number:02}".ljust(length, character)
                for number in range(55)
            ]
            for name in names:
                self.add_destination(name, self.now - 5, HOUR, self.now - DAY)
            counts.reset_mock()
            with counting:
                page = self.page(f"/servers?destination={quote(character * 9)}")
            counts.assert_called_once()
            self.assertIn("55 servers that match", words_of(page))
            self.assertLess(len(page.encode()), PAGE_BYTES)
            rows = page.count("<tr data-row>")
            self.assertGreaterEqual(rows, least)
            self.assertIn(f'value="{escape(names[rows])}"', self.next_page(page))

    def test_dots(self) -> None:
        """A name that browsers take for a folder has a page, too."""
        for name in (".", ".."):
            self.add_destination(name, self.now - 5, HOUR, self.now - DAY)
            page = self.page("/servers")
            (path,) = re.findall(f'href="(.*?)">{re.escape(name)}</a>', page)
            self.assertEqual(urljoin("http://a/servers", path), f"http://a/{path}")
            page = self.page(f"/{path}")
            self.assertIn(f'<h1><span class="name">{name}</span>', page)
            self.assertIn(f"{path}/forget", page)
            self.assertIn("This cannot be undone", self.text(f"/{path}/forget"))

    def test_waiting(self) -> None:
        """The list of what waits says as of when it is, and has no other order."""
        self.add_fleet(3)
        self.text("/")
        page = self.page("/servers?has_backlog=true&failing_for=0s&order_by=failure_ts")
        self.assertEqual(page.count("<tr data-row>"), 1)
        text = words_of(page)
        self.assertIn("1 server that matches, for which something waits", text)
        self.assertIn("last read, 1 s ago : where most waits first.", text)
        self.assertIn("server000.example", text)
        # A selection alone is what something can be done to.
        self.assertNotIn("or all", text)
        self.assertIn("Your users", text)
        self.assertIn(
            "No server matches.",
            self.text("/servers?has_backlog=true&destination=nobody"),
        )

    def test_export(self) -> None:
        """The file has what the filters keep, or that for which something waits."""
        self.add_fleet(3)
        self.text("/")
        lines = self.page("/servers/export?format=csv&has_backlog=true").splitlines()
        self.assertEqual(
            [line.split(",")[0] for line in lines[1:]],
            ["server000.example"],
        )
        lines = self.page("/servers/export?format=ndjson&status=online").splitlines()
        names = [json.loads(line)["destination"] for line in lines]
        self.assertEqual(names, [f"fine{number}.example" for number in range(5)])

    def test_unlisted(self) -> None:
        """Names for which something waits, but which are no servers yet, are listed."""
        self.assertIn("There are none.", self.text("/unlisted"))
        for number in range(51):
            self.add_to_device(f"new{number:02}.example", self.now - DAY)
        self.assertIn(f'<a href="{CONSOLE}/unlisted">51</a>', self.page("/"))
        page = self.page("/unlisted")
        self.assertEqual(page.count("<tr data-row>"), 50)
        self.assertLess(len(page.encode()), PAGE_BYTES)
        self.assertIn("new00.example 1 message 1 d ago", words_of(page))
        self.assertIn("new50.example", words_of(self.next_page(page)))

    def test_server(self) -> None:
        """One server: its status, why, since when, for whom, and the raw answer."""
        self.add_fleet(3)
        text = self.text("/servers/server000.example")
        detail = self.get_json(f"{V2}/destinations/server000.example")
        last = detail["failures"][0]
        self.assertIn(causes.cause(last["kind"]), text)
        self.assertIn(causes.advice(last["kind"]), text)
        for part in (
            "down for 1 min",
            "Last 14 days",
            "down since 24 Nov 2026",
            "Tell them",
            "Ask their support file whom to tell",
            "To-device messages 1 the oldest for 1 d",
            "Your users 0",
            "Nothing was done to this server",
            '"local_users": 0',
            "curl -H",
        ):
            self.assertIn(part, text)
        # Of what is no server name nobody is asked, and nobody told.
        asked = self.text(f"/servers/{quote(HOSTILE, safe='')}?contacts=yes")
        self.assertNotIn("Tell them", asked)
        self.assertNotIn("Sent by", asked)
        fine = self.text("/servers/fine0.example")
        self.assertIn("No real request to it fails; the last answered well", fine)
        self.assertIn("22 Nov 2026, 12:00:00 UTC : 1 d", fine)
        self.assertIn("Sent by", fine)

    def test_since_when(self) -> None:
        """What waits in rooms is told since when, at least: of all, and of a server."""
        self.helper.create_room_as("user", tok=self.user_token)
        self.run_sql(f"UPDATE events SET received_ts = {self.now - 2 * DAY}")
        (newest,) = self.run_sql("SELECT max(stream_ordering) FROM events")
        self.add_destination("waits.example", None, None, None, newest[0] - 1)
        self.add_room("waits.example", "!a:x", newest[0])
        for page in ("/", "/servers/waits.example"):
            self.assertIn("Rooms 1 the oldest for at least 2 d", self.text(page))

    def test_diagnosed(self) -> None:
        """The stages of a diagnosis, each with its sign, its sentence and findings."""
        name = quote(HOSTILE, safe="")
        self.add_fleet(1)
        path = f"/servers/{name}"
        asked = self.submit(self.page(path), f"{path}/diagnose")
        here = self.led_to(asked)
        page = self.page(here)
        text = words_of(page)
        self.assertIn("Invalid server name", text)
        self.assertIn("✗ nothing gets past here Name", text)
        self.assertIn("\u2013 not tried Delegation", text)
        self.assertEqual(page.count('<span class="mark'), 10)
        # Again and again: nothing is diagnosed for it.
        self.pass_time(20)
        with mock.patch.object(Diagnoses, "diagnose") as diagnosed:
            self.assertIn("diagnosed 20 s ago from main", self.text(here))
            of_another = here.replace(name, "server000.example")
            lost = "What came of the diagnosis is not at hand"
            self.assertIn(lost, self.text(of_another))
            self.pass_time(601)
            self.assertIn(lost, self.text(here))
        diagnosed.assert_not_called()

    def test_cleared(self) -> None:
        """A server whose backoff was cleared is not said to work before it answers."""
        name = "server000.example"
        self.add_fleet(1)
        self.assertIn("down for 1 min", self.text(f"/servers/{name}"))
        self.assertEqual(self.reset(name).code, 200)
        self.pass_time(10)
        text = self.text(f"/servers/{name}")
        self.assertIn("! not in backoff , no success since; was down for", text)
        self.assertIn("It is not in backoff, but no success of a real", text)
        self.assertNotIn("not failing", text.partition("Last 14 days")[0])
        listed = self.text(f"/servers?destination={name}")
        self.assertIn("! not in backoff , no success since; was down for", listed)

    def test_no_answer(self) -> None:
        """Who answers real requests with 200 and with nothing of use is not in order.

        Synapse does not back off from it, so that no outage is recorded.
        """
        name = "server000.example"
        self.add_destination(name, 0, 0, None, 7)
        self.assertIn("✓ not failing", self.text("/servers"))
        self.insert(
            "federation_admin_failures",
            destination=name,
            kind="invalid_response",
            message="Invalid response",
            first_ts=self.now,
            last_ts=self.now,
            count=1,
            instance="main",
            issuer="",
        )
        for path in ("/servers", f"/servers/{name}"):
            text = self.text(path)
            self.assertIn("! not in backoff , no success since", text)
            self.assertNotIn("✓ not failing", text)
        # A request to it failed, and nothing proves that all is well.
        self.pass_time(11)
        text = self.text("/")
        self.assertIn("1 server has accepted no request since one failed.", text)
        self.assertIn("that has accepted no request since one failed is in no", text)
        self.assertNotIn("All is well", text)

    def test_hostile(self) -> None:
        """What others have sent is escaped and cut; never a link, nor obeyed."""
        self.add_fleet(2)
        name = quote(HOSTILE, safe="")
        contact = SupportContact("m.role.admin", "javascript:alert(1)", SAID)
        said = Support(
            "server001.example", self.now, contacts=(contact,), support_page=SAID
        )
        for number in range(11):
            room_id = f"!{number}{SAID}"
            self.add_member(room_id, "@a:server001.example")
            self.add_member(room_id, f"@{SAID}:test")
            self.insert("room_stats_state", room_id=room_id, name=SAID * 5)
        self.patch(SupportFiles, "of", mock.AsyncMock(return_value=said))
        one = "/servers/server001.example?contacts=yes"
        self.assertIn("javascript:alert(1), https://evil.example/", self.text(one))
        self.assertIn("1 of yours", self.text(one))
        (more,) = re.findall(r'href="([^"]*)">More rooms<', self.page(one))
        onwards = html.unescape(more).removeprefix(CONSOLE).partition("#")[0]
        self.assertIn("The first rooms", self.text(onwards))
        self.assertNotIn("More rooms", self.text(onwards))
        for number in range(11):
            self.add_outage("server001.example", 8 * DAY + number, DAY, up_ms=2 * HOUR)
        (more,) = re.findall(r'href="([^"]*)">Earlier outages<', self.page(one))
        earlier = html.unescape(more).removeprefix(CONSOLE).partition("#")[0]
        self.assertIn("The last outages", self.text(earlier))
        self.assertIn("7 d, 2 h of it not failing", self.text(earlier))
        self.assertNotIn("Earlier outages", self.text(earlier))
        asks = [
            f"/forget?name={name}&name=server001.example",
            "/forget?all=true&failing_for=0s",
        ]
        asks += [
            f"/reconnect?name={name}&name=server000.example",
            f"/servers/{name}/forget",
        ]
        asks += ["/servers/server001.example/forget", f"/servers/{name}/reset"]
        self.add_to_device(f"a{HOSTILE}", self.now)
        asks += ["/servers?has_backlog=true", onwards, "/unlisted"]
        for path in ("/", "/servers", one, f"/servers/{name}", *asks):
            # These are the name itself, and are not shown.
            page = re.sub(r' (value|data-row)="[^"]*"', "", self.page(path))
            for never in (
                "<script>alert",
                "<img",
                'href="https:',
                'href="javascript',
                "\u202e",
                "\x07",
            ):
                self.assertNotIn(never, page, path)
            self.assertNotIn("y" * 1000, words_of(page).partition("Tell them")[0])


def outlook(
    verdict: str, tried: int = 5, unanswered: int = 0, *, can_be_told: bool = True
) -> Any:
    return {
        "verdict": CorrelationVerdict(verdict).value,
        "explanation": "Because",
        "can_be_told": can_be_told,
        "last_hour": {"tried": tried, "unanswered": unanswered},
    }


def sender(state: str, behind_ms: int | None = None) -> Any:
    return {"state": InstanceState(state).value, "behind_ms": behind_ms}


@pytest.mark.parametrize(
    ("outlook", "senders", "failing", "look", "sentence"),
    [
        (outlook("normal"), [sender("running")], 0, "good", "All is well."),
        (outlook("normal", 0), [], 0, "good", "Nothing is known to be wrong."),
        (outlook("normal"), None, 0, "good", "Nothing is known to be wrong."),
        (outlook("normal", 5, 1), [], 0, "warn", "1 server has accepted no request"),
        (outlook("normal"), [], 3, "warn", "Nothing suggests that it is us."),
        (outlook("normal", can_be_told=False), [], 3, "warn", "Whether it is us can"),
        (outlook("us"), [], 3, "bad", "It is us."),
        (outlook("shared"), [], 3, "warn", "It is not us: they have something"),
        (outlook("us"), [sender("gone")], 0, "bad", "It is us."),
        (outlook("normal"), [sender("never_seen")], 0, "warn", "No sender of ours"),
        (
            outlook("normal"),
            [sender("running"), sender("gone")],
            0,
            "warn",
            "Not every",
        ),
        (
            outlook("normal"),
            [sender("nobody")],
            0,
            "bad",
            "No process of ours is known",
        ),
        (outlook("normal"), [sender("late")], 0, "warn", "One of our senders is late."),
        (outlook("normal"), [sender("running", 14_999)], 0, "good", "All is well."),
        (outlook("normal"), [sender("running", 15_000)], 3, "warn", "No sender of"),
        (
            outlook("normal"),
            [sender("running", 0), sender("running", 15_000)],
            0,
            "warn",
            "Not every sender of ours keeps up.",
        ),
        (None, None, 0, "muted", "Whether it is us is not known."),
        (None, None, 3, "warn", "Whether it is us is not known."),
    ],
)
def test_verdict(
    outlook: Any, senders: Any, failing: int, look: str, sentence: str
) -> None:
    """The sentence never says more than the outlook and the senders prove."""
    summary = {"outlook": outlook, "senders": senders, "failing": {"<1h": failing}}
    found = verdict_of(summary, "")
    assert (found.look, found.sentence[: len(sentence)]) == (look, sentence)


@pytest.mark.parametrize(
    ("senders", "look", "says"),
    [
        ([{"behind_events": 0}, {"behind_events": 3}], "good", "Nothing waits."),
        ([{"behind_events": 0}, {"instance": "two"}], "warn", "how far two has come"),
        ([{"instance": "a"}, {"instance": "b"}], "warn", "how far a, b have come"),
        ([{"instance": None}], "warn", "how far we have come"),
        (None, "warn", "how far we have come"),
    ],
)
def test_nothing_waits(senders: Any, look: str, says: str) -> None:
    """Nothing is told to wait only where it is known how far all who send have come."""
    found, told = servers.nothing_waits(senders)
    assert found == look
    assert says in told


@pytest.mark.parametrize(
    ("failure_ts", "last_ts", "is_why"),
    [(5000, 5000, True), (5000, 4100, True), (5000, 3000, False), (None, 9000, True)],
)
def test_is_why(failure_ts: int | None, last_ts: int, is_why: bool) -> None:
    """A failure that is recorded a moment before Synapse's own time is the cause."""
    times = {"failure_ts": failure_ts, "retry_last_ts": 9500}
    server = {**times, "last_failure": {"last_ts": last_ts}}
    assert servers.is_why(server) is is_why


@pytest.mark.parametrize(
    ("success_ts", "failure_ts", "down_ts", "is_so"),
    [
        (None, None, None, False),
        (None, 5, None, True),
        (4, 5, None, True),
        (6, 5, None, False),
        # The end of an outage is found out later than that it has answered.
        (None, None, 3, True),
        (4, None, 3, False),
        (4, 5, 3, True),
        (6, 5, 3, False),
    ],
)
def test_unanswered(
    success_ts: int | None, failure_ts: int | None, down_ts: int | None, is_so: bool
) -> None:
    """A server that was reset is said to work as soon as it has answered."""
    last = None if failure_ts is None else {"last_ts": failure_ts}
    server = {
        "last_success_ts": success_ts,
        "last_failure": last,
        "availability": {"down_since_ts": down_ts},
    }
    assert servers.is_unanswered(server) is is_so


def test_which_are_failing() -> None:
    """The filter that keeps whatever fails is told in plain words."""
    wanted = {"failing_for_ms": 0, "status": ["backing_off", "retry_due"]}
    assert outcomes.which({"filter": wanted}) == "all that are failing"
    wanted["status"].append("invalid")
    assert outcomes.which({"filter": wanted}) == "all that are failing"
    longest = {"max_retry_interval_ms": 3_600_000}
    assert outcomes.which({"all_failing": True}, longest) == "backoffs longer than 1 h"
    assert outcomes.which({"filter": {"failing_for_ms": 0}}) == "all that are failing"
    told = outcomes.which({"filter": {"failing_for_ms": 0, "failing_under_ms": 60000}})
    assert told == "failing, failing for less than 1 min"
    told = outcomes.which(
        {"filter": {"failing_for_ms": 60000, "failing_under_ms": 90000}}
    )
    assert told == "failing for 1 min to 1 min 30 s"


@pytest.mark.parametrize(("turn_ms", "ended"), [(-1, 3), (600_000, 1)])
def test_turn(turn_ms: int, ended: int) -> None:
    """A turn ends when it is long; the first one at once, which others began."""
    background = mock.AsyncMock()
    turn = Turn(background)
    with mock.patch.object(limits, "TURN_MS", turn_ms):
        for _ in range(3):
            with pytest.raises(StopIteration):
                turn.end_if_long().send(None)
    assert background.sleep_ms.await_count == ended


def test_strip() -> None:
    """A strip has one shape for each state, told in words."""
    paths, told = strip([{"share": share} for share in (None, 0, 0.5, 1, 1)])
    assert [name for name, _ in paths] == ["down", "part", "up", "none"]
    assert told == "Last 5 days: 1 down, 1 in part down, 2 up, 1 not recorded"
