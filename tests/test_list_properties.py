# SPDX-License-Identifier: Apache-2.0
"""Every list, by every order and filter, is a plain sort of the plain rows."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from module_case import ModuleTestCase
from tests.utils import USE_POSTGRES_FOR_TESTS

from synapse_federation_admin.destinations import reader as module
from synapse_federation_admin.destinations.indexes import (
    INDEXES,
    DestinationIndexes,
    create_index,
)
from synapse_federation_admin.destinations.invalid import InvalidNames
from synapse_federation_admin.destinations.reader import (
    DestinationList,
    DestinationReader,
)
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    DestinationOrder,
    DestinationStatus,
    Direction,
    Sort,
)
from synapse_federation_admin.homeserver.features import Features
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.storage.sql import Sql, where

pytestmark = pytest.mark.one_synapse

NOW_MS = 1_000_000

# Small enough for a few rows to need several of each.
PIECES = {
    "_WINDOWS": (3, 7),
    "_LARGEST_WINDOW": 9,
    "_PIECE": 5,
    "_PASS_PIECE": 11,
    "_LONG": 4,
}

names = st.text("aAbB.%_!-:é*?1", min_size=1, max_size=4)
times = st.sampled_from([None, 0, 0, 1, 2, 400_000, 500_000, NOW_MS, 1_500_000])
rows_of_destinations = st.lists(
    st.builds(Destination, names, times, times, times, times),
    unique_by=lambda row: row.destination,
    max_size=40,
)
sorts = st.builds(Sort, st.sampled_from(DestinationOrder), st.sampled_from(Direction))
filters = st.builds(
    DestinationFilter,
    name_contains=st.just("") | st.text("aAb.%_é", max_size=2),
    name_glob=st.just("") | st.text("aAb.*?%_", max_size=3),
    statuses=st.frozensets(st.sampled_from(DestinationStatus), max_size=3),
    failing_for_ms=st.none() | st.sampled_from([0, 500_000, NOW_MS]),
    failing_under_ms=st.none(),
    failures=st.just(frozenset()),
    only_fitting=st.just(False),
)

NONE_IS_ZERO = (DestinationOrder.RETRY_LAST_TS, DestinationOrder.RETRY_INTERVAL)


def next_retry_ts(row: Destination) -> int | None:
    return row.retry_last_ts + (row.retry_interval or 0) if row.retry_last_ts else None


def plain_value(row: Destination, order: DestinationOrder) -> int | None:
    if order is DestinationOrder.NEXT_RETRY_TS:
        return next_retry_ts(row)
    value = getattr(row, order.value)
    return value or 0 if order in NONE_IS_ZERO else value


def plainly_sorted(rows: list[Destination], sort: Sort) -> list[Destination]:
    """Sort by name first, and then, keeping that order of equals, by value."""
    rows = sorted(rows, key=lambda row: row.destination.encode())
    backwards = sort.direction is Direction.BACKWARDS
    if sort.order_by is DestinationOrder.DESTINATION:
        return rows[::-1] if backwards else rows
    nulls = [row for row in rows if plain_value(row, sort.order_by) is None]
    rows = [row for row in rows if plain_value(row, sort.order_by) is not None]
    rows.sort(key=lambda row: plain_value(row, sort.order_by), reverse=backwards)
    return rows + nulls


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def glob_matches(pattern: str, name: str) -> bool:
    """Match a pattern of literal characters, `*` and `?`, with a whole name."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(glob_matches(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return (
        bool(name)
        and pattern[0] in ("?", name[0])
        and glob_matches(pattern[1:], name[1:])
    )


def plain_status(row: Destination) -> str:
    if not is_server_name(row.destination):
        return "invalid"
    if row.retry_last_ts:
        return "backing_off" if (next_retry_ts(row) or 0) > NOW_MS else "retry_due"
    return "unknown" if row.last_successful_stream_ordering is None else "online"


def keeps(wanted: DestinationFilter, row: Destination) -> bool:
    name = ascii_lower(row.destination)
    if ascii_lower(wanted.name_contains) not in name:
        return False
    if wanted.name_glob and not glob_matches(ascii_lower(wanted.name_glob), name):
        return False
    statuses = {status.value for status in wanted.statuses}
    if statuses and plain_status(row) not in statuses:
        return False
    if wanted.failing_for_ms is None:
        return True
    since_ts = row.retry_last_ts if row.failure_ts is None else row.failure_ts
    return bool(row.retry_last_ts) and since_ts <= NOW_MS - wanted.failing_for_ms


