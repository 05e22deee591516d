# SPDX-License-Identifier: Apache-2.0
"""v1's pages while rows come and go, and its long lists, on both databases."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from module_case import DESTINATIONS, ModuleTestCase

from synapse_federation_admin.destinations.reader import DestinationList
from synapse_federation_admin.homeserver.homeserver import Homeserver

pytestmark = pytest.mark.one_synapse

COLUMNS = (
    "destination",
    "retry_last_ts",
    "retry_interval",
    "failure_ts",
    "last_successful_stream_ordering",
)
ORDERS = [
    f"order_by={order}&dir={direction}" for order in COLUMNS for direction in "fb"
]


@pytest.mark.database
class WalkTestCase(ModuleTestCase):
    """GET destinations, page by page."""

    def add(self, number: int, name: str = "") -> None:
        """Write a row: two of five are healthy, and values repeat."""
        failing = number % 5 not in (0, 3)
        value = (number // 3) * 10
        self.add_destination(
            name or f"host{number:03}.example",
            value if failing else None,
            value if failing else 0,
            value if failing else None,
            value if number % 2 else None,
        )

    def walk(
        self,
        query: str,
        limit: int,
        between: Callable[[int], None] = lambda page: None,
        **kwargs: Any,
    ) -> tuple[list[str], list[int]]:
        """Walk as `next_token` leads; return the names, and each page's total."""
        names: list[str] = []
        totals = []
        token = "0"
        while token:
            path = f"{DESTINATIONS}?{query}&limit={limit}&from={token}"
            channel = self.ask("GET", path, **kwargs)
            self.assertEqual(channel.code, 200, channel.result)
            body = channel.json_body
            names += [row["destination"] for row in body["destinations"]]
            totals.append(body["total"])
            token = body.get("next_token", "")
            between(len(totals))
        return names, totals

    def test_rows_come_and_go(self) -> None:
        """No row is shown twice, and none that is there all along is skipped."""
        for query in ORDERS:
            self.run_sql("DELETE FROM destinations")
            self.check_walk_while_rows_change(query)

    def check_walk_while_rows_change(self, query: str) -> None:
        for number in range(40):
            self.add(number)
        steady = set(self.names("?limit=100"))
        removed: set[str] = set()

        def change(page: int) -> None:
            # Before the page that was shown, behind it, and in the middle.
            self.add(page % 5 + 5 * page, f"a{page}.example")
            self.add(page * 3, f"z{page}.example")
            for number in (page, 39 - page):
                name = f"host{number:03}.example"
                removed.add(name)
                self.run_sql(f"DELETE FROM destinations WHERE destination = '{name}'")

        names, totals = self.walk(query, 6, change)

        self.assertEqual(len(names), len(set(names)), query)
        self.assertEqual(steady - removed - set(names), set(), query)
        # Counted once, but never less than was shown; the last page knows better.
        for page, total in enumerate(totals[:-1], start=1):
            self.assertEqual(total, max(40, 6 * page + 1))
        self.assertEqual(totals[-1], len(names))

    def test_two_walks(self) -> None:
        """Two admins, or one in two ways, walk at once and don't disturb each other."""
        for number in range(20):
            self.add(number)
        self.register_user("second", "pass", admin=True)
        second = self.login("second", "pass")
        steady = self.names("?limit=100")
        walks: list[tuple[list[str], list[int]]] = []

        def walk_too(page: int) -> None:
            if page == 1:
                self.add(0, "a-first.example")
                walks.append(self.walk("", 4, token=second))
                walks.append(self.walk("", 2))
                agent = [("User-Agent", "another")]
                walks.append(self.walk("", 4, custom_headers=agent))
                walks.append(self.walk("dir=b", 4))
                # The walk of a search is its own, too.
                found = self.walk("destination=HOST01", 4)[0]
                self.assertEqual(found, steady[10:20])

        names, _ = self.walk("", 4, walk_too)

        self.assertEqual(names, steady)
        for other, _ in walks:
            self.assertEqual(sorted(other), sorted([*steady, "a-first.example"]))

    def test_total_is_counted_once(self) -> None:
        """A walk counts once; a list that fits on its page is not counted at all."""
        for number in range(20):
            self.add(number)
        counted = []
        count = DestinationList.count

        async def spy(self: DestinationList, *args: Any) -> int:
            counted.append(args)
            return await count(self, *args)

        with patch.object(DestinationList, "count", spy):
            self.walk("", 4)
            self.assertEqual(len(counted), 1)
            self.walk("destination=host", 50)
            self.assertEqual(len(counted), 1)

    def test_total_is_counted_anew(self) -> None:
        """Who asks for a page again, or goes on later, gets a new total."""
        for number in range(10):
            self.add(number)
        page = f"{DESTINATIONS}?limit=4&from=4"

        def total() -> int:
            return int(self.get_json(page)["total"])

        self.get_json(f"{DESTINATIONS}?limit=4")
        self.add(10)
        self.assertEqual(total(), 10)
        self.assertEqual(total(), 11)
        self.get_json(f"{DESTINATIONS}?limit=4")
        self.add(11)
        self.reactor.advance(11)
        self.assertEqual(total(), 12)

    def test_list_is_shorter(self) -> None:
        """Where the list is shorter than its count, `total` follows."""
        for number in range(10):
            self.add(number)
        self.assertEqual(self.get_json(f"{DESTINATIONS}?limit=4")["total"], 10)
        self.run_sql("DELETE FROM destinations WHERE destination > 'host003.example'")
        shorter = self.get_json(f"{DESTINATIONS}?limit=4&from=4")
        self.assertEqual(shorter, {"destinations": [], "total": 4})


