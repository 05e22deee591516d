# SPDX-License-Identifier: Apache-2.0
"""All destinations in a few numbers, on both databases."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from module_case import ModuleTestCase
from parameterized import parameterized
from synapse.logging.context import PreserveLoggingContext
from synapse.module_api import make_deferred_yieldable
from twisted.internet.defer import Deferred, ensureDeferred, fail

from synapse_federation_admin.destinations.invalid import InvalidNames
from synapse_federation_admin.destinations.summary import (
    FailureAge,
    Summary,
    SummaryStore,
    TotalBacklog,
)
from synapse_federation_admin.destinations.values import Destination, DestinationStatus

pytestmark = pytest.mark.database

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

# By age, what it is less than.
AGES_MS = {
    FailureAge.UNDER_1H: HOUR_MS,
    FailureAge.UNDER_1D: DAY_MS,
    FailureAge.UNDER_7D: 7 * DAY_MS,
    FailureAge.UNDER_30D: 30 * DAY_MS,
    FailureAge.FROM_30D: 10**15,
}


class SummaryTestCaseBase(ModuleTestCase):
    """With a SummaryStore, and words for what waits."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.reactor.advance(1000 * 24 * 3600)
        invalid = InvalidNames(self.homeserver)
        self.summaries = SummaryStore(self.homeserver, invalid, no_kinds, lambda: True)

    def get(self) -> Summary:
        return self.get_success(self.summaries.get())

    def get_backlog(self) -> TotalBacklog:
        found = self.get().backlog
        assert found is not None
        return found


async def no_kinds(_now_ms: int) -> None:
    """Tell that why destinations fail cannot be read."""


class InvalidNamesTestCase(ModuleTestCase):
    """InvalidNames.find."""

    def find(self) -> list[str]:
        return sorted(self.get_success(self.invalid.find()))

    def test_pieces(self) -> None:
        """Old and new rows are found, in pieces; all of them anew in an hour."""
        self.reactor.advance(1000 * 24 * 3600)
        self.invalid = InvalidNames(self.homeserver)
        with patch("synapse_federation_admin.destinations.invalid._PIECE", 2):
            for name in ("a b", "a.example", "b.example", "c.example", "d e"):
                self.add_destination(name)
            self.assertEqual(self.find(), ["a b", "d e"])
            self.add_destination("f g")
            self.assertEqual(self.find(), ["a b", "d e", "f g"])
            self.run_sql("DELETE FROM destinations WHERE destination = 'f g'")
            self.add_destination("h.example")
            self.add_destination("i j")
            self.reactor.advance(3601)
            self.assertEqual(self.find(), ["a b", "d e", "i j"])


class SummaryTestCase(SummaryTestCaseBase):
    """SummaryStore.get."""

    def test_kept(self) -> None:
        """Where counting takes long it is done once in ten seconds, for all who ask;
        and anew once this process has changed something, also meanwhile."""
        with patch("synapse_federation_admin.destinations.costly._CHEAP_MS", 0):
            began = self.get()
            self.add_destination("a.example")
            self.assertEqual(self.get(), began)
            self.summaries.forget()
            self.assertEqual(self.get().total, 1)
            self.add_destination("b.example")
            self.reactor.advance(11)
            self.assertEqual(self.get().total, 2)
            self.add_destination("c.example")
            self.reactor.advance(11)
            under_way = ensureDeferred(self.summaries.get())
            self.summaries.forget()
            self.get_success(under_way)
            self.add_destination("d.example")
            self.assertEqual(self.get().total, 4)

    def test_ages(self) -> None:
        """A failing destination is counted once, by how long ago it began to fail."""
        now_ms = self.clock.time_msec()
        for age_ms in (
            *(-5, 0, HOUR_MS - 1),
            *(HOUR_MS, DAY_MS - 1),
            *(DAY_MS, 7 * DAY_MS - 1),
            *(7 * DAY_MS, 30 * DAY_MS - 1),
            *(30 * DAY_MS, 900 * DAY_MS),
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
                FailureAge.UNDER_30D: 2,
                FailureAge.FROM_30D: 2,
            },
        )

    @parameterized.expand([(1,), (2,), (3,)])
    def test_plain(self, seed: int) -> None:
        """It is what a plain computation finds."""
        randomness = random.Random(seed)
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
        for stream_id, (name, queued_ts) in enumerate(queued):
            self.add_to_device(name, queued_ts, stream_id)
        for stream_id, name in enumerate(poked):
            self.add_poke(name, stream_id)

        found = self.get()

        statuses = [row.status(now_ms) for row in rows.values()]
        ages = [age_of(row, now_ms) for row in rows.values() if row.is_failing]
        unlisted = {name for name, _ in queued} | set(poked)
        unlisted -= set(rows)
        assert found.backlog is not None
        self.assertEqual(
            found,
            Summary(
                as_of_ts=now_ms,
                total=30,
                by_status={s: statuses.count(s) for s in DestinationStatus},
                failing_by_age={a: ages.count(a) for a in FailureAge},
                backlog=TotalBacklog(
                    as_of_ts=now_ms,
                    rooms=rooms_waiting,
                    rooms_never_caught_up=rooms_never,
                    to_device_messages=len(queued),
                    oldest_to_device_ts=min(ts for _, ts in queued),
                    oldest_stuck_to_device_ts=min(
                        ts
                        for name, ts in queued
                        if name not in rows or not rows[name].is_failing
                    ),
                    device_list_updates=len(poked),
                    unlisted=len(unlisted),
                ),
            ),
        )

    def test_always_new(self) -> None:
        """Where little waits, every answer is of its own time, in all that it says."""
        for number in range(1, 4):
            self.add_destination(f"{number}.example")
            self.add_to_device(f"{number}.example", 70)
            self.reactor.advance(0.001)
            found = self.get()
            assert found.backlog is not None
            self.assertEqual(found.total, number)
            self.assertEqual(found.backlog.to_device_messages, number)
            self.assertEqual(found.backlog.as_of_ts, self.clock.time_msec())