@pytest.mark.database
class ListPropertiesTest(ModuleTestCase):
    def prepare(self, *args: Any) -> None:
        self.store = self.hs.get_datastores().main
        self.reactor.advance(NOW_MS / 1000 - self.reactor.seconds())
        homeserver = self.homeserver
        # The harness lets a microsecond go by now and then; examples are to the ms.
        homeserver.now_ms = lambda: NOW_MS  # type: ignore[method-assign]
        self.reader = DestinationReader(
            homeserver,
            self.tables,
            Features(),
            DestinationIndexes(homeserver, False),
            InvalidNames(homeserver),
        )

    def fill(self, rows: list[Destination]) -> None:
        def fill_txn(txn: Any) -> None:
            txn.execute("DELETE FROM destinations")
            txn.execute_batch(
                "INSERT INTO destinations (destination, retry_last_ts, retry_interval,"
                " failure_ts, last_successful_stream_ordering) VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        row.destination,
                        row.retry_last_ts,
                        row.retry_interval,
                        row.failure_ts,
                        row.last_successful_stream_ordering,
                    )
                    for row in rows
                ],
            )

        self.get_success(self.store.db_pool.runInteraction("fill", fill_txn))
        # Nothing is known of what was there before.
        self.reader.invalid = InvalidNames(self.homeserver)

    def check(
        self,
        rows: list[Destination],
        wanted: DestinationFilter,
        sort: Sort,
        limit: int,
    ) -> None:
        self.fill(rows)
        expected = plainly_sorted([row for row in rows if keeps(wanted, row)], sort)
        of = self.reader.of(wanted, sort)
        self.assertEqual(self.get_success(of.count()), len(expected))
        self.assertEqual(self.walk(wanted, sort, limit), expected)
        for most in (10**9, limit, 2 * limit):
            self.assertEqual(self.get_success(self.collect(of, most)), expected[:most])
        for offset in {1, limit, len(expected) // 2, len(expected) - 1}:
            if 0 < offset < len(expected):
                at = sort.position_of(expected[offset - 1])
                found = self.get_success(of.position_at(offset, len(expected)))
                self.assertEqual(found, at)

    def walk(
        self, wanted: DestinationFilter, sort: Sort, limit: int
    ) -> list[Destination]:
        rows: list[Destination] = []
        after = None
        while True:
            page = self.get_success(self.reader.of(wanted, sort).read(after, limit))
            rows += page
            if len(page) < limit:
                return rows
            after = sort.position_of(page[-1])

    async def collect(self, of: DestinationList, limit: int) -> list[Destination]:
        return [row async for piece in of.pieces(None, limit) for row in piece]

    @settings(
        # By how names and NULL are sorted, PostgreSQL differs, and not by the rest.
        max_examples=100 if USE_POSTGRES_FOR_TESTS else 250,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(
        rows_of_destinations,
        filters | st.just(DestinationFilter()),
        sorts,
        st.integers(1, 12),
        st.booleans(),
    )
    @example([], DestinationFilter(), Sort(), 1, False)
    def test_lists(
        self,
        rows: list[Destination],
        wanted: DestinationFilter,
        sort: Sort,
        limit: int,
        has_indexes: bool,
    ) -> None:
        """A walk, a long list, a count and a jump find what a plain sort finds.

        With the optional indexes and without.
        """
        if has_indexes != self.reader.indexes.are_ready:
            self.create_indexes() if has_indexes else self.drop_indexes()
        self.reader.indexes.are_ready = has_indexes
        with patch.multiple(module, **PIECES):
            self.check(rows, wanted, sort, limit)

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.text("aZ0159.:[]-_/é", max_size=8)
            | st.builds(
                lambda labels, port: ".".join("a" * n for n in labels) + port,
                st.lists(st.integers(60, 64), min_size=1, max_size=5),
                st.from_regex(r"(:[0-9]{1,6})?", fullmatch=True),
            )
            | st.from_regex(r"a(:{1,2}[0-9]{0,6})?\n?", fullmatch=True),
            unique=True,
        )
    )
    @example(["a..b", ".a", "a.", "a.:80", ":80", "", "a:0", "a:65536", "1.2.3.4"])
    @example(["a::80", "a:", "[::1]", "[::1]:80", "[::1]80", "[:::1]", "x" * 64, "1"])
    def test_invalid(self, names: list[str]) -> None:
        """Every name that is no server's is found, and no other."""
        self.fill([Destination(name, None, None, None, None) for name in names])
        self.assertEqual(
            sorted(self.get_success(self.reader.invalid.find())),
            sorted(name for name in names if not is_server_name(name)),
        )

    def test_indexes_serve(self) -> None:
        """On SQLite, where there is an index for a list, it is read by that index."""
        if self.is_postgres:
            return
        self.create_indexes()
        self.reader.indexes.are_ready = True
        failing = DestinationFilter(
            statuses=frozenset(
                {DestinationStatus.BACKING_OFF, DestinationStatus.RETRY_DUE}
            )
        )
        newest = Sort(DestinationOrder.FAILURE_TS, Direction.BACKWARDS)
        by_interval = Sort(DestinationOrder.RETRY_INTERVAL, Direction.BACKWARDS)
        for wanted, sort, index in (
            (failing, Sort(), "federation_admin_failing"),
            (DestinationFilter(), newest, "federation_admin_failure_ts"),
            (DestinationFilter(), by_interval, "federation_admin_retry_interval_desc"),
        ):
            self.assertIn(f"USING INDEX {index}", self.plans(wanted, sort, 5)[0])

    def test_rare(self) -> None:
        """What no row meets takes a pass; what one in a hundred does takes none."""
        due = DestinationFilter(statuses=frozenset({DestinationStatus.RETRY_DUE}))
        for every, takes_pass in ((100, False), (20_000, True)):
            rows = [
                Destination(f"{n}.example", n % 2, 2 * NOW_MS, None, n)
                if n % every
                else Destination(f"{n}.example", 1, 0, None, n)
                for n in range(1, 12_001)
            ]
            # Nor do rows lie in the table in the order of their names.
            random.Random(1).shuffle(rows)
            self.fill(rows)
            if self.is_postgres:
                self.run_sql("ANALYZE destinations")
            *_, last = self.plans(due, Sort(), 100)
            by_key = (
                "Index Scan using dest" if self.is_postgres else "INDEX sqlite_auto"
            )
            self.assertEqual(by_key in last, not takes_pass, last)
            # It ends with the last row that is wanted.
            is_sorted = "Sort" in last or "ORDER BY" in last
            self.assertEqual(is_sorted, takes_pass, last)

    def test_nearly_full(self) -> None:
        """What the first names nearly fill is not looked for in steps without end."""
        due = DestinationFilter(statuses=frozenset({DestinationStatus.RETRY_DUE}))
        self.fill(
            [
                Destination(f"{n:05}.example", int(n < 99), 0, None, n)
                for n in range(12_000)
            ]
        )
        self.assertLess(len(self.plans(due, Sort(), 100)), 5)

    def plans(self, wanted: DestinationFilter, sort: Sort, limit: int) -> list[str]:
        """Return how the database reads a page, statement by statement."""
        select = module._select
        plans = []

        def explain(
            txn: Any, source: Sql, which: list[Sql], order: str, limit: int
        ) -> list[Destination]:
            kept = where(which)
            txn.execute(
                f"EXPLAIN {'' if self.is_postgres else 'QUERY PLAN'} "
                f"SELECT * FROM {source.text} {kept.text} "
                f"ORDER BY {order} LIMIT {limit}",
                (*source.args, *kept.args),
            )
            plans.append(str(txn.fetchall()))
            return select(txn, source, which, order, limit)

        with patch.object(module, "_select", explain):
            self.get_success(self.reader.of(wanted, sort).read(None, limit))
        return plans

    def create_indexes(self) -> None:
        for name in INDEXES:
            self.run_sql(create_index(name))

    def drop_indexes(self) -> None:
        for name in INDEXES:
            self.run_sql(f"DROP INDEX IF EXISTS {name}")
