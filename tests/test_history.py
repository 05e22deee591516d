# SPDX-License-Identifier: Apache-2.0
"""What was recorded, as the API tells it: failures, outages, availability, outlook."""

from typing import Any
from unittest import mock

import pytest
from history_case import DAY, HOUR, LIST, MINUTE, NOON, HistoryTestCase
from module_case import V2

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import FAILURE_KINDS
from synapse_federation_admin.history.outages import Outages
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.repair.housekeeping import Housekeeping
from synapse_federation_admin.storage import records
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.records import RecordedSuccess
from synapse_federation_admin.storage.schema import Tables

pytestmark = pytest.mark.one_synapse


@pytest.mark.database
class FailuresTest(HistoryTestCase):
    def test_last_failure(self) -> None:
        """The last failure is that of the kind which was seen last."""
        self.add_failing("a.example", "tls_expired")
        self.add_failure("a.example", "dns_failed", ago=HOUR)
        self.add_failure("a.example", "tls_expired", ago=MINUTE)
        self.add_destination("b.example")
        expected = {
            "kind": "tls_expired",
            "message": "It is tls_expired",
            "first_ts": self.now - 2 * MINUTE,
            "last_ts": self.now - MINUTE,
            "count": 3,
            "instance": "sender",
        }
        rows = self.get_json(f"{LIST}?include=failure")["destinations"]
        found = {row["destination"]: row["last_failure"] for row in rows}
        self.assertEqual(found, {"a.example": expected, "b.example": None})
        detail = self.get_json(f"{LIST}/a.example")
        self.assertEqual(detail["last_failure"], expected)
        self.assertEqual(detail["failures"][0], expected)
        self.assertEqual(
            [failure["kind"] for failure in detail["failures"]],
            ["tls_expired", "dns_failed"],
        )
        self.assertNotIn("last_failure", self.get_json(LIST)["destinations"][0])

    def test_in_diagnosis(self) -> None:
        """A diagnosis has it among what is stored."""
        # Of an invalid name no stage goes out.
        self.add_destination("no server", 5, 5, 5)
        self.add_failure("no server", "rejected")
        report = self.post_json(f"{LIST}/no%20server/diagnose")
        expected = self.get_json(f"{LIST}/no%20server")["last_failure"]
        self.assertEqual(expected["kind"], "rejected")
        self.assertEqual(report["stored"]["last_failure"], expected)

    def names_with(self, query: str) -> list[str]:
        """Return the names that a list holds, which are those of its export, too."""
        body = self.get_json(f"{LIST}?total=true&{query}")
        names = [row["destination"] for row in body["destinations"]]
        self.assertEqual(body["total"], len(names))
        exported = self.exported(f"{LIST}/export?{query}")
        self.assertEqual([row["destination"] for row in exported], names)
        return names

    def test_filter(self) -> None:
        """The list keeps what fails now, and with that kind; the summary counts it."""
        self.add_failing("a.example", "tls_expired")
        self.add_failing("b.example", "tls_expired", ago=3 * HOUR)
        self.add_failing("c.example", "dns_failed")
        # Of one there is no reason, of another not yet an outage.
        self.add_failing("d.example", None)
        self.add_destination("e.example", 5, 5, 5)
        # It works again, and nobody has looked yet; another has for long.
        self.add_destination("f.example")
        self.add_outage("f.example", HOUR, last_kind="tls_expired")
        self.add_destination("g.example")
        self.add_outage("g.example", DAY, HOUR, last_kind="tls_expired")
        for query, expected in (
            ("failure=tls_expired", "ab"),
            ("failure=dns_failed", "c"),
            ("failure=dns_failed&failure=tls_expired", "abc"),
            ("failure=unknown", "de"),
            ("failure=unknown&failure=dns_failed", "cde"),
            ("failure=rejected", ""),
            ("failure=tls_expired&destination=b.", "b"),
            ("failure=tls_expired&failing_for=2h", "b"),
            ("failure=tls_expired&status=online", ""),
            ("failure=tls_expired&order_by=failure_ts", "ba"),
        ):
            names = [f"{letter}.example" for letter in expected]
            self.assertEqual(self.names_with(query), names, query)
        counts = {"tls_expired": 2, "dns_failed": 1, "unknown": 2}
        for kind in FAILURE_KINDS:
            names = self.names_with(f"failure={kind}")
            self.assertEqual(len(names), counts.get(kind, 0), kind)
        # As a later version of the module may write it.
        self.add_failing("h.example", "new_kind")
        found = self.get_json(f"{V2}/summary")["failing_by_kind"]
        self.assertEqual(found, {**counts, "new_kind": 1})

    def test_table(self) -> None:
        """The summary counts by kind and age; every failing one is in one cell."""
        for kind in ("tls_expired", "dns_failed", None):
            for ago in (MINUTE, 2 * HOUR, 3 * DAY, 8 * DAY, 30 * DAY, 90 * DAY):
                self.add_failing(f"{ago}.{kind}.example", kind, ago)
        self.add_failing("one.example", "tls_expired", 40 * DAY)
        # Fails, and no outage of it is recorded.
        self.add_destination("old.example", self.now, 5, self.now - 40 * DAY)
        body = self.get_json(f"{V2}/summary")
        row = {"<1h": 1, "<1d": 1, "<7d": 1, "<30d": 1, ">=30d": 2}
        more = {**row, ">=30d": 3}
        self.assertEqual(
            body["failing_by_kind_and_age"],
            {"dns_failed": row, "tls_expired": more, "unknown": more},
        )
        self.assertEqual(sum(body["failing"].values()), 6 + 7 + 7)

    def test_bulk_run(self) -> None:
        """A bulk run takes the kind as a filter, and tells that it has."""
        self.add_failing("a.example", "tls_expired")
        self.add_failing("b.example", "dns_failed")

        path = f"{V2}/reconnect"
        dry = self.post_json(path, filter={"failure": ["tls_expired"]}, dry_run=True)
        self.assertEqual(dry["matched"], 1)
        wrong = self.ask("POST", path, content={"filter": {"failure": ["expired"]}})
        self.assert_error(wrong, 400, "M_INVALID_PARAM", "'filter.failure'")
        with mock.patch.object(Federation, "probe", side_effect=ValueError):
            run = self.post_json(path, filter={"failure": ["dns_failed"]})
            self.pump()
        found = self.get_json(f"{V2}/runs/{run['id']}")
        self.assertEqual(found["criteria"]["filter"]["failure"], ["dns_failed"])


