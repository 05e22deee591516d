# SPDX-License-Identifier: Apache-2.0
"""All destinations in a few numbers, on both databases."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from module_case import ModuleTestCase
from parameterized import parameterized
from twisted.internet.defer import ensureDeferred

from synapse_federation_admin.destinations import summary
from synapse_federation_admin.destinations.summary import SummaryStore
from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.models import (
    BacklogTotals,
    Destination,
    DestinationStatus,
    FailureAge,
    Summary,
    Unlisted,
)

pytestmark = pytest.mark.database

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

# By age, what it is less than.
AGES_MS = {
    FailureAge.UNDER_1H: HOUR_MS,
    FailureAge.UNDER_1D: DAY_MS,
    FailureAge.UNDER_7D: 7 * DAY_MS,
    FailureAge.FROM_7D: 10**15,
}


class SummaryTestCase(ModuleTestCase):
    """SummaryStore.get."""

    def prepare(self, reactor, clock, hs):  # type: ignore[no-untyped-def]
        super().prepare(reactor, clock, hs)
        reactor.advance(1000 * 24 * 3600)
        self.summaries = SummaryStore(Homeserver(hs.get_module_api()))

    def get(self) -> Summary:
        return self.get_success(self.summaries.get())

    def insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        keys = list(rows[0])
        self.get_success(
            self.store.db_pool.simple_insert_many(
                table, keys, [tuple(row.values()) for row in rows], "test"
            )
        )

    def add_to_device(self, *rows: tuple[str, int]) -> None:
        self.insert(
            "device_federation_outbox",
            [
                {
                    "destination": name,
                    "stream_id": number,
                    "queued_ts": queued_ts,
                    "messages_json": "{}",
                }
                for number, (name, queued_ts) in enumerate(rows)
            ],
        )

    def add_pokes(self, *names: str) -> None:
        self.insert(
            "device_lists_outbound_pokes",
            [
                {
                    "destination": name,
                    "stream_id": number,
                    "user_id": "@user:test",
                    "device_id": "DEVICE",
                    "sent": number % 2 == 0,
                    "ts": 1,
                }
                for number, name in enumerate(names)
            ],
        )

    def test_nothing(self) -> None:
        """Of nothing, everything is 0, and every status and age is there."""
        self.assertEqual(
            self.get(),
            Summary(
                as_of_ts=self.clock.time_msec(),
                total=0,
                by_status=dict.fromkeys(DestinationStatus, 0),
                failing_by_age=dict.fromkeys(FailureAge, 0),
                backlog=BacklogTotals(),
                unlisted=Unlisted(),
            ),
        )

    def test_statuses(self) -> None:
        """Every destination is counted once, by its status."""
        now_ms = self.clock.time_msec()
        self.add_destination("online", 0, 0, None, 5)
        self.add_destination("online2", None, None, None, 5)
        self.add_destination("unknown")
        self.add_destination("unknown2", 0)
        self.add_destination("backing_off", now_ms, 1, now_ms)
        self.add_destination("due", now_ms - 1, 1, now_ms, 5)
        self.add_destination("due2", now_ms, 0, now_ms)
        self.add_destination("due3", now_ms, None, now_ms, 5)

        found = self.get()

        self.assertEqual(found.total, 8)
        self.assertEqual(
            found.by_status,
            {
                DestinationStatus.ONLINE: 2,
                DestinationStatus.UNKNOWN: 2,
                DestinationStatus.BACKING_OFF: 1,
                DestinationStatus.RETRY_DUE: 3,
            },
        )

    def test_ages(self) -> None:
        """A failing destination is counted once, by how long ago it began to fail."""
        now_ms = self.clock.time_msec()
        for age_ms in (
            *(-5, 0, HOUR_MS - 1),
            *(HOUR_MS, DAY_MS - 1),
            *(DAY_MS, 7 * DAY_MS - 1),
            *(7 * DAY_MS, 900 * DAY_MS),
        ):
            self.add_destination(f"{age_ms}.x", now_ms, 1, now_ms - age_ms)
        # What is not failing has no age, whatever it has in this column.
        self.add_destination("online.x", 0, 0, now_ms, 5)

        self.assertEqual(
            self.get().failing_by_age,
            {
                FailureAge.UNDER_1H: 3,
                FailureAge.UNDER_1D: 2,
                FailureAge.UNDER_7D: 2,
                FailureAge.FROM_7D: 2,
            },
        )

    def test_age_without_failure_ts(self) -> None:
        """Where failure_ts is NULL, the last failed attempt's time stands for it."""
        now_ms = self.clock.time_msec()
        self.add_destination("a", now_ms - HOUR_MS, 1, None)
        found = self.get().failing_by_age
        self.assertEqual(found[FailureAge.UNDER_1D], 1)
        self.assertEqual(sum(found.values()), 1)

    def test_rooms(self) -> None:
        """Rooms wait behind the last delivery; without one, they always will."""
        self.add_destination("a.example", None, None, None, 10)
        self.add_destination("new.example")
        for number, stream_ordering in enumerate([9, 10, 11, 12]):
            self.add_room("a.example", f"!{number}:x", stream_ordering)
        for number in range(3):
            self.add_room("new.example", f"!{number}:x", number)

        found = self.get().backlog

        self.assertEqual(found, BacklogTotals(rooms=2, rooms_never_caught_up=3))

    def test_without_a_row(self) -> None:
        """What waits for names without a row counts, and the names are told."""
        self.add_destination("known.example")
        self.add_to_device(
            ("known.example", 70),
            ("both.example", 60),
            ("lost1.example", 50),
            ("both.example", 80),
        )
        self.add_pokes("both.example", "lost2.example", "known.example")

        found = self.get()

        self.assertEqual(
            found.backlog,
            BacklogTotals(
                to_device_messages=4, oldest_to_device_ts=50, device_list_updates=3
            ),
        )
        self.assertEqual(found.unlisted.total, 3)
        self.assertEqual(
            set(found.unlisted.sample),
            {"both.example", "lost1.example", "lost2.example"},
        )

    def test_sample(self) -> None:
        """Ten names without a row are told, however many there are."""
        self.add_to_device(*((f"{number}.example", 1) for number in range(6)))
        self.add_pokes(*(f"{number}.example" for number in range(3, 15)))
        for size in (1, 4, 1000):
            with patch.object(summary, "_NAMES", size):
                found = self.get().unlisted
            self.assertEqual(found.total, 15)
            self.assertEqual(len(set(found.sample)), 10)

    @parameterized.expand([(1,), (2,), (3,), (10_000,)])
    def test_pieces(self, size: int) -> None:
        """However it is cut into pieces, it is what a plain computation finds."""
        randomness = random.Random(size)
        now_ms = self.clock.time_msec()
        rows = {}
        rooms_waiting = rooms_never = 0
        for number in range(30):
            name = f"{number}.example"
            rows[name] = row = random_destination(name, now_ms, randomness)
            self.add_destination(
                name,
                row.retry_last_ts,
                row.retry_interval,
                row.failure_ts,
                row.last_successful_stream_ordering,
            )
            for room in range(randomness.randrange(3)):
                stream_ordering = randomness.randrange(6)
                self.add_room(name, f"!{room}:x", stream_ordering)
                if row.last_successful_stream_ordering is None:
                    rooms_never += 1
                elif stream_ordering > row.last_successful_stream_ordering:
                    rooms_waiting += 1
        names = [f"{number}.example" for number in range(40)]
        queued = [
            (randomness.choice(names), randomness.randrange(9, 99)) for _ in range(40)
        ]
        poked = [randomness.choice(names) for _ in range(40)]
        self.add_to_device(*queued)
        self.add_pokes(*poked)
        # Gaps, as delivered rows leave.
        self.run_sql(
            "DELETE FROM device_federation_outbox WHERE stream_id BETWEEN 5 AND 25"
        )
        del queued[5:26]

        with patch.multiple(
            summary, _DESTINATIONS=size, _ROOMS=size, _TO_DEVICE=size, _NAMES=size
        ):
            found = self.get()

        statuses = [row.status(now_ms) for row in rows.values()]
        ages = [age_of(row, now_ms) for row in rows.values() if row.is_failing]
        unlisted = {name for name, _ in queued} | set(poked)
        unlisted -= set(rows)
        self.assertEqual(
            found,
            Summary(
                as_of_ts=now_ms,
                total=30,
                by_status={s: statuses.count(s) for s in DestinationStatus},
                failing_by_age={a: ages.count(a) for a in FailureAge},
                backlog=BacklogTotals(
                    rooms=rooms_waiting,
                    rooms_never_caught_up=rooms_never,
                    to_device_messages=len(queued),
                    oldest_to_device_ts=min(ts for _, ts in queued),
                    device_list_updates=len(poked),
                ),
                unlisted=Unlisted(len(unlisted), found.unlisted.sample),
            ),
        )
        self.assertEqual(set(found.unlisted.sample) - unlisted, set())
        self.assertEqual(len(found.unlisted.sample), min(10, len(unlisted)))

    def test_rooms_without_a_row(self) -> None:
        """Rooms of a name without a row always wait, should there be any."""
        # Synapse's own table does not let there be any.
        self.run_sql("DROP TABLE destination_rooms")
        self.run_sql(
            "CREATE TABLE destination_rooms (destination TEXT NOT NULL, room_id TEXT "
            "NOT NULL, stream_ordering BIGINT NOT NULL)"
        )
        self.add_room("lost.example", "!a:x", 0)
        self.assertEqual(self.get().backlog, BacklogTotals(rooms_never_caught_up=1))

    def test_asked_together(self) -> None:
        """Who asks at the same time is answered from one computation."""
        with patch.object(
            self.summaries, "_get", wraps=self.summaries._get
        ) as computed:
            asked = [ensureDeferred(self.summaries.get()) for _ in range(5)]
            found = [self.get_success(deferred) for deferred in asked]
        self.assertEqual({each.total for each in found}, {0})
        self.assertLessEqual(computed.call_count, 2)


def random_destination(
    name: str, now_ms: int, randomness: random.Random
) -> Destination:
    retry_last_ts = randomness.choice([None, 0, now_ms - randomness.randrange(10**9)])
    failing_for_ms = randomness.choice([1, HOUR_MS, DAY_MS, 10 * DAY_MS])
    return Destination(
        name,
        retry_last_ts,
        randomness.choice([None, 0, randomness.randrange(10**9)]),
        randomness.choice([None, now_ms - randomness.randrange(failing_for_ms)]),
        randomness.choice([None, randomness.randrange(6)]),
    )


def age_of(row: Destination, now_ms: int) -> FailureAge:
    since_ts = row.retry_last_ts if row.failure_ts is None else row.failure_ts
    assert since_ts is not None
    return next(age for age, ms in AGES_MS.items() if now_ms - since_ts < ms)
