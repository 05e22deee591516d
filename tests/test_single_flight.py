# SPDX-License-Identifier: Apache-2.0
"""What many ask for at the same time is computed once for all of them."""

import gc
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any
from unittest.mock import AsyncMock, patch
from weakref import ref

import pytest
from module_case import ModuleTestCase
from synapse.logging.context import LoggingContext, current_context
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from synapse_federation_admin.destinations import reader
from synapse_federation_admin.destinations.indexes import DestinationIndexes
from synapse_federation_admin.destinations.invalid import InvalidNames
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.values import (
    Destination,
    DestinationFilter,
    DestinationOrder,
    Direction,
    Sort,
)
from synapse_federation_admin.homeserver import background
from synapse_federation_admin.homeserver.features import Features

pytestmark = pytest.mark.one_synapse


class ComputingTestCase(ModuleTestCase):
    """With computations that end when a test says so."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.lists = DestinationReader(
            self.homeserver,
            self.tables,
            Features(),
            DestinationIndexes(self.homeserver, False),
            InvalidNames(self.homeserver),
        )
        self.computing: list[Deferred[str]] = []

    async def compute(self) -> str:
        deferred: Deferred[str] = Deferred()
        self.computing.append(deferred)
        return await deferred

    def ask(self, key: str = "key") -> "Deferred[str]":
        return self.start(self.homeserver.single_flight.run("test", key, self.compute))

    def start(self, awaitable: Awaitable[str]) -> "Deferred[str]":
        deferred = ensureDeferred(awaitable)  # type: ignore[arg-type]
        self.pump()
        return deferred

    def finish(self, result: str) -> None:
        self.computing.pop(0).callback(result)
        self.pump()


class ComputeOnceTest(ComputingTestCase):
    def test_ends_at_once(self) -> None:
        """What needs no waiting has its result, or its error, too."""

        async def compute() -> str:
            return "at once"

        async def fail() -> str:
            raise KeyError("at once")

        run = self.homeserver.single_flight.run
        self.assertEqual(self.get_success(run("test", "key", compute)), "at once")
        self.get_failure(run("test", "key", fail), KeyError)

    def test_one_at_a_time(self) -> None:
        """Who asks while it is computed gets what is computed next, as all others.

        What has another key is computed at the same time.
        """
        first = self.ask()
        later = [self.ask() for _ in range(5)]
        self.assertEqual(len(self.computing), 1)

        self.finish("before they asked")
        self.assertEqual(self.successResultOf(first), "before they asked")
        for asked in later:
            self.assertNoResult(asked)
        self.assertEqual(len(self.computing), 1)

        self.finish("since they asked")
        for asked in later:
            self.assertEqual(self.successResultOf(asked), "since they asked")
        self.assertEqual(self.computing, [])

        one, other = self.ask("one"), self.ask("other")
        self.finish("1")
        self.finish("2")
        self.assertEqual(self.successResultOf(one), "1")
        self.assertEqual(self.successResultOf(other), "2")

    def test_failure(self) -> None:
        """All who wait are told of a failure; the next one who asks is not.

        Nor is who is computed for while the next one is called off.
        """
        asked = [self.ask() for _ in range(3)]
        self.computing.pop(0).errback(ValueError("no"))
        self.pump()
        self.failureResultOf(asked[0], ValueError)
        self.computing.pop(0).errback(ValueError("no"))
        self.pump()
        self.failureResultOf(asked[1], ValueError)
        self.failureResultOf(asked[2], ValueError)

        again = self.ask()
        with patch.object(
            self.homeserver.single_flight, "_lock", side_effect=CancelledError
        ):
            self.failureResultOf(self.ask(), CancelledError)
        self.finish("yes")
        self.assertEqual(self.successResultOf(again), "yes")

    def test_nothing_is_kept(self) -> None:
        """Nothing is remembered of what is over."""

        class Result(str):
            """A text that can be referred to weakly."""

        results = []
        for number in range(2):
            first, second = self.ask(f"key {number}"), self.ask(f"key {number}")
            for asked in (first, second):
                result = Result("done")
                results.append(ref(result))
                self.finish(result)
                self.successResultOf(asked)
        del first, second, asked, result
        gc.collect()
        self.assertEqual([result() for result in results], [None] * 4)

    def test_joins(self) -> None:
        """Who is content with what runs already gets what comes of that.

        Who does not want to wait longer is told; it goes on for the others.
        """
        run = self.homeserver.single_flight.run
        hasty = self.start(run("test", "key", self.compute, joins=True, timeout_ms=100))
        patient = [
            self.start(run("test", "key", self.compute, joins=True)) for _ in range(2)
        ]
        self.reactor.advance(1)
        self.failureResultOf(hasty, TimeoutError)
        self.finish("late")
        self.assertEqual([self.successResultOf(d) for d in patient], ["late"] * 2)
        self.assertEqual(self.computing, [])

    def test_log_context(self) -> None:
        """Everyone goes on in the log context in which they have asked."""

        async def ask_in(context: LoggingContext) -> str:
            with context:
                result = await self.homeserver.single_flight.run(
                    "test", "key", self.compute
                )
                self.assertIs(current_context(), context)
                return result

        contexts = [
            LoggingContext(name=f"test {number}", server_name="test")
            for number in range(3)
        ]
        asked = [self.start(ask_in(context)) for context in contexts]
        self.finish("1")
        self.finish("2")
        self.assertEqual([self.successResultOf(d) for d in asked], ["1", "2", "2"])

    def test_expensive_reads(self) -> None:
        """Ten who ask for an expensive page, or for a total, take two readings each."""
        self.add_destination("a.example", 5)
        found = self.lists.of(
            DestinationFilter(),
            Sort(DestinationOrder.RETRY_LAST_TS, Direction.BACKWARDS),
        )
        run = self.homeserver.run_db_interaction
        with patch.object(self.homeserver, "run_db_interaction", wraps=run) as ran:
            asked = [
                [ensureDeferred(found.read(None, 10)), ensureDeferred(found.count())]
                for _ in range(10)
            ]
            self.pump()
        for page, total in asked:
            (row,) = self.successResultOf(page)
            self.assertEqual(row.destination, "a.example")
            self.assertEqual(self.successResultOf(total), 1)
        self.assertEqual(ran.call_count, 4)

    def test_passes(self) -> None:
        """Of the readings that may cost a pass, two run at a time."""

        async def compute(*args: object) -> list[Destination]:
            await self.compute()
            return []

        with patch.object(self.homeserver, "run_db_interaction", compute):
            asked = [
                ensureDeferred(
                    self.lists.of(
                        DestinationFilter(name_contains=str(number)), Sort()
                    ).read(None, 5)
                )
                for number in range(5)
            ]
            self.pump()
            for waiting in (2, 2, 2, 2, 1):
                self.assertEqual(len(self.computing), waiting)
                self.finish("read")
        self.assertEqual([self.successResultOf(d) for d in asked], [[]] * 5)


@patch.object(reader, "_PIECE", 1)
class LongListTest(ComputingTestCase):
    """The next piece of a long list is read while the last one is used."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.row = Destination("a.example", None, None, None, None)
        self.list = self.lists.of(DestinationFilter(), Sort())
        self.patch(self.homeserver, "run_db_interaction", self.read)

    async def read(self, *_: object) -> list[Destination]:
        await self.compute()
        return [self.row]

    def test_prefetches(self) -> None:
        """While a piece is used, the one behind it is read, and no other."""
        pieces = self.list.pieces(None)
        first = self.start(anext(pieces))
        self.finish("a")
        self.assertEqual(self.successResultOf(first), [self.row])
        self.assertEqual(len(self.computing), 1)
        self.pump()
        self.assertEqual(len(self.computing), 1)
        self.start(pieces.aclose())
        self.finish("b")

    def test_closed(self) -> None:
        """Who closes it waits for the reading that is under way, and that may fail."""
        for fails in (False, True):
            pieces = self.list.pieces(None)
            first = self.start(anext(pieces))
            self.finish("a")
            self.successResultOf(first)
            closed = self.start(pieces.aclose())
            self.assertNoResult(closed)
            if fails:
                self.computing.pop(0).errback(ValueError("no"))
                self.pump()
            else:
                self.finish("b")
            self.assertIsNone(self.successResultOf(closed))
            self.assertEqual(self.computing, [])