@pytest.mark.database
class LongListTestCase(ModuleTestCase):
    """GET destinations and rooms with a limit of more than 1000."""

    def test_long_list(self) -> None:
        """A long list has the same shape as a short one, and the same rows."""
        self.check_long("?limit=5000", range(0), 0)
        self.add_many(2500)
        everything = range(2500)
        self.check_long("?limit=5000", everything, 2500)
        self.check_long("?limit=2500", everything, 2500)
        self.check_long("?limit=2499", everything[:2499], 2500, "2499")
        self.check_long("?limit=1001", everything[:1001], 2500, "1001")
        self.check_long("?limit=1200&from=1000", everything[1000:2200], 2500, "2200")
        self.check_long("?limit=99999999999999999999", everything, 2500)
        self.check_long(
            "?limit=99999999999999999999&from=2499", range(2499, 2500), 2500
        )
        self.check_long("?limit=5000&from=2500", range(0), 2500)
        self.check_long("?limit=5000&from=9999", range(0), 2500)

    def check_long(
        self, query: str, numbers: range, total: int, next_token: str | None = None
    ) -> None:
        body = self.get_json(DESTINATIONS + query)
        names = [row["destination"] for row in body["destinations"]]
        self.assertEqual(names, [f"host{number:04}" for number in numbers], query)
        keys = {"destinations", "total"} | ({"next_token"} if next_token else set())
        self.assertEqual(set(body), keys, query)
        self.assertEqual(body["total"], total, query)
        self.assertEqual(body.get("next_token"), next_token, query)

    def test_rows_are_the_same(self) -> None:
        """A row in a long list is that of a short one, NULL, 0 and odd names, too."""
        self.add_many(1500)
        self.add_destination('a"\\é\x7f<😀', None, 5, 0, -1)
        self.add_destination("b.example", 2**40, None, None, 2**50)

        long = self.get_json(f"{DESTINATIONS}?limit=2000")["destinations"]
        short = self.get_json(f"{DESTINATIONS}?limit=1000")["destinations"]
        short += self.get_json(f"{DESTINATIONS}?limit=1000&from=1000")["destinations"]

        self.assertEqual(long, short)

    def test_headers(self) -> None:
        """A long list has the headers of a short one, but for its length."""
        self.add_many(2500)
        long = self.ask("GET", f"{DESTINATIONS}?limit=5000")
        short = self.ask("GET", f"{DESTINATIONS}?limit=1000")

        def headers(channel: Any) -> dict[bytes, list[bytes]]:
            ignored = (b"Content-Length", b"Transfer-Encoding", b"Date")
            return {
                name: values
                for name, values in channel.headers.getAllRawHeaders()
                if name not in ignored
            }

        self.assertEqual(headers(long), headers(short))

    def test_failure_at_first(self) -> None:
        """A database that fails before anything is written is a 500 with an errcode."""
        broken = RuntimeError("no")
        with patch.object(Homeserver, "run_db_interaction", side_effect=broken):
            channel = self.ask("GET", f"{DESTINATIONS}?limit=5000")
        self.assert_error(channel, 500, "M_UNKNOWN")

    def add_many(self, count: int) -> None:
        self.get_success(
            self.store.db_pool.simple_insert_many(
                "destinations",
                COLUMNS,
                [
                    (
                        f"host{number:04}",
                        number % 7 * 10 or None,
                        number % 3,
                        number % 7 * 10 or None,
                        number % 11 or None,
                    )
                    for number in range(count)
                ],
                "test",
            )
        )
