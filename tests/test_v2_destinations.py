# SPDX-License-Identifier: Apache-2.0
"""v2's list, detail, summary and export, on both databases."""

import csv
import io
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from module_case import DESTINATIONS, MembersTestCase, SenderTestCase
from synapse.logging.context import PreserveLoggingContext
from twisted.internet.defer import Deferred

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.reader import DestinationList
from synapse_federation_admin.destinations.summary import SummaryStore, TotalBacklog
from synapse_federation_admin.history.gauges import Monitor

V2 = "/_synapse/admin/v2/federation"
LIST = V2 + "/destinations"

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

KEYS = (
    "destination",
    "retry_last_ts",
    "retry_interval",
    "failure_ts",
    "last_successful_stream_ordering",
    "status",
    "next_retry_ts",
    "allowed",
)

CASES: list[tuple[str, list[str]]] = [
    ("?status=online", ["online"]),
    ("?status=unknown", ["unknown"]),
    ("?status=backing_off", ["backing-off"]),
    ("?status=retry_due", ["due"]),
    ("?status=retry_due&status=backing_off", ["backing-off", "due"]),
    ("?status=retry_due&status=online", ["due", "online"]),
    ("?destination=ON", ["online"]),
    ("?destination=o*.example", ["online"]),
    ("?destination=*N????.E*", ["online"]),
    ("?destination=?ue.example", ["due"]),
    ("?destination=ue*", []),
    ("?destination=n_", []),
    ("?destination=%25", []),
    ("?destination=%00", []),
    ("?failing_for=2d", ["backing-off"]),
    ("?failing_for=1w", ["backing-off"]),
    ("?failing_for=24h", ["backing-off", "due"]),
    ("?failing_for=90000s", ["backing-off"]),
    ("?failing_for=1440m&status=retry_due", ["due"]),
    ("?failing_for=2w", []),
    ("?failing_for=1s&status=online", []),
    ("?order_by=next_retry_ts", ["due", "backing-off", "online", "unknown"]),
    (
        "?order_by=next_retry_ts&dir=b",
        ["backing-off", "due", "online", "unknown"],
    ),
    ("?order_by=failure_ts&limit=1", ["backing-off"]),
]


