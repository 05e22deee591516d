# SPDX-License-Identifier: Apache-2.0
"""What waits for named destinations, on both databases."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from module_case import V2, ModuleTestCase, quote

from synapse_federation_admin import limits
from synapse_federation_admin.destinations import backlog
from synapse_federation_admin.destinations.backlog import (
    Backlog,
    BacklogStore,
    CatchUp,
    mend_unsendable,
)

pytestmark = pytest.mark.database


class BacklogTestCase(ModuleTestCase):
    """BacklogStore.of."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.backlogs = BacklogStore(self.homeserver)
        self.stream_id = 0

    def of(self, *names: str) -> dict[str, Backlog]:
        return self.get_success(self.backlogs.of(names))

    def test_nothing(self) -> None:
        """A destination for which nothing waits has an empty backlog, known or not."""
        self.add_destination("idle.example", None, None, None, 10)
        self.add_room("idle.example", "!a:x", 10)
        self.add_room("idle.example", "!b:x", 9)

        found = self.of("idle.example", "unknown.example", "", "a\0b", "idle.example")

        self.assertEqual(
            found,
            dict.fromkeys(["idle.example", "unknown.example", "", "a\0b"], Backlog()),
        )
        self.assertTrue(found["idle.example"].is_empty)
        self.assertEqual(self.of(), {})

    def test_since_when(self) -> None:
        """Of the oldest event that waits it is told since when, here and in the sum;
        what is gone is not sent, and nobody knows when it came."""
        for _ in range(2):
            self.helper.create_room_as("user", tok=self.user_token)
            self.reactor.advance(60)
        (first_ts, first), *_, (second_ts, second) = self.run_sql(
            "SELECT received_ts, stream_ordering FROM events ORDER BY stream_ordering"
        )
        self.assertGreater(second_ts, first_ts)
        for name, *orderings in (
            ("a.example", second, first),
            ("b.example", second),
            ("gone.example", first - 1),
        ):
            self.add_destination(name, None, None, None, min(orderings) - 1)
            for number, stream_ordering in enumerate(orderings):
                self.add_room(name, f"!{number}:x", stream_ordering)

        def told(path: str) -> int | None:
            return self.get_json(f"{V2}/{path}")["backlog"]["oldest_event_ts"]

        paths = ("a.example", "b.example", "gone.example")
        found = [told(f"destinations/{name}") for name in paths]
        self.assertEqual(found, [first_ts, second_ts, None])
        self.assertEqual(told("summary"), first_ts)

    def test_unsendable(self) -> None:
        """What is not there any more is counted, and the console's statement mends it.

        Synapse's own store wakes the destination for it, finds nothing to send, and
        does neither afterwards; what can be sent is left.
        """
        room_id = self.helper.create_room_as("user", tok=self.user_token)
        (event_id, there), *_ = self.run_sql(
            "SELECT event_id, stream_ordering FROM events ORDER BY stream_ordering DESC"
        )
        for name in ("a.example", "it's.example", "b.example", "new.example"):
            self.add_destination(name, None, None, None, 1)
            for number in range(3):
                self.add_room(name, f"!{number}:x", 10**6 + number)
        self.add_room("b.example", room_id, there)
        # It was delivered, and purged.
        self.add_room("b.example", "!delivered:x", 1)
        self.run_sql("DELETE FROM events WHERE stream_ordering = 1")
        self.add_destination("new.example")
        self.add_room("new.example", room_id, there)

        def told(name: str) -> tuple[int, int, int]:
            found = self.get_json(f"{V2}/destinations/{quote(name)}")
            rooms = found["backlog"]["rooms"]
            return rooms, found["unsendable"], found["never_delivered"]

        def woken() -> list[str]:
            found = self.store.get_catch_up_outstanding_destinations(None)
            return self.get_success(found)

        def sent(name: str) -> list[str]:
            return self.get_success(self.store.get_catch_up_room_event_ids(name, 1))

        self.assertEqual(told("a.example"), (3, 3, 0))
        self.assertEqual(told("b.example"), (4, 3, 0))
        self.assertEqual(told("new.example"), (4, 3, 1))
        self.assertEqual(woken()[:2], ["a.example", "b.example"])
        self.assertEqual((sent("a.example"), sent("b.example")), ([], [event_id]))
        for name in ("b.example", "it's.example", "new.example"):
            self.run_sql(mend_unsendable(name))
        (rooms,) = self.run_sql(
            "SELECT COUNT(*) FROM destination_rooms WHERE destination = 'b.example'"
        )
        self.assertEqual(rooms, (2,), "what is delivered stays")
        self.assertEqual(woken(), ["a.example", "b.example", "new.example"])
        self.assertEqual((sent("a.example"), sent("b.example")), ([], [event_id]))
        self.assertEqual((told("b.example"), told("a.example")), ((1, 0, 0), (3, 3, 0)))
        self.assertEqual(told("new.example"), (1, 0, 1))
        with patch.object(limits, "WAITING_CHECKED", 2):
            self.assertEqual(told("a.example"), (3, 2, 0))

    def test_synapse_agrees_on_rooms(self) -> None:
        """Synapse's sender takes as undelivered what we say waits, where it asks."""
        self.add_destination("a.example", None, None, None, 2)
        room_id = self.helper.create_room_as("admin", tok=self.admin_token)
        events = self.get_success(
            self.store.db_pool.simple_select_list(
                "events", {"room_id": room_id}, ["stream_ordering"]
            )
        )
        newest = max(stream_ordering for (stream_ordering,) in events)
        self.insert(
            "destination_rooms",
            destination="a.example",
            room_id=room_id,
            stream_ordering=newest,
        )
        for delivered, waits in ((newest - 1, 1), (newest, 0)):
            self.add_destination("a.example", None, None, None, delivered)
            asked = self.get_success(
                self.store.get_catch_up_room_event_ids("a.example", delivered)
            )
            self.assertEqual(len(asked), waits)
            self.assertEqual(self.of("a.example")["a.example"].rooms, waits)

    def test_without_a_row(self) -> None:
        """What waits for a name without a row in `destinations` is found."""
        self.add_to_device("lost.example", 50)
        self.add_to_device("lost.example", 40)
        self.add_to_device("lost.example", 60)
        self.add_poke("lost.example")

        self.assertEqual(
            self.of("lost.example")["lost.example"],
            Backlog(
                to_device_messages=3, oldest_to_device_ts=40, device_list_updates=1
            ),
        )

    def test_sent_pokes(self) -> None:
        """Every row of device_lists_outbound_pokes waits, as Synapse's sender sees it.

        Synapse deletes the rows that it has delivered, and ignores the column `sent`.
        """
        self.add_poke("a.example", sent=False, stream_id=1)
        self.add_poke("a.example", sent=True, stream_id=2)

        sending = self.get_success(
            self.store.db_pool.runInteraction(
                "test",
                self.store._get_device_updates_by_remote_txn,
                "a.example",
                0,
                100,
                100,
            )
        )
        self.assertEqual(len(sending), 2)
        self.assertEqual(self.of("a.example")["a.example"].device_list_updates, 2)

        self.get_success(self.store.mark_as_sent_devices_by_remote("a.example", 1))
        self.assertEqual(self.of("a.example")["a.example"].device_list_updates, 1)

    def test_names_are_exact(self) -> None:
        """A name stands for itself: not for another case, and not for a pattern."""
        self.add_to_device("A.example", 1)
        self.add_to_device("b'x.example", 1)
        found = self.of("a.example", "A.example", "%", "b'x.example")
        waiting = {name for name, waits in found.items() if not waits.is_empty}
        self.assertEqual(waiting, {"A.example", "b'x.example"})

    def test_plain(self) -> None:
        """It is what a plain computation finds, however many names are read at once."""
        randomness = random.Random(1)
        names = [f"{number}.example" for number in range(30)]
        expected = {name: self.add_random(name, randomness) for name in names}
        for size in (1, 5, 5000):
            with patch.object(backlog, "_NAMES", size):
                self.assertEqual(self.of(*names), expected)

    def add_random(self, name: str, randomness: random.Random) -> Backlog:
        """Write random rows for a destination, and return its backlog."""
        last = randomness.choice([None, *range(5)])
        self.add_destination(name, None, None, None, last)
        orderings = [randomness.randrange(8) for _ in range(randomness.randrange(7))]
        for number, stream_ordering in enumerate(orderings):
            self.add_room(name, f"!{number}:x", stream_ordering)
        waiting = [o for o in orderings if last is None or o > last]
        queued = [randomness.randrange(99) for _ in range(randomness.randrange(7))]
        for queued_ts in queued:
            self.add_to_device(name, queued_ts, stream_id=randomness.randrange(4))
        pokes = randomness.randrange(7)
        for _ in range(pokes):
            self.add_poke(name, stream_id=randomness.randrange(4))
        return Backlog(
            rooms=len(waiting),
            oldest_stream_ordering=min(waiting, default=None),
            catch_up=CatchUp.IMPOSSIBLE
            if last is None and waiting
            else CatchUp.POSSIBLE,
            to_device_messages=len(queued),
            oldest_to_device_ts=min(queued, default=None),
            device_list_updates=pokes,
        )