class InBackgroundTestCase(ModuleTestCase):
    def test_not_usable(self) -> None:
        """Where what it needs cannot be used, the log says why, without a traceback."""
        engine = self.hs.get_datastores().main.database_engine
        for error, text in (
            (SynapseError(503, "Tables of a later version"), "503: Tables"),
            (engine.module.OperationalError("gone"), "the database is away: gone"),
        ):
            func = AsyncMock(side_effect=error)
            with self.assertLogs(level="WARNING") as logs:
                self.homeserver.run_in_background("federation_admin_test", func)
                self.homeserver.before_shutdown("federation_admin_test", func)
                self.reactor.triggers["before"]["shutdown"][-1][0]()
            self.assertEqual(len(logs.records), 2)
            for record in logs.records:
                self.assertIn(f"federation_admin_test: {text}", record.getMessage())
                self.assertIsNone(record.exc_info)


class EveryTestCase(ModuleTestCase):
    """Homeserver.every: after a round that takes long, there is a long rest."""

    def begin(self, takes_s: float, leaps_s: float) -> list[float]:
        """Begin rounds that take so long, and over which the clock leaps."""
        rounds: list[float] = []
        now_s = 0.0

        async def round_() -> None:
            nonlocal now_s
            rounds.append(self.reactor.seconds())
            now_s += takes_s
            self.reactor.rightNow += leaps_s

        self.patch(background.time, "monotonic", lambda: now_s)
        self.homeserver.every(
            "federation_admin_test", 60_000, round_, first_after_ms=1000
        )
        self.pump(2)  # a hundred times
        return rounds

    def test_rest(self) -> None:
        """It is a hundred times as long."""
        self.assertEqual(len(self.begin(takes_s=1.5, leaps_s=0)), 2)

    def test_bug(self) -> None:
        """A round that fails again and again, and not as the database is away, is made
        and logged less and less often; one that succeeds ends that."""
        rounds: list[float] = []

        async def round_() -> None:
            rounds.append(self.reactor.seconds())
            if len(rounds) != 7:
                raise TypeError

        with self.assertLogs(background.__name__, "ERROR") as logs:
            self.homeserver.every(
                "federation_admin_test", 10_000, round_, first_after_ms=1
            )
            for _ in range(300):
                self.reactor.advance(1)
        waits = [round(b - a) for a, b in pairwise(rounds)]
        self.assertEqual(waits[:9], [10, 10, 10, 20, 40, 80, 10, 10, 10])
        self.assertEqual(len(logs.records), len(rounds) - 1)

    def test_leap(self) -> None:
        """A clock that leaps meanwhile does not make a round a long one."""
        self.assertGreaterEqual(len(self.begin(takes_s=0, leaps_s=20)), 3)