class V2TestCase(SenderTestCase, MembersTestCase):
    """With one destination of each kind."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        # Late enough for something to have failed for weeks.
        self.reactor.advance(100 * DAY_MS / 1000)
        now_ms = self.clock.time_msec()
        self.now_ms = now_ms
        self.add_destination("online.example", 0, 0, None, 5)
        self.add_destination("unknown.example")
        self.add_destination(
            "backing-off.example", now_ms - HOUR_MS, DAY_MS, now_ms - 10 * DAY_MS, 3
        )
        self.add_destination(
            "due.example", now_ms - DAY_MS, HOUR_MS, now_ms - DAY_MS, None
        )

    def names(self, query: str = "") -> list[str]:
        body = self.get_json(LIST + query)
        return [row["destination"] for row in body["destinations"]]


@pytest.mark.database
class ListV2Test(V2TestCase):
    def test_filters_and_orders(self) -> None:
        """Every filter and order keeps what it says, and the export the same."""
        for query, expected in CASES:
            names = [f"{name}.example" for name in expected]
            self.assertEqual(self.names(query), names, query)
            if "limit" in query:
                continue
            body = self.get_json(f"{LIST}{query}&total=true")
            self.assertEqual(body["total"], len(names))
            exported = self.exported(f"{LIST}/export{query}")
            self.assertEqual([row["destination"] for row in exported], names)

    def test_pages(self) -> None:
        """Pages follow each other by token; `total` is counted once per walk."""
        names, totals = [], []
        for body in self.pages(f"{LIST}?limit=1&total=true"):
            names += [row["destination"] for row in body["destinations"]]
            totals.append(body["total"])
            self.add_destination(f"z{len(names)}.example" if len(names) < 3 else "a")
        expected = ["backing-off", "due", "online", "unknown", "z1", "z2"]
        self.assertEqual(names, [f"{name}.example" for name in expected])
        self.assertEqual(set(totals), {4})

    def test_backlog(self) -> None:
        """`include=backlog` adds what waits, in the list and in both exports."""
        self.add_room("online.example", "!a:test", 4)
        self.add_room("online.example", "!b:test", 6)
        self.add_room("unknown.example", "!c:test", 2)
        body = self.get_json(f"{LIST}?include=backlog&total=false")
        nothing = {
            "rooms": 0,
            "oldest_stream_ordering": None,
            "oldest_event_ts": None,
            "catch_up": "possible",
            "to_device_messages": 0,
            "oldest_to_device_ts": None,
            "device_list_updates": 0,
        }
        one = {**nothing, "rooms": 1}
        expected = {
            "backing-off.example": nothing,
            "due.example": nothing,
            "online.example": {**one, "oldest_stream_ordering": 6},
            "unknown.example": {
                **one,
                "oldest_stream_ordering": 2,
                "catch_up": "impossible",
            },
        }
        self.assertEqual(
            {row["destination"]: row["backlog"] for row in body["destinations"]},
            expected,
        )
        rows = self.exported(f"{LIST}/export?include=backlog")
        self.assertEqual(rows, body["destinations"])
        table = self.table(f"{LIST}/export?include=backlog&format=csv")
        self.assertEqual(table[2]["oldest_stream_ordering"], "6")
        self.assertEqual(table[3]["catch_up"], "impossible")

    def table(self, path: str) -> list[dict[str, str]]:
        channel = self.ask("GET", path)
        self.assertEqual(channel.code, 200)
        text = channel.result["body"].decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def test_csv(self) -> None:
        """The CSV has a line of names, for NULL an empty field, and any name in one.

        What a spreadsheet would take for a formula has a quote before it, and what a
        terminal would obey is shown.
        """
        names = ["a\nb", " a ", "a\tb", "é;ü", "'a'", "a=1"]
        formulas = ["=1+1", "+1", "-1", "-a.example", "@a", "\ta", "\n=a", '=a,"b"']
        obeyed = {
            "a\rb": "a⟨U+000D⟩b",
            "\x1b]0;owned\x07": "⟨U+001B⟩]0;owned⟨U+0007⟩",
            "=\u202ea": "'=⟨U+202E⟩a",
        }
        for name in (*names, *formulas, *obeyed, 'a,"b".example'):
            self.add_destination(name, None, None, 0, 0)
        rows = {r["destination"]: r for r in self.table(f"{LIST}/export?format=csv")}
        self.assertEqual(len(rows), 4 + len(names) + len(formulas) + len(obeyed) + 1)
        written = {*names, *obeyed.values(), *(f"'{formula}" for formula in formulas)}
        self.assertLess(written, set(rows))
        row = ('a,"b".example', *"0000", "invalid", "", "true")
        self.assertEqual(rows['a,"b".example'], dict(zip(KEYS, row, strict=True)))
        unknown = rows["unknown.example"]
        self.assertEqual(unknown["last_successful_stream_ordering"], "")

    def test_export_of_nothing(self) -> None:
        """Where nothing is kept, NDJSON is empty and CSV has its names.

        A browser saves it as a file of its format.
        """
        self.run_sql("DELETE FROM destinations")
        for name, content_type, body in (
            ("ndjson", "application/x-ndjson", b""),
            ("csv", "text/csv", b"destination,retry_last_ts,"),
        ):
            channel = self.ask("GET", f"{LIST}/export?format={name}")
            self.assertEqual(channel.code, 200)
            found = channel.result.get("body", b"")
            self.assertEqual(found[: len(body)], body)
            self.assertEqual(found.count(b"\n"), bool(body))
            headers = channel.headers
            (disposition,) = headers.getRawHeaders("Content-Disposition")
            self.assertEqual(disposition, f'attachment; filename="destinations.{name}"')
            (kind,) = headers.getRawHeaders("Content-Type")
            self.assertEqual(kind.partition(";")[0], content_type)
            origin = headers.getRawHeaders("Access-Control-Allow-Origin")
            self.assertEqual(origin, ["*"])

    def test_head(self) -> None:
        """HEAD of an export, or of a long page of v1, is answered without reading."""
        for path, content_type in (
            (f"{LIST}/export", "application/x-ndjson"),
            (f"{DESTINATIONS}?limit={limits.PLAIN_PAGE + 1}", "application/json"),
        ):
            with patch.object(DestinationList, "_run", side_effect=AssertionError):
                channel = self.ask("HEAD", path)
            self.assertEqual(channel.code, 200)
            (kind,) = channel.headers.getRawHeaders("Content-Type")
            self.assertEqual(kind, content_type)
            self.assertNotIn("body", channel.result)


@pytest.mark.database
class DetailV2Test(V2TestCase):
    def test_detail(self) -> None:
        """The detail is the object of the list, and more."""
        (row,) = self.get_json(
            f"{LIST}?destination=online&include=backlog&include=failure"
            "&include=availability"
        )["destinations"]
        detail = self.get_json(f"{LIST}/online.example")
        self.assertEqual({**detail, **row}, detail)
        sender = detail["sender"]
        self.assertEqual((sender["instance"], sender["state"]), ("sender1", "running"))

    def test_unknown(self) -> None:
        """Of what Synapse knows nothing, there is no detail."""
        for name in ("nowhere.example", "", "%00", "Online.example"):
            self.assert_error(self.ask("GET", f"{LIST}/{name}"), 404, "M_NOT_FOUND")

    def test_unlisted(self) -> None:
        """All such names are listed, with what waits, by page."""
        names = [f"new{number}.example" for number in range(5)]
        for name in (*names, "online.example"):
            self.add_to_device(name)
        self.add_poke(names[0])
        pages = self.pages(f"{V2}/unlisted?limit=2")
        found = [one for page in pages for one in page["unlisted"]]
        self.assertEqual([one["destination"] for one in found], names)
        waiting = {one["backlog"]["to_device_messages"] for one in found}
        self.assertEqual(waiting, {1})
        self.assertEqual(self.get_json(f"{V2}/summary")["unlisted"], {"total": 5})
        detail = self.get_json(f"{LIST}/{names[0]}")
        self.assertEqual((detail["status"], detail["failure_ts"]), ("unknown", None))
        self.assertEqual(detail["backlog"]["to_device_messages"], 1)

    def test_same_names(self) -> None:
        """What one operation on a destination finds, the others find; else none."""
        self.add_to_device("Waits.example")
        self.insert(
            "federation_admin_successes", destination="answered.example", last_ts=1
        )
        self.insert_failure("failed.example", "gone")
        for name, code in (
            *(("Waits.example", 200), ("answered.example", 200)),
            *(("failed.example", 200), ("waits.example", 404)),
        ):
            path = f"{LIST}/{name}"
            self.assertEqual(self.ask("GET", path).code, code, name)
            self.assertEqual(self.ask("GET", f"{path}/outages").code, code, name)
            self.assertEqual(
                self.ask("POST", f"{path}/forget", content={}).code, code, name
            )
            channel = self.ask(
                "POST",
                f"{path}/reconnect",
                content={"timeout_ms": 1},
                await_result=False,
            )
            self.pump(1)
            self.assertEqual(channel.code, code, name)

    def test_inbound_and_reach(self) -> None:
        """The detail says when it last reached us, and who shares rooms with it."""
        self.run_sql(
            "INSERT INTO received_transactions (transaction_id, origin, ts) "
            "VALUES ('1', 'online.example', 5), ('2', 'online.example', 9)"
        )
        room_id = self.helper.create_room_as("admin", tok=self.admin_token)
        self.add_member(room_id, "@a:online.example")
        body = self.get_json(f"{LIST}/online.example")
        self.assertEqual(body["inbound"], {"last_transaction_ts": 9})
        self.assertEqual((body["shared_rooms"], body["local_users"]), (1, 1))
        # This homeserver is in the room, too, and no destination.
        self.assertEqual(self.ask("GET", f"{LIST}/test").code, 404)


@pytest.mark.database
class SummaryTest(V2TestCase):
    def setUp(self) -> None:
        # It would have read the backlog before anybody asks.
        self.patch(Monitor, "start", lambda _: None)
        super().setUp()

    def test_invalid(self) -> None:
        """A row that bears no server name is never online, cleared or not.

        v1 resets it as stock does, and a run over what fails skips it.
        """
        fails, works = "no server", "https://x.example"
        self.add_destination(fails, self.now_ms, DAY_MS, self.now_ms - DAY_MS, 3)
        self.add_destination(works, 0, 0, None, 5)
        for status, names in (
            ("invalid", [works, fails]),
            ("online", ["online.example"]),
            ("backing_off", ["backing-off.example"]),
            ("backing_off&status=invalid", ["backing-off.example", works, fails]),
        ):
            body = self.get_json(f"{LIST}?status={status}&total=true")
            found = [row["destination"] for row in body["destinations"]]
            self.assertEqual(
                (sorted(found), body["total"]), (sorted(names), len(names))
            )
        for name in (fails, works):
            self.assertEqual(
                self.get_json(f"{LIST}/{quote(name, safe='')}")["status"], "invalid"
            )
        status = self.get_json(f"{V2}/summary")["status"]
        self.assertEqual((status["invalid"], sum(status.values())), (2, 6))
        for format_ in ("csv", "ndjson"):
            channel = self.ask("GET", f"{LIST}/export?format={format_}")
            self.assertEqual(channel.text_body.count("invalid"), 2)
        content = {"filter": {"destination": " "}, "dry_run": True}
        body = self.ask("POST", f"{V2}/reconnect", content=content).json_body
        self.assertEqual(body["matched"], 1)
        self.assertEqual(self.reset(fails).code, 200)
        body = self.get_json(f"{LIST}?status=invalid")
        self.assertEqual(len(body["destinations"]), 2)

    def test_summary(self) -> None:
        """The summary counts by status and by age, and tells the indexes' state."""
        body = self.get_json(f"{V2}/summary")
        ages = {"<1h": 0, "<1d": 0, "<7d": 1, "<30d": 1, ">=30d": 0}
        self.assertEqual(body["failing"], ages)
        self.assertEqual(body["failing_by_kind"], {"unknown": 2})
        self.assertEqual(body["failing_by_kind_and_age"], {"unknown": ages})
        self.assertEqual((body["total"], body["status"].pop("invalid")), (4, 0))
        self.assertEqual(set(body["status"].values()), {1})
        indexes = body["indexes"]
        self.assertEqual((indexes["enabled"], indexes["ready"]), (False, False))
        self.assertEqual(set(indexes["states"].values()), {"missing"})
        self.assertEqual(indexes["errors"], {})

    def test_slow_backlog(self) -> None:
        """What is not known yet is null, and an error only if one waits for it."""
        reading: Deferred[TotalBacklog] = Deferred()
        with patch.object(SummaryStore, "_read_backlog", lambda *_: reading):
            body = self.get_json(f"{V2}/summary")
            self.assertEqual(body["total"], 4)
            self.assertEqual(set(body["backlog"].values()), {None})
            self.assertEqual(body["unlisted"], {"total": None})
            with PreserveLoggingContext():
                reading.errback(RuntimeError("disk full"))
        self.reactor.advance(60)
        with patch.object(SummaryStore, "_read_backlog", side_effect=RuntimeError):
            self.assertEqual(self.ask("GET", f"{V2}/summary").code, 500)


class WhitelistTest(V2TestCase):
    def default_config(self) -> dict[str, Any]:
        return {
            **super().default_config(),
            "federation_domain_whitelist": ["online.example"],
        }

    def test_allowed(self) -> None:
        """`allowed` is false where `federation_domain_whitelist` shuts a server out."""
        rows = self.get_json(LIST)["destinations"]
        allowed = [row["destination"] for row in rows if row["allowed"]]
        self.assertEqual(allowed, ["online.example"])
        self.assertFalse(self.get_json(f"{LIST}/due.example")["allowed"])
        allowed = [row["allowed"] for row in self.exported(f"{LIST}/export")]
        self.assertEqual(allowed.count(True), 1)