@pytest.mark.database
class OutagesTest(HistoryTestCase):
    def test_outages(self) -> None:
        """They come newest first, by page, with how they ended and what was seen."""
        self.insert("federation_admin_recording", only_row=1, since_ts=5)
        self.add_destination("a.example", self.now, HOUR, self.now)
        self.add_outage("a.example", HOUR, kinds="gone", last_kind="gone")
        self.add_outage("a.example", 5 * HOUR, 4 * HOUR, ended="reset")
        # As a later version of the module may write it.
        self.add_outage(
            "a.example", DAY, DAY - HOUR, ended="gave_up", kinds="rejected new_kind"
        )
        self.add_outage("b.example", HOUR)

        def outage(ago: int, end: int | None, ended: str | None, *kinds: str) -> Any:
            return {
                "start_ts": self.now - ago,
                "end_ts": None if end is None else self.now - end,
                "duration_ms": ago - (end or 0),
                "up_ms": 0,
                "ended": ended,
                "kinds": list(kinds),
            }

        expected = [
            outage(HOUR, None, None, "gone"),
            outage(5 * HOUR, 4 * HOUR, "reset"),
            outage(DAY, DAY - HOUR, "gave_up", "rejected", "new_kind"),
        ]
        path = f"{LIST}/a.example/outages"
        self.assertEqual(
            self.get_json(path), {"outages": expected, "recorded_since_ts": 5}
        )
        page = self.get_json(f"{path}?limit=1")
        self.assertEqual(page["outages"], expected[:1])
        rest = self.get_json(f"{path}?limit=2&from={page['next_token']}")
        self.assertEqual(rest["outages"], expected[1:])
        self.assertNotIn("next_token", rest)
        other = self.ask("GET", f"{LIST}/b.example/outages?from={page['next_token']}")
        self.assertEqual(other.code, 400)

    def test_unknown(self) -> None:
        """Of what nobody knows there are none; of what was forgotten there are."""
        for name in ("nowhere.example", "", "%00"):
            channel = self.ask("GET", f"{LIST}/{name}/outages")
            self.assert_error(channel, 404, "M_NOT_FOUND")
        self.add_destination("a.example")
        self.assertEqual(self.get_json(f"{LIST}/a.example/outages")["outages"], [])
        self.add_outage("gone.example", HOUR, MINUTE, ended="forgotten")
        outages = self.get_json(f"{LIST}/gone.example/outages")["outages"]
        self.assertEqual([outage["ended"] for outage in outages], ["forgotten"])

    def test_forgotten(self) -> None:
        """What is forgotten is known no more, but for its outages."""
        self.add_failing("a.example", "gone")
        self.add_failure("a.example", "gone")
        path = f"{LIST}/a.example"
        self.post_json(f"{path}/forget", dry_run=False)
        self.assertEqual(self.ask("GET", path).code, 404)
        (outage,) = self.get_json(f"{path}/outages")["outages"]
        self.assertEqual(outage["kinds"], ["gone"])

    def test_long_name(self) -> None:
        """A name that no server can have keeps none of the others back."""
        name = "".join(f"{number * 7919:x}" for number in range(600))[:2600] + ".a"
        then = self.now - HOUR
        for destination in (name, "b.example"):
            self.add_destination(destination, then, HOUR, then)
        self.get_success(Outages(self.homeserver, self.tables).look())
        (outage,) = self.get_json(f"{LIST}/b.example/outages")["outages"]
        self.assertEqual(outage["start_ts"], then)
        self.assertEqual(self.get_json(f"{LIST}/{name}/outages")["outages"], [])
        with mock.patch.object(Federation, "probe", side_effect=ValueError):
            run = self.post_json(f"{V2}/reconnect", all_failing=True)
            self.pump(1)
        found = self.get_json(f"{V2}/runs/{run['id']}")
        self.assertEqual((found["matched"], found["status"]), (1, "complete"))
        self.assertEqual(self.reset(name).code, 200)
        self.post_json(f"{LIST}/{name}/forget", dry_run=False)
        self.assertEqual(self.ask("GET", f"{LIST}/{name}").code, 404)

    def test_pruned(self) -> None:
        """What is old is deleted, but not what lasts, nor why; and what is to come."""
        self.add_failing("a.example", "gone", ago=300 * DAY)
        self.add_failure("a.example", "gone", ago=100 * DAY)
        self.add_failure("a.example", "rejected", ago=100 * DAY)
        self.add_failure("b.example", "gone", ago=100 * DAY)
        self.add_failure("c.example", "gone", ago=80 * DAY)
        self.add_outage("a.example", 320 * DAY, 91 * DAY)
        self.add_outage("c.example", 320 * DAY, 89 * DAY)
        self.add_success("a.example", ago=91 * DAY, worked=1)
        self.add_success("c.example", ago=89 * DAY, worked=1)
        # More than are deleted at a time.
        self.run_sql(
            "INSERT INTO federation_admin_addresses WITH RECURSIVE n(i) AS (SELECT 0 "
            f"UNION ALL SELECT i + 1 FROM n WHERE i < {limits.ROWS_PRUNED}) "
            f"SELECT 'n' || i, {self.now - DAY - 1}, '[]' FROM n"
        )
        self.insert(
            "federation_admin_addresses",
            destination="c.example",
            looked_ts=self.now - DAY + 60_000,
            addresses="[]",
        )
        # A clock that was ahead.
        self.add_failure("d.example", "gone", ago=-DAY)
        self.add_outage("d.example", -DAY)
        self.add_outage("d.example", DAY, -DAY)
        self.add_success("d.example", ago=-DAY)
        housekeeping = Housekeeping(
            self.homeserver,
            self.tables,
            self.log,
            keep_for_ms=DAY,
            outages_keep_for_ms=90 * DAY,
        )
        path = f"{V2}/destinations/d.example"
        # It is not believed, and what is new takes its place.
        self.assertEqual(self.ask("GET", path).code, 404)
        success = RecordedSuccess("d.example", self.now, None, "d.example")
        self.get_success(
            self.tables.run(
                "test",
                lambda txn: records.add_successes_txn(txn, [success]),
            )
        )
        self.assertEqual(self.get_json(path)["last_success_ts"], self.now)
        self.run_sql("DELETE FROM federation_admin_successes WHERE last_ts = first_ts")
        self.run_sql(
            f"INSERT INTO federation_admin_recording VALUES (1, {self.now + DAY})"
        )
        self.get_success(Outages(self.homeserver, self.tables).look())
        availability = self.get_json(f"{V2}/destinations/a.example")["availability"]
        self.assertEqual(
            (availability["since_ts"], availability["share"]), (None, None)
        )
        # It may be this clock that is wrong: nothing is deleted at once.
        ((outages,),) = self.run_sql(
            "SELECT COUNT(*) FROM federation_admin_outages "
            "WHERE destination = 'd.example'"
        )
        self.assertEqual(outages, 2)
        self.get_success(housekeeping.prune())

        def left(table: str, columns: str) -> list[tuple[Any, ...]]:
            return self.run_sql(f"SELECT {columns} FROM {table} ORDER BY 1, 2")

        self.assertEqual(
            left("federation_admin_failures", "destination, kind"),
            [
                *(("a.example", "gone"), ("a.example", "rejected")),
                ("c.example", "gone"),
            ],
        )
        self.assertEqual(
            [name for name, _ in left("federation_admin_addresses", "destination, 1")],
            ["c.example"],
        )
        self.assertEqual(
            [name for name, _ in left("federation_admin_outages", "destination, 1")],
            ["a.example", "c.example"],
        )
        self.assertEqual(
            left("federation_admin_successes", "destination, 1"), [("c.example", 1)]
        )
        self.assertEqual(left("federation_admin_recording", "only_row, since_ts"), [])

    def test_unreadable(self) -> None:
        """Where what was recorded cannot be read, all else is told."""
        self.add_failing("a.example", "gone")
        with mock.patch.object(Tables, "ready", side_effect=RuntimeError("read-only")):
            detail = self.get_json(f"{LIST}/a.example")
            summary = self.get_json(f"{V2}/summary")
            self.assertEqual(self.ask("GET", f"{LIST}?include=failure").code, 500)
        self.assertEqual(detail["status"], "backing_off")
        self.assertEqual(
            (detail["last_failure"], detail["availability"], detail["failures"]),
            (None, None, []),
        )
        self.assertEqual(summary["total"], 1)
        self.assertEqual((summary["failing_by_kind"], summary["outlook"]), (None, None))

    def availability(self, name: str = "a.example") -> Any:
        body = self.get_json(f"{LIST}?destination={name}&include=availability")
        (row,) = body["destinations"]
        detail = self.get_json(f"{LIST}/{name}")
        self.assertEqual(detail["availability"], row["availability"])
        return row["availability"]

    def test_availability(self) -> None:
        """Of each day it has the share that is no outage's, whatever that spans."""
        self.record_since(30 * DAY)
        self.add_destination("a.example")
        # From before the fortnight, to 6:00 of its first day.
        self.add_outage("a.example", 20 * DAY, 13 * DAY + 6 * HOUR)
        # From 18:00 to 6:00.
        self.add_outage("a.example", 3 * DAY + 18 * HOUR, 3 * DAY + 6 * HOUR)
        # Two within a day, of an hour and of a minute.
        self.add_outage("a.example", 2 * DAY, 2 * DAY - HOUR)
        self.add_outage("a.example", 2 * DAY - 2 * HOUR, 2 * DAY - 2 * HOUR - MINUTE)
        # It lasts, since 9:00 of this day.
        self.add_outage("a.example", 3 * HOUR)
        found = self.availability()
        self.assertEqual(
            [day["share"] for day in found["days"]],
            [0.75, *[1.0] * 8, 0.75, 0.75, 0.9576, 1.0, 0.75],
        )
        self.assertEqual(found["days"][0]["date"], "2026-11-11")
        self.assertEqual(found["days"][-1]["date"], "2026-11-24")
        self.assertEqual(found["since_ts"], NOON - 13 * DAY - 12 * HOUR)
        down = 6 * HOUR + 12 * HOUR + HOUR + MINUTE + 3 * HOUR
        recorded = 13 * DAY + 12 * HOUR
        self.assertEqual(found["share"], int(10_000 * (1 - down / recorded)) / 10_000)

    def test_switched_off(self) -> None:
        """The time for which nothing was recorded is not known, and no good time."""
        self.record_since(30 * DAY)
        self.add_destination("a.example")
        self.assertEqual(self.availability()["share"], 1.0)
        tables = Tables(self.homeserver, has_history=False)
        for _ in range(2):
            Housekeeping(
                self.homeserver,
                tables,
                Audit(self.homeserver, tables),
                keep_for_ms=DAY,
                outages_keep_for_ms=90 * DAY,
            ).start()
            self.pump()
            self.assertIsNone(self.availability()["share"])
            # And where there is no such table.
            self.run_sql("DROP TABLE federation_admin_recording")
        # It is switched on again; then the tables are dropped, and made anew.
        outages = Outages(self.homeserver, self.tables)
        for _ in range(2):
            self.get_success(outages.look())
            self.assertEqual(self.availability()["since_ts"], self.now)
            self.run_sql("DELETE FROM federation_admin_recording")

    def test_recorded_since(self) -> None:
        """What was before anything was recorded is not told, and counts for nothing."""
        self.add_destination("a.example")
        found = self.availability()
        self.assertEqual((found["since_ts"], found["share"]), (None, None))
        self.assertEqual({day["share"] for day in found["days"]}, {None})
        # Since 0:00 of the day before, of which it was down for all.
        self.record_since(DAY + 12 * HOUR)
        self.add_outage("a.example", 10 * DAY, 12 * HOUR)
        found = self.availability()
        shares = [day["share"] for day in found["days"]]
        self.assertEqual(shares, [None] * 12 + [0.0, 1.0])
        self.assertEqual(found["since_ts"], self.now - DAY - 12 * HOUR)
        self.assertEqual(found["share"], 0.3333)
