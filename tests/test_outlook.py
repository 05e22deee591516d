# SPDX-License-Identifier: Apache-2.0
"""Whether it is us: what is made of what was recorded, and looked up for it."""

from typing import Any
from unittest import mock

import pytest
from history_case import DAY, HOUR, MINUTE, HistoryTestCase
from module_case import V2, SenderTestCase

from synapse_federation_admin.diagnosis.diagnose import Diagnoses
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.situation import Effect, Situation
from synapse_federation_admin.history.outlook import RecentAttemptsStore
from synapse_federation_admin.history.store import HistoryStore

pytestmark = pytest.mark.one_synapse


@pytest.mark.database
class OutlookTest(SenderTestCase, HistoryTestCase):
    def add_many(
        self,
        count: int,
        kind: str,
        ago: int = MINUTE,
        worked: int = DAY,
        name: str = "{}.example",
        **values: Any,
    ) -> None:
        """Write destinations that began to fail, and failed last, a time ago.

        They had worked for a time before.
        """
        for number in range(count):
            each = name.format(f"{kind}{number}")
            self.add_failing(each, kind, ago=2 * ago)
            self.add_failure(each, kind, ago=ago, **values)
            self.add_success(each, ago=2 * HOUR, worked=worked)

    def diagnoses(self, others: int = 0) -> Diagnoses:
        """Return those for whom so many others fail by the same authority."""
        return Diagnoses(
            self.homeserver,
            *(mock.Mock(), mock.Mock(), mock.Mock()),
            mock.AsyncMock(return_value=others),
            mock.Mock(),
            timeout_ms=1000,
        )

    def outlook(self) -> Any:
        return self.get_json(f"{V2}/summary")["outlook"]

    def test_us(self) -> None:
        """Who was tried in which time, and with what they fail, is told."""
        self.add_many(6, "dns_failed")
        self.add_many(1, "gone", ago=20 * MINUTE)
        self.add_destination("up.example")
        self.add_success("up.example", worked=DAY)
        # That was before the hour.
        self.add_success("old.example", ago=2 * HOUR, worked=DAY)
        # It has failed with another kind, but that was not the last.
        self.add_failure("dns_failed1.example", "rejected", ago=2 * MINUTE)
        # It is failing, but was not tried.
        self.add_failing("long.example", "rejected", ago=DAY)
        self.add_failure("long.example", "rejected", ago=5 * HOUR)
        found = self.outlook()
        self.assertEqual(found["verdict"], "us")
        self.assertIn(
            "85 % of long-known servers tried in the last 15 minutes",
            found["explanation"],
        )
        cause = {"type": "kind", "value": "dns_failed", "destinations": 6, "began": 6}
        self.assertEqual(
            found["last_15_minutes"],
            {
                "tried": 7,
                "failing": 6,
                "unanswered": 0,
                "began": 6,
                "share": 0.8571,
                "shared": [cause],
            },
        )
        self.assertEqual(found["last_hour"]["failing"], 7)
        self.assertEqual(
            [cause["value"] for cause in found["last_hour"]["shared"]],
            ["dns_failed", "gone"],
        )

    def test_clock_was_ahead(self) -> None:
        """What was recorded by a clock that was ahead was not tried lately."""
        self.add_many(6, "dns_failed", ago=-DAY)
        self.add_success("up.example", ago=-DAY, worked=DAY)
        found = self.outlook()
        self.assertNotEqual(found["verdict"], "us")
        self.assertEqual(found["last_hour"]["tried"], 0)

    def test_known(self) -> None:
        """What has not worked for a day, and names below one domain, prove nothing."""
        self.add_many(6, "http_error", worked=DAY - 1)
        self.add_many(40, "unreachable", name="{}.evil.example")
        self.assertEqual(self.outlook()["verdict"], "normal")
        self.add_many(20, "dns_failed")
        # What answers now has not done so before, or is of the same owner.
        for number in range(40):
            self.add_success(f"new{number}.example")
            self.add_success(f"up{number}.evil.example", worked=DAY)
        self.assertEqual(self.outlook()["verdict"], "us")
        for number in range(22):
            self.add_success(f"up{number}.example", worked=DAY)
        found = self.outlook()
        self.assertEqual(found["verdict"], "normal", found["explanation"])

    def test_little_recorded(self) -> None:
        """Where less than four days are recorded, a quarter of that is long."""
        self.add_many(6, "dns_failed", worked=HOUR)
        self.assertEqual(self.outlook()["verdict"], "normal")
        self.record_since(4 * HOUR + MINUTE)
        self.assertEqual(self.outlook()["verdict"], "normal")
        self.run_sql(
            "UPDATE federation_admin_recording SET since_ts = since_ts + 60000"
        )
        self.assertEqual(self.outlook()["verdict"], "us")

    def test_issuer(self) -> None:
        """The issuer that they share is told."""
        self.add_many(6, "tls_expired", issuer="CN=R3, O=Somebody")
        for number in range(7):
            self.add_success(f"up{number}.example", worked=DAY)
        found = self.outlook()
        self.assertEqual(found["verdict"], "shared")
        self.assertIn("CN=R3, O=Somebody", found["explanation"])
        cause = {"type": "issuer", "value": "CN=R3, O=Somebody"}
        shared = {**cause, "destinations": 6, "began": 6}
        self.assertIn(shared, found["last_hour"]["shared"])

    def test_address(self) -> None:
        """It is looked up where they lead, of some at a time, of each once."""
        self.add_many(6, "connection_timeout")
        self.add_many(1, "connection_timeout", worked=0, name="{}f.example")
        looked: list[list[str]] = []

        async def find(names: list[str]) -> dict[str, list[str]]:
            looked.append(names)
            # One of them leads nowhere.
            return {
                name: ["192.0.2.1", f"2001:db8::{name[18:20].rstrip('.')}"]
                for name in names
                if name != "connection_timeout5.example"
            }

        attempts = RecentAttemptsStore(self.homeserver, self.tables, find)  # type: ignore[arg-type]
        with mock.patch("synapse_federation_admin.limits.CORRELATED_SERVERS", 4):
            for _ in range(3):
                self.get_success(attempts.look_up())
        self.assertEqual([len(names) for names in looked], [4, 3])
        self.assertEqual(len({name for names in looked for name in names}), 7)
        # Those known for long come first.
        self.assertIn("connection_timeout0f.example", looked[1])
        found = self.outlook()
        self.assertEqual(found["verdict"], "shared")
        self.assertIn("lead to the address 192.0.2.1", found["explanation"])
        addresses = [c for c in found["last_hour"]["shared"] if c["type"] == "address"]
        # What only one has is shared with nobody.
        cause = {"type": "address", "value": "192.0.2.1"}
        self.assertEqual(addresses, [{**cause, "destinations": 6, "began": 6}])

    def test_not_worth_looking(self) -> None:
        """Where few servers began to fail, nobody looks where they lead."""
        self.add_many(4, "connection_timeout")
        find = mock.AsyncMock(return_value={})
        attempts = RecentAttemptsStore(self.homeserver, self.tables, find)
        self.get_success(attempts.look_up())
        find.assert_not_called()
        self.add_many(1, "unreachable")
        self.get_success(attempts.look_up())
        self.assertEqual(find.call_count, 1)

    def test_authority_of_many(self) -> None:
        """Where others fail by the same authority, it may be this host's list."""
        issuer, kind = "CN=New Root", "tls_untrusted"
        names = ["a.one.example", "b.one.example", "two.example", "us.a.example"]
        for name in [*names, "other.example", "past.example"]:
            is_other, is_past = name == "other.example", name == "past.example"
            self.add_failing(name, "http_error" if is_past else kind)
            self.add_failure(name, kind, issuer="CN=b" if is_other else issuer)
        count = HistoryStore(self.homeserver, self.tables).others_untrusted
        # Who has one domain has any number of names below it.
        for name, others in (("x.a.example", 2), ("new.org", 3)):
            self.assertEqual(self.get_success(count(name, issuer)), others)
        failure = Failure(
            FailureKind.TLS_UNTRUSTED,
            Reason.UNKNOWN_AUTHORITY,
            Facts(host="new.org", issuer=issuer),
        )
        for others, fault in ((1, "them"), (2, "unknown")):
            diagnoses = self.diagnoses(others)
            found = self.get_success(
                diagnoses._with_others(
                    mock.Mock(left_ms=lambda: 0),
                    "new.org",
                    Situation(Effect.STOPS, failure),
                )
            )
            assert found.fault is not None
            self.assertEqual(found.fault.value, fault)
            is_told = "The servers of 2 others" in found.explanation
            self.assertIs(is_told, others == 2)

    def test_literal_addresses(self) -> None:
        """Of a name that is an address, or no server's, nobody has to be asked."""
        names = ["192.0.2.1:8448", "[2001:db8::1]", "no server"]
        self.assertEqual(
            self.get_success(self.diagnoses().find_addresses(names)),
            {"192.0.2.1:8448": ["192.0.2.1"], "[2001:db8::1]": ["2001:db8::1"]},
        )
