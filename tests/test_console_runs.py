# SPDX-License-Identifier: Apache-2.0
"""The console changes something: what it tells first, asks, begins, and shows then."""

import re
from typing import Any

import pytest
from console_case import CONSOLE, ConsoleTestCase, words_of
from module_case import MembersTestCase
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, ProbeTestCase
from run_case import RunsTestCase
from twisted.internet import error

from synapse_federation_admin.console.render import Renderer
from synapse_federation_admin.storage.instances import InstanceState
from synapse_federation_admin.storage.values import (
    AuditAction,
    ReconnectOutcome,
    Refused,
    RunStatus,
)
from synapse_federation_admin.wording import outcomes

pytestmark = pytest.mark.one_synapse

HOSTILE = '<b onclick="x">\u202e'


class ConsoleRunsTestCase(
    ConsoleTestCase, RunsTestCase, ProbeTestCase, MembersTestCase
):
    """As an admin in their browser."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor.advance(7200)
        for name in ("a.example", "b.example", "c.example"):
            self.add_destination(name, *LONG_FAILING)
        self.answers["a.example"] = ANSWER
        self.answers["b.example"] = error.ConnectionRefusedError()
        self.answers["c.example"] = error.ConnectionRefusedError()

    @parameterized.expand(
        [
            ("?name=a.example&name=b.example&name=nobody.example", 2),
            ("?all=true&failing_for=1h", 3),
            ("?all=true&status=backing_off&status=retry_due&destination=b.", 1),
            ("?all=true", 3),
        ]
    )
    def test_reconnect(self, query: str, matched: int) -> None:
        """A selection, or all that match: told first, then asked, then it begins."""
        page = self.page(f"/reconnect{query}")
        servers = "1 server" if matched == 1 else f"{matched} servers"
        self.assertIn(f"Reconnect {servers}?", words_of(page))
        self.assertIn("b.example", page)
        self.assertEqual((self.probed, self.audit()), ([], []))
        path = self.led_to(
            self.submit(page, "/reconnect", ("per_second", "20"), ("reason", HOSTILE))
        )
        self.wait(2)
        self.assertEqual(len(self.probed), matched)
        run = self.run_of(path.rpartition("/")[2])
        self.assertEqual((run["matched"], run["options"]["per_second"]), (matched, 20))
        page = self.page(path)
        told = words_of(page)
        self.assertIn(f"{matched} of {matched} done", told)
        self.assertIn("✗ still failing", told)
        self.assertIn("Connection refused", told)
        self.assertNotIn("<b ", page)
        self.assertIn("⟨U+202E⟩", told)
        self.assertIn("Reconnect", self.text("/runs"))

    def test_nothing_left(self) -> None:
        """Nothing matches any more: it is said, and there is nothing to begin."""
        page = self.page("/forget?all=true&destination=nobody")
        self.assertIn("<h1>There is nothing to forget</h1>", page)
        page = self.page("/reconnect?all=true&destination=nobody")
        self.assertIn("<h1>There is nothing to reconnect</h1>", page)
        self.assertIn("No server matches", words_of(page))
        self.assertNotIn(
            '<form method="post" action="/_synapse/admin/federation/rec', page
        )

    def test_wrong_pace(self) -> None:
        """A pace that cannot be is refused on the page that asked, and nothing done."""
        page = self.page("/reconnect?all=true")
        for pace in ("1e9", "quick"):
            channel = self.submit(page, "/reconnect", ("per_second", pace))
            self.assertEqual(channel.code, 400)
            self.assertIn("per_second", words_of(channel.text_body))
        self.assertEqual(self.audit(), [])

    def test_cancel_and_another(self) -> None:
        """A second run is refused with a link to the first, which can be cancelled."""
        with self.nobody_begins():
            page = self.page("/reconnect?all=true")
            first = self.led_to(self.submit(page, "/reconnect"))
            channel = self.submit(page, "/reconnect")
            self.assertEqual(channel.code, 409)
            self.assertIn(f'href="{CONSOLE}{first}"', channel.text_body)
            self.run_sql(
                "UPDATE federation_admin_runs SET updated_ts = updated_ts - 200000"
            )
            page = self.page(first)
            self.assertIn("Nothing was heard of it", words_of(page))
            self.assertIn("being found out how many there are", words_of(page))
            self.assertNotIn("0 of 0", page)
            self.assertIn('data-live="', page)
            self.assertEqual(self.led_to(self.submit(page, f"{first}/cancel")), first)
        self.look()
        self.wait(2)
        page = self.page(first)
        self.assertIn("! cancelled", words_of(page))
        self.assertNotIn("data-live", page)
        self.assertNotIn("/cancel", page)
        self.assertEqual(self.probed, [])

    def test_unknown_run(self) -> None:
        """A run that is not there is 404, and says so."""
        self.assertIn("Unknown run", self.page("/runs/nothing", 404))

    def test_forget_many(self) -> None:
        """Who shares rooms stays, and is named; the others are forgotten once asked."""
        self.add_member("!room:test", "@someone:b.example")
        self.add_member("!room:test", "@user:test")
        page = self.page("/forget?all=true&destination=.example")
        told = words_of(page)
        self.assertIn("Forget 2 servers?", told)
        self.assertIn("b.example 1 room", told)
        self.assertEqual(len(self.names()), 3)
        channel = self.submit(page, "/forget")
        self.assertEqual(channel.code, 400)
        self.assertIn("Tick below", words_of(channel.text_body))
        path = self.led_to(self.submit(page, "/forget", ("force", "true")))
        self.wait(2)
        self.assertEqual(self.names(), ["b.example"])
        self.assertIn("✓ forgotten", self.text(path))
        self.assertIn("! kept", self.text(path))

    def test_forget_needs_a_filter(self) -> None:
        """Never all; one by its name has its own page."""
        self.assertIn("Never all of them", self.page("/forget?all=true"))
        channel = self.visit("GET", "/forget?name=a.example", self.admin_token)
        self.assertEqual(self.led_to(channel), "/servers/a.example/forget")

    def test_forget_selected(self) -> None:
        """Several that are selected are forgotten in one run, however young."""
        query = "?name=a.example&name=c.example&name=gone.example"
        page = self.page(f"/forget{query}")
        told = words_of(page)
        self.assertIn("Forget 2 servers?", told)
        self.assertIn("Left out: 1 that Synapse has no row for.", told)
        path = self.led_to(self.submit(page, "/forget"))
        self.wait(2)
        self.assertEqual(self.names(), ["b.example"])
        self.assertIn("2 that were selected", self.text(path))

    def test_flush(self) -> None:
        """Caches are flushed at once; who was told is there after a reload, too."""
        page = self.page("/servers/a.example")
        path = self.led_to(self.submit(page, "/servers/a.example/flush"))
        for _ in range(2):
            told = self.text(path)
            self.assertIn("✓ Caches flushed Dropped:", told)
            self.assertIn("Told: main .", told)
        self.assertEqual(len(self.audit("?action=flush_caches")), 1)

    def test_forget_refused(self) -> None:
        """A server that shares rooms is not forgotten, and the page says why."""
        path = "/servers/b.example/forget"
        page = self.page(path)
        self.add_member("!room:test", "@someone:b.example")
        self.add_member("!room:test", "@user:test")
        channel = self.submit(page, path)
        self.assertEqual(channel.code, 400)
        told = words_of(channel.text_body)
        self.assertIn("It cannot be forgotten", told)
        self.assertIn("!room:test", told)
        self.assertIn("b.example", self.names())

    def test_reset(self) -> None:
        """What a reset does is said first; then it is done."""
        path = "/servers/a.example/reset"
        page = self.page(path)
        self.assertIn("before anybody knows", words_of(page))
        self.assertEqual(self.row("a.example")[1], LONG_FAILING[1])
        self.assertEqual(self.led_to(self.submit(page, path)), "/servers/a.example")
        self.assertEqual(self.row("a.example")[1], 0)
        self.assertIn("nothing to reset", self.text(path))

    def test_cap(self) -> None:
        """What is longer is told, then shortened; what is no duration is refused."""
        self.assertIn("is no duration", self.text("/cap_backoff?longest=x"))
        page = self.page("/cap_backoff?longest=1d")
        self.assertIn("3 servers have a backoff", words_of(page))
        path = self.led_to(self.submit(page, "/cap_backoff"))
        self.wait(2)
        self.assertEqual(self.row("a.example")[1], 86_400_000)
        self.assertIn("✓ shortened", self.text(path))

    def test_audit(self) -> None:
        """Filters are in the URL; a wrong day is refused; none found is said so."""
        self.visit("POST", "/servers/a.example/reset", self.admin_token)
        self.submit(self.page("/servers/a.example/reset"), "/servers/a.example/reset")
        self.assertIn("Reset a.example", self.text("/audit"))
        for query in ("action=forget", "destination=b.example", "since=2999-01-01"):
            self.assertIn("No entry is like that", self.page(f"/audit?{query}"))
        query = "action=reset&user=%40admin:test&outcome=&until=2999-01-01"
        self.assertIn("Reset a.example", self.text(f"/audit?{query}"))
        self.assertIn("must be a day", self.page("/audit?since=x", 400))

    def test_us(self) -> None:
        """The page has the outlook, the senders, the processes, and what works."""
        told = self.text("/us")
        for text in ("Us: test", "Our senders", "main", "✓ runs", "✓ reconnect"):
            self.assertIn(text, told)
        # As the overview has it.
        sentence = re.search("<h2>(.*?)</h2>", self.page("/us"))
        assert sentence is not None
        self.assertIn(sentence[1], self.page("/"))


def test_words() -> None:
    """Everything that the API has has a word; what is not known is shown as it is."""
    assert outcomes.run_status("later").word == "later"
    run = {"status": "later", "done": 0, "matched": 1000}
    assert outcomes.done(run) == "0 of 1,000"
    assert outcomes.done({**run, "status": "preparing"}) == "looks which servers match"
    assert outcomes.outcome("forget", "refused").word == "kept"
    assert outcomes.outcome("reconnect", "refused").word == "refuses what waits"
    assert outcomes.outcome("reconnect", "later").word == "later"
    assert {each.value for each in RunStatus} == set(outcomes.RUN_STATUSES)
    assert {each.value for each in AuditAction} == set(outcomes.ACTIONS)
    assert {each.value for each in ReconnectOutcome} <= set(outcomes.OUTCOMES)


def sender(state: str, instance: str | None = "sender1") -> dict[str, Any]:
    """Return the process that sends, as the API answers it."""
    return {"state": InstanceState(state).value, "instance": instance}


BEHIND = {**sender("running"), "behind_events": 2, "behind_ms": 15_000}


def refused(*values: int | None) -> dict[str, Any]:
    """Return a transaction that was refused, as the API answers it."""
    return dict(zip(Refused.__slots__, values, strict=False))


@pytest.mark.parametrize(
    ("outcome", "more", "told"),
    [
        ("connected", {}, "Connected"),
        ("connected", {"sender": BEHIND}, "more. But sender1 is 2 events behind, 15 s"),
        ("not_sent", {"sender": sender("gone")}, "Answers, and nothing is sent to it"),
        ("not_sent", {"sender": sender("never_seen")}, "to it: sender1 does not run."),
        (
            "pending",
            {"sender": sender("nobody", None)},
            "no process of this homeserver",
        ),
        ("not_sent", {"sender": {**sender("late"), "ahead_events": 4}}, "is ahead of"),
        ("still_failing", {"sender": sender("gone")}, "Nothing has changed. </p>"),
        (
            "refused",
            {"refused": refused(413, 5000, 2, 1, 1)},
            "It answered HTTP 413 to a transaction with 2 events, 1 EDU",
        ),
        ("refused", {"refused": refused(*[None] * 5)}, "no answer"),
        ("refused", {}, "What exactly it has refused is not known"),
        ("still_failing", {"message": "Refused <b>"}, "Refused &lt;b&gt;. Nothing has"),
        ("pending", {}, "Not known yet"),
        ("forced", {}, "Forced, without an answer"),
        ("internal", {}, "A fault of this side"),
        (
            "pending",
            {"sender": sender("gone"), "not_running": ["sender1"]},
            "it: sender1 does not run.",
        ),
        ("pending", {"not_running": ["sender1"]}, "sent once it runs again"),
        ("pending", {"not_told": ["sender1"], "not_told_error": "Redis"}, "(Redis)"),
    ],
)
def test_reconnected(outcome: str, more: dict[str, Any], told: str) -> None:
    """Whatever came of a reconnect is told in words, and what is not known, too."""
    error = {"message": more.pop("message")} if "message" in more else None
    found = {
        "outcome": outcome,
        "after": {"destination": "a.example"},
        "contact": {"duration_ms": 5, "server": None, "error": error},
        **dict.fromkeys(("refused", "not_told_error")),
        **dict.fromkeys(("not_running", "not_told"), ()),
        **more,
    }
    macros = Renderer()._environment.get_template("outcomes.html")
    page = str(macros.make_module({"now_ms": 0}).reconnected(found))  # type: ignore[attr-defined]
    assert told in " ".join(page.split())


@pytest.mark.parametrize(
    ("criteria", "told"),
    [
        ({"all_failing": True}, "all that are failing"),
        ({"destinations": 2}, "2 that were selected"),
        (
            {"filter": {"destination": "*.a", "failing_for_ms": 7_200_000}},
            "name is like “*.a”, failing for 2 h or longer",
        ),
        (
            {"filter": {"failure": ["connection_refused"], "status": ["online"]}},
            "not failing, cause: Connection refused",
        ),
        ({"later": 1}, "as a later version of the module has it"),
    ],
)
def test_which(criteria: dict[str, Any], told: str) -> None:
    """For which servers a run is, is told in words."""
    assert outcomes.which(criteria) == told


def test_why() -> None:
    """Of the details of the audit, what says why is told."""
    refused = {"status": 413, "bytes": 5000, "pdus": 1, "edus": 0}
    refusal = "It answered HTTP 413 to a transaction with 1 event (5,000 bytes)."
    assert outcomes.why({"refused": refused}) == refusal
    assert outcomes.why({"contact": {"error": {"message": "No."}}}) == "No."
    assert outcomes.why({"contact": {"error": None}, "note": "So."}) == "So."
    assert outcomes.why({}) == ""