class SlowBacklogTestCase(SummaryTestCaseBase):
    """SummaryStore.get where reading what waits takes as long as the test wants."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.readings: list[Deferred[None]] = []
        read_backlog = self.summaries._read_backlog

        async def read_slowly(now_ms: int) -> TotalBacklog:
            reading: Deferred[None] = Deferred()
            self.readings.append(reading)
            await make_deferred_yieldable(reading)
            return await read_backlog(now_ms)

        self.patch(self.summaries, "_read_backlog", read_slowly)

    def ask(self) -> "Deferred[Summary]":
        deferred = ensureDeferred(self.summaries.get())
        # For the transactions: no time goes by.
        self.pump()
        return deferred

    def later(self, ms: int) -> None:
        self.reactor.advance(ms / 1000)
        self.pump()

    def read(self, ms: int = 0) -> None:
        """Have the reading that is under way end, some time from now."""
        self.later(ms)
        with PreserveLoggingContext():
            self.readings[-1].callback(None)
        self.pump()

    def test_late(self) -> None:
        """An answer has what was read before, if anything was, until the new is there.

        Who asks while it is read waits as long, and for the same.
        """
        self.add_to_device("a.example", 70)
        first_ms = self.clock.time_msec()
        asked = self.ask()
        self.later(149)
        self.assertNoResult(asked)
        self.later(1)
        self.assertIsNone(self.successResultOf(asked).backlog)
        self.read(850)
        self.later(1)
        first = self.get_backlog()
        self.assertEqual((first.to_device_messages, first.as_of_ts), (1, first_ms))
        self.assertEqual(self.get().as_of_ts, first_ms + 1001)

        self.later(10_000)
        self.add_to_device("a.example", 70, 2)
        for _ in range(2):
            # It took long: nobody waits for it.
            asked = self.ask()
            self.later(0)
            self.assertEqual(self.successResultOf(asked).backlog, first)
        self.assertEqual(len(self.readings), 2)
        self.read(200)
        self.assertEqual(self.get_backlog().to_device_messages, 2)

    def test_rest(self) -> None:
        """What took long is not read again before ten times as long."""
        self.ask()
        self.read(300)
        first = self.get().backlog
        assert first is not None
        self.later(2900)
        self.assertEqual(self.get().backlog, first)
        self.assertEqual(len(self.readings), 1)
        self.later(200)
        asked = self.ask()
        self.assertEqual(len(self.readings), 2)
        # What takes less than 50 ms is read for everyone who asks.
        self.read(40)
        self.successResultOf(asked)
        self.ask()
        self.assertEqual(len(self.readings), 3)
        self.read()

    def test_clock_set_back(self) -> None:
        """A clock that is set back does not put the next reading off."""
        self.ask()
        self.read(300)
        hour = patch.object(
            self.homeserver,
            "now_ms",
            return_value=self.clock.time_msec() - 1000,
        )
        with hour:
            self.ask()
        self.assertEqual(len(self.readings), 2)
        self.read()

    def test_fails_later(self) -> None:
        """If it fails when nobody waits any more, Synapse logs it."""
        asked = self.ask()
        self.later(150)
        self.assertIsNone(self.successResultOf(asked).backlog)
        with self.assertLogs("synapse", "ERROR") as logged:
            with PreserveLoggingContext():
                self.readings[-1].errback(RuntimeError("disk full"))
            self.pump()
        self.assertIn("disk full", "".join(logged.output))
        self.assertIsNone(self.get().backlog)
        # It took long, so it is not tried at once.
        self.assertEqual(len(self.readings), 1)
        self.later(2500)
        asked = self.ask()
        self.read()
        self.assertIsNotNone(self.successResultOf(asked).backlog)

    def test_counting_fails(self) -> None:
        """If counting fails, what was counted before is not told, however recent."""
        self.ask()
        self.read()
        failing: Deferred[Summary] = Deferred()
        readings = [fail(RuntimeError("full")), failing]
        with patch.object(self.summaries._counts, "_read", readings.pop):
            asked = self.ask()
            self.later(60)
            failing.errback(RuntimeError("away"))
            self.failureResultOf(asked, RuntimeError)
            self.failureResultOf(self.ask(), RuntimeError)


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
