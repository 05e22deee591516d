# SPDX-License-Identifier: Apache-2.0
"""The audit: who did what, when, why, and what came of it."""

import json
from typing import Any
from unittest import mock

import attr
import pytest
from module_case import FAILING, NAME, quote
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, V2, ProbeTestCase

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair import housekeeping
from synapse_federation_admin.repair.housekeeping import Housekeeping
from synapse_federation_admin.storage import audit as module
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import (
    Actor,
    AuditAction,
    AuditEntry,
    AuditFilter,
)
from synapse_federation_admin.storage.schema import Tables

DAY_MS = 86_400_000
ADMIN = Actor("@admin:test")
OTHER = Actor("@other:test", "@boss:test")


class AuditTestCase(ProbeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.homeserver = Homeserver(self.hs.get_module_api())
        tables = Tables(self.homeserver)
        self.log = Audit(self.homeserver, tables)
        self.housekeeping = Housekeeping(
            self.homeserver,
            tables,
            self.log,
            keep_for_ms=10 * DAY_MS,
            outages_keep_for_ms=20 * DAY_MS,
        )

    def write(self, **values: Any) -> AuditEntry:
        """Write an entry."""
        entry = self.log.entry(
            values.pop("action", AuditAction.RECONNECT),
            values.pop("actor", ADMIN),
            outcome=values.pop("outcome", "connected"),
            destination=values.pop("destination", "a.example"),
        )
        entry = attr.evolve(entry, **values)
        self.get_success(self.log.insert(entry))
        return entry

    def ids(self, query: str = "") -> list[str]:
        return [entry["entry_id"] for entry in self.audit(query)]

    def walk(self, query: str) -> list[str]:
        """Return the IDs on all pages."""
        found: list[str] = []
        token = ""
        while True:
            body = self.get_json(f"{V2}/audit?{query}{token}")
            found += [entry["entry_id"] for entry in body["entries"]]
            if "next_token" not in body:
                return found
            token = f"&from={quote(body['next_token'])}"


@pytest.mark.database
class WhoTestCase(AuditTestCase):
    def test_reset(self) -> None:
        """A v1 reset is in it, with what it took away."""
        self.add_destination(NAME, *FAILING)
        before_ms = self.clock.time_msec()
        self.ask("POST", self.destination_path(NAME, "/reset_connection"))
        (entry,) = self.audit()
        self.assertEqual(
            {k: entry[k] for k in ("action", "outcome", "destination", "user_id")},
            {
                "action": "reset",
                "outcome": "reset",
                "destination": NAME,
                "user_id": "@admin:test",
            },
        )
        self.assertEqual(entry["details"], {"failure_ts": 500})
        self.assertEqual((entry["reason"], entry["puppeted_by"]), (None, None))
        self.assertGreaterEqual(entry["ts"], before_ms)
        # What was refused changed nothing, and is not in it.
        self.ask("POST", self.destination_path(NAME, "/reset_connection"))
        self.ask("POST", self.destination_path("no.example", "/reset_connection"))
        self.assertEqual(len(self.audit()), 1)

    def test_reconnect(self) -> None:
        """So is a reconnect, from when it begins: who, where, why; and its outcome."""
        self.add_destination(NAME, *LONG_FAILING)
        path = f"{V2}/destinations/{NAME}/reconnect"
        begun_ms = self.clock.time_msec()
        channel = self.ask(
            "POST", path, content={"reason": "They are back"}, await_result=False
        )
        self.pump(0.01)
        (begun,) = self.audit()
        expected = {
            "action": "reconnect",
            "destination": NAME,
            "user_id": "@admin:test",
            "puppeted_by": None,
            "instance": "main",
            "reason": "They are back",
            "run_id": None,
        }
        self.assertEqual({k: begun[k] for k in expected}, expected)
        self.assertEqual((begun["outcome"], begun["ended_ts"]), ("pending", None))
        self.assertTrue(begun_ms <= begun["ts"] <= self.clock.time_msec())

        self.reactor.advance(3)
        self.answer()
        self.assertEqual(channel.json_body["outcome"], "connected")
        (ended,) = self.audit()
        self.assertEqual(
            ended,
            {
                **begun,
                "outcome": "connected",
                "ended_ts": ended["ended_ts"],
                "details": ended["details"],
            },
        )
        self.assertGreaterEqual(ended["ended_ts"], begun["ts"] + 3000)
        self.assertEqual(ended["details"]["failure_ts"], LONG_FAILING[2])
        self.assertEqual(
            ended["details"]["contact"]["server"], {"name": "Fake", "version": "1"}
        )

    def test_puppet(self) -> None:
        """Who acts with another user's token is in it, beside that user."""
        self.register_user("second", "pass", admin=True)
        channel = self.ask("POST", "/_synapse/admin/v1/users/@second:test/login")
        self.assertEqual(channel.code, 200, channel.result)
        token = channel.json_body["access_token"]
        self.add_destination(NAME, *LONG_FAILING)
        self.answers[NAME] = ANSWER
        self.ask("POST", f"{V2}/destinations/{NAME}/reconnect", token=token)
        (entry,) = self.audit()
        self.assertEqual(entry["user_id"], "@second:test")
        self.assertEqual(entry["puppeted_by"], "@admin:test")
        for user in ("@second:test", "@admin:test"):
            self.assertEqual(len(self.audit(f"?user={user}")), 1)
        self.assertEqual(self.audit("?user=@boss:test"), [])

    def test_cannot_be_written(self) -> None:
        """If the audit can't be written, v1 resets even so; the log has the entry.

        So it does where the tables are those of a later version of this module.
        """
        self.add_destination(NAME, *FAILING)
        self.refuse_changes("federation_admin_audit")
        for stop in ("", "UPDATE federation_admin_schema SET compat_version = 99"):
            if stop:
                self.run_sql(stop)
            self.add_destination(NAME, *FAILING)
            with self.assertLogs(module.logger, "INFO") as logs:
                path = self.destination_path(NAME, "/reset_connection")
                self.assertEqual(self.ask("POST", path).code, 200)
            self.assertEqual(self.row(NAME)[:3], (0, 0, None))
            warning, entry = logs.output[:2]
            self.assertIn("Cannot write to the audit", warning)
            self.assertIn('"action":"reset","outcome":"reset"', entry)
        # Nothing of it is there later.
        self.run_sql("UPDATE federation_admin_schema SET compat_version = 1")
        self.assertEqual(self.audit(), [])


@pytest.mark.database
class ReadTestCase(AuditTestCase):
    def test_filters(self) -> None:
        """Each filter keeps what it says, and several keep what meets all of them."""
        a = self.write(ts=1, outcome="connected")
        b = self.write(ts=2, destination="b.example", actor=OTHER)
        c = self.write(ts=3, action=AuditAction.RESET, outcome="reset")
        d = self.write(ts=4, run_id="run1", outcome="still_failing")
        e = self.write(
            ts=5, action=AuditAction.CAP_BACKOFF, destination=None, actor=OTHER
        )
        for query, expected in (
            ("", [e, d, c, b, a]),
            ("?dir=f", [a, b, c, d, e]),
            ("?destination=a.example", [d, c, a]),
            ("?destination=A.example", []),
            ("?user=@other:test", [e, b]),
            ("?user=@boss:test", [e, b]),
            ("?action=reset", [c]),
            ("?action=reset&action=cap_backoff", [e, c]),
            ("?outcome=connected", [e, b, a]),
            ("?run_id=run1", [d]),
            ("?since_ts=3", [e, d, c]),
            ("?until_ts=3", [b, a]),
            ("?since_ts=2&until_ts=4", [c, b]),
            ("?destination=a.example&outcome=connected", [a]),
            ("?destination=a.example&action=reset&since_ts=3&user=@admin:test", [c]),
            ("?run_id=run1&destination=b.example", []),
        ):
            self.assertEqual(self.ids(query), [entry.entry_id for entry in expected])

    @parameterized.expand([(1,), (7,), (1000,)])
    def test_pages(self, window: int) -> None:
        """Page by page, in both directions, each entry comes exactly once, in order.

        Also where many began at the same time, and where a filter thins them out.
        """
        entries = [
            self.write(
                ts=number // 9,
                outcome="connected" if number % 4 else "still_failing",
                destination=f"{number % 3}.example",
            )
            for number in range(60)
        ]
        entries.sort(key=lambda entry: (entry.ts, entry.entry_id))
        failing = [e for e in entries if e.outcome == "still_failing"]
        zero = [e for e in failing if e.destination == "0.example"]
        with mock.patch.object(module, "_WINDOW", window):
            for limit in (1, 4, 60, 61):
                for query, expected in (
                    ("", entries),
                    ("&outcome=still_failing", failing),
                    ("&outcome=still_failing&destination=0.example", zero),
                ):
                    ids = [entry.entry_id for entry in expected]
                    self.assertEqual(self.walk(f"limit={limit}&dir=f{query}"), ids)
                    self.assertEqual(self.walk(f"limit={limit}{query}"), ids[::-1])

    def test_every_limit(self) -> None:
        """With any limit, in windows of any size, each entry comes once, in order."""
        entries = [
            self.write(ts=number // 7, outcome="connected" if number % 5 else "reset")
            for number in range(23)
        ]
        entries.sort(key=lambda entry: (entry.ts, entry.entry_id))
        reset = [entry for entry in entries if entry.outcome == "reset"]
        for window in (1, 5, 23):
            with mock.patch.object(module, "_WINDOW", window):
                for limit in range(1, 26):
                    for wanted, expected in (
                        (AuditFilter(), entries),
                        (AuditFilter(outcome="reset"), reset),
                    ):
                        for oldest_first in (True, False):
                            found = self.read_all(wanted, limit, oldest_first)
                            if not oldest_first:
                                found.reverse()
                            self.assertEqual(found, expected)

    def read_all(
        self, wanted: AuditFilter, limit: int, oldest_first: bool
    ) -> list[AuditEntry]:
        found: list[AuditEntry] = []
        after = None
        while True:
            page = self.get_success(
                self.log.read(wanted, after, limit, oldest_first=oldest_first)
            )
            found += page
            if len(page) < limit:
                return found
            after = (page[-1].ts, page[-1].entry_id)

    def test_written_meanwhile(self) -> None:
        """What is written while somebody pages makes no other entry come twice."""
        entries = [self.write(ts=number // 3).entry_id for number in range(9)]
        found: list[str] = []
        token = ""
        for number in range(5):
            body = self.get_json(f"{V2}/audit?limit=2{token}")
            found += [entry["entry_id"] for entry in body["entries"]]
            token = f"&from={quote(body.get('next_token', ''))}"
            self.write(ts=100 + number)
        self.assertEqual(sorted(found), sorted(entries))

    def test_tokens_of_other_lists(self) -> None:
        """A token of another list is 400, here and there."""
        for number in range(3):
            self.write(ts=number)
            self.add_destination(f"host{number}.example", *FAILING)
        lists = [f"{V2}/audit", f"{V2}/destinations", f"{V2}/runs"]
        tokens = {
            path: self.get_json(f"{path}?limit=1")["next_token"] for path in lists[:2]
        }
        for path in lists:
            for other, token in tokens.items():
                channel = self.ask("GET", f"{path}?limit=1&from={quote(token)}")
                self.assertEqual(channel.code, 200 if path == other else 400)
                if path != other:
                    self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
                    self.assertIn("'from'", channel.json_body["error"])

    def test_tokens(self) -> None:
        """A token is good for the same filter and direction only."""
        for number in range(3):
            self.write(ts=number)
        token = self.get_json(f"{V2}/audit?limit=1")["next_token"]
        for query in ("dir=f", "outcome=connected", "since_ts=0", "user=@a:b"):
            channel = self.ask("GET", f"{V2}/audit?{query}&from={quote(token)}")
            self.assertEqual(channel.code, 400)
            self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
            self.assertIn("'from'", channel.json_body["error"])


@pytest.mark.database
class KeepTestCase(AuditTestCase):
    def outcomes(self) -> dict[str, str]:
        return {e["entry_id"]: e["outcome"] for e in self.audit("?limit=1000")}

    def test_prune(self) -> None:
        """What is older than is to be kept goes, in pieces; nothing else does."""
        self.reactor.advance(20 * DAY_MS / 1000)
        now_ms = self.clock.time_msec()
        for number in range(7):
            self.write(ts=now_ms - 10 * DAY_MS - 1 - number)
        kept = [
            self.write(ts=now_ms - age).entry_id for age in (10 * DAY_MS, DAY_MS, 0)
        ]
        with mock.patch.object(housekeeping, "_DELETED_AT_ONCE", 3):
            self.get_success(self.housekeeping.prune())
        self.assertEqual(set(self.outcomes()), set(kept))

    def test_never_ends(self) -> None:
        """What has been pending for a day never ends; but a run may."""
        self.reactor.advance(5 * DAY_MS / 1000)
        now_ms = self.clock.time_msec()
        old = self.write(ts=now_ms - DAY_MS - 1, outcome="pending", instance="gone")
        new = self.write(ts=now_ms - DAY_MS + 999, outcome="pending", instance="gone")
        run = self.write(
            ts=now_ms - 2 * DAY_MS, outcome="pending", action="bulk_new", run_id="r"
        )
        self.get_success(self.housekeeping.prune())
        self.assertEqual(
            self.outcomes(),
            {
                old.entry_id: "interrupted",
                new.entry_id: "pending",
                run.entry_id: "pending",
            },
        )

    def test_restart(self) -> None:
        """What a process was doing when it ended is interrupted when it starts."""
        own = self.write(outcome="pending")
        other = self.write(outcome="pending", instance="worker1")
        ended = self.write(outcome="connected")
        self.reactor.advance(1)
        self.get_success(self.housekeeping.keep_house(self.clock.time_msec()))
        self.assertEqual(
            self.outcomes(),
            {
                own.entry_id: "interrupted",
                other.entry_id: "pending",
                ended.entry_id: "connected",
            },
        )

    def test_start(self) -> None:
        """It begins with that, prunes, and does so again every hour."""
        self.reactor.advance(20 * DAY_MS / 1000)
        own = self.write(outcome="pending")
        too_old = self.write(ts=1)
        self.reactor.advance(1)
        self.housekeeping.start()
        later = self.write(outcome="pending")
        self.wait(0.1)
        # What has begun since is not what was left.
        self.assertEqual(
            self.outcomes(), {own.entry_id: "interrupted", later.entry_id: "pending"}
        )
        self.assertNotIn(too_old.entry_id, self.outcomes())
        late = self.write(ts=1)
        self.wait(3600)
        self.assertNotIn(late.entry_id, self.outcomes())

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        self.pump(seconds / 100)

    def test_failed(self) -> None:
        """That something went wrong is written; if it can't be, that hides nothing."""
        entry = self.write(outcome="pending", details={"a": 1})
        broken = mock.patch.object(
            self.homeserver, "run_db_interaction", side_effect=OSError("no database")
        )
        with broken, self.assertLogs(module.logger, "WARNING"):
            self.get_success(self.log.end_as_failed(entry))
        self.assertEqual(self.outcomes(), {entry.entry_id: "pending"})
        self.get_success(self.log.end_as_failed(entry))
        (found,) = self.audit()
        self.assertEqual((found["outcome"], found["details"]), ("failed", {"a": 1}))

    def test_ends_once(self) -> None:
        """An entry that has ended stays as it is."""
        entry = self.write(outcome="pending")
        self.get_success(self.log.end(self.log.ended(entry, "connected", {"a": 1})))
        self.get_success(self.log.end(self.log.ended(entry, "still_failing")))
        (found,) = self.audit()
        self.assertEqual((found["outcome"], found["details"]), ("connected", {"a": 1}))

    def test_log(self) -> None:
        """What has ended is in the log at INFO: a line of ASCII JSON, in any case."""
        reason = "because\n2026 \x1b[31m ERROR \u2028 forged\r\n"
        with self.assertLogs(module.logger, "INFO") as logs:
            self.write(reason=reason)
            self.write(outcome="pending")
        (record,) = logs.records
        line = record.getMessage()
        self.assertTrue(line.isascii() and line.isprintable())
        said = json.loads(line.removeprefix("Audit: "))
        self.assertEqual(said["reason"], reason)
        self.assertEqual(said["user"], "@admin:test")
        self.assertEqual(said["outcome"], "connected")
