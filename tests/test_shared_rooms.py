# SPDX-License-Identifier: Apache-2.0
"""Who is affected by a server, and who sends to it, on both databases."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from module_case import V2, MembersTestCase, ModuleTestCase
from synapse.config._base import ShardedWorkerHandlingConfig
from twisted.internet.defer import ensureDeferred

from synapse_federation_admin.destinations import shared_rooms
from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.homeserver.homeserver import Homeserver

pytestmark = pytest.mark.database


class StoreTestCase(MembersTestCase):
    """With a store, and rows to be written."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.shared_rooms = SharedRoomsStore(self.homeserver)


class SharedRoomsTestCase(StoreTestCase):
    """SharedRoomsStore.of."""

    def of(self, name: str, *, is_fresh: bool = False) -> tuple[int, int]:
        """Return how many rooms a server shares, and how many of our users in them."""
        found = self.get_success(self.shared_rooms.of(name, is_fresh=is_fresh))
        return found.rooms, found.local_users

    def test_real_rooms(self) -> None:
        """In rooms made through Synapse, only those who are joined now count."""
        room_id = self.helper.create_room_as("user", tok=self.user_token)
        self.assertEqual(self.of("test"), (1, 1))
        self.assertEqual(self.of("remote.example"), (0, 0))

        self.add_member(room_id, "@a:remote.example")
        self.assertEqual(self.of("remote.example"), (1, 1))

        self.helper.invite(room_id, "@user:test", "@admin:test", tok=self.user_token)
        self.assertEqual(self.of("remote.example"), (1, 1))
        self.helper.join(room_id, "@admin:test", tok=self.admin_token)
        self.assertEqual(self.of("remote.example"), (1, 2))
        self.helper.leave(room_id, "@user:test", tok=self.user_token)
        self.assertEqual(self.of("remote.example"), (1, 1))

    def test_pieces(self) -> None:
        """However it is cut into pieces, it is what a plain computation finds.

        Of one server, and of many at once: each has exactly what is behind the first
        colon of a user ID.
        """
        randomness = random.Random(1)
        servers = ["a.example", "b.example", "x.a.example", "a.example:8448", "test"]
        servers += ["A.example", "x_y", "[2001:db8::1]:8448", "b:a.example"]
        no_servers = ["c.example", "xxy", "example", "8448", "db8::1]:8448", "%"]
        no_servers += ["b.exampl!e", "", "a\0b", "a.example\\"]
        joined = set()
        for room in range(8):
            for server in servers:
                for user in range(4):
                    if randomness.random() < 0.4:
                        member = (f"!{room}:x", f"@{user}:{server}")
                        membership = randomness.choice(["join", "leave", "invite"])
                        self.add_member(*member, membership)
                        if membership == "join":
                            joined.add(member)
        ours = {room for room, user in joined if user.endswith(":test")}
        expected = {}
        for server in (*servers, *no_servers):
            rooms = {r for r, user in joined if user.partition(":")[2] == server} & ours
            users = {u for r, u in joined if r in rooms and u.endswith(":test")}
            expected[server] = (len(rooms), len(users))
        self.assertTrue(expected["a.example"][0])
        for size in (1, 2, 3, 7, 20_000):
            with patch.object(shared_rooms, "_MEMBERS", size):
                found = {server: self.of(server) for server in expected}
                counts = self.get_success(self.shared_rooms.counts(expected))
            self.assertEqual(found, expected)
            self.assertEqual(counts, {n: of[0] for n, of in found.items() if of[0]})

    def test_kept(self) -> None:
        """What took a second is told for ten more, but not to who wants it as it is.

        So a server's page, and all pages of its rooms, cost one pass.
        """
        self.share_room("b.example", "!a:x")
        now = iter(range(10**6, 10**9, 1000))
        with patch.object(Homeserver, "now_ms", lambda _: next(now)):
            self.assertEqual(self.of("b.example"), (1, 1))
            self.share_room("b.example", "!b:x")
            self.assertEqual(self.of("b.example"), (1, 1))
            page = self.shared_rooms.page("b.example", None, 10)
            self.assertEqual(len(self.get_success(page)), 1)
            self.assertEqual(self.of("b.example", is_fresh=True), (2, 1))
            self.share_room("b.example", "!c:x")
            for _ in range(10):
                next(now)
            self.assertEqual(self.of("b.example"), (3, 1))
        with patch.object(shared_rooms, "_USERS", 1):
            self.assertEqual(self.of("b.example"), (3, 1))

    def test_asked_together(self) -> None:
        """Who asks for the same at the same time is answered from one computation."""
        self.share_room("b.example", "!a:x")
        run = self.homeserver.run_db_interaction
        with patch.object(self.homeserver, "run_db_interaction", wraps=run) as ran:
            one = self.of("b.example")
            each = ran.call_count
            asked = [
                ensureDeferred(self.shared_rooms.of("b.example")) for _ in range(5)
            ]
            found = [self.get_success(deferred) for deferred in asked]
        self.assertEqual(one, (1, 1))
        self.assertEqual([(f.rooms, f.local_users) for f in found], [one] * 5)
        self.assertLessEqual(ran.call_count, 3 * each)


class ListTestCase(StoreTestCase):
    """GET destinations/<destination>/shared_rooms."""

    path = f"{V2}/destinations/b.example/shared_rooms"

    def test_real_room(self) -> None:
        """A room has its name, which may be anything, and who is joined in it."""
        name = "<b>\u202e" + "x" * 400
        room_id = self.helper.create_room_as("user", tok=self.user_token)
        body = {"name": name}
        self.helper.send_state(room_id, "m.room.name", body, tok=self.user_token)
        self.helper.join(room_id, "@admin:test", tok=self.admin_token)
        self.reactor.advance(60)
        for user in ("a", "b", "c"):
            self.add_member(room_id, f"@{user}:b.example")
        self.add_member(room_id, "@d:b.example", "leave")
        self.assertEqual(
            self.get_json(self.path),
            {
                "rooms": [
                    {
                        "room_id": room_id,
                        "name": name[:300],
                        # Those of the other server were written past Synapse.
                        "members": 2,
                        "local_members": 2,
                        "local_users": ["@admin:test", "@user:test"],
                        "their_members": 3,
                    }
                ]
            },
        )
        other = f"{V2}/destinations/c.example/shared_rooms"
        # That nothing is shared with it is only told of a server that is known.
        self.assertEqual(self.ask("GET", other).code, 404)
        self.add_destination("c.example")
        self.assertEqual(self.get_json(other), {"rooms": []})

    def test_pages(self) -> None:
        """Pages have every shared room once, those with most local members first."""
        expected = []
        for number in range(7):
            room_id = f"!{number}:x"
            self.add_member(room_id, "@a:b.example")
            local = (3, 1, 12, 0, 1, 3, 1)[number]
            for user in range(local):
                self.add_member(room_id, f"@{user:02}:test")
            if local:
                expected.append((-local, room_id))
        expected.sort()
        first, *rest = self.pages(f"{self.path}?limit=2")
        found = [room for page in (first, *rest) for room in page["rooms"]]
        places = [(-room["local_members"], room["room_id"]) for room in found]
        self.assertEqual(places, expected)
        self.assertEqual({room["name"] for room in found}, {None})
        self.assertEqual(found[0]["local_users"], [f"@{n:02}:test" for n in range(10)])
        # The token is of this list only.
        other = f"{V2}/destinations/c.example/shared_rooms?limit=2"
        channel = self.ask("GET", f"{other}&from={first['next_token']}")
        self.assertEqual(channel.code, 400)


class InboundTestCase(StoreTestCase):
    """DestinationStore.last_inbound_ts."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.destinations = DestinationStore(self.homeserver)

    def last(self, name: str) -> int | None:
        return self.get_success(self.destinations.last_inbound_ts(name))

    def receive(self, origin: str, ts: int | None) -> None:
        self.events += 1
        values = {"transaction_id": str(self.events), "origin": origin, "ts": ts}
        self.insert("received_transactions", **values)

    def test_received(self) -> None:
        """It is the time at which Synapse recorded the newest transaction."""
        self.assertIsNone(self.last("a.example"))
        self.get_success(
            self.store.set_received_txn_response("t1", "a.example", 200, {})
        )
        self.assertEqual(self.last("a.example"), self.clock.time_msec())
        self.assertIsNone(self.last("A.example"))
        self.assertIsNone(self.last("a\0b"))

    def test_newest(self) -> None:
        """The newest of a server's is found, whenever others have sent theirs."""
        for ts in (5, 7, 6):
            self.receive("a.example", ts)
            self.receive("b.example", ts + 10)
        self.receive("once.example", 0)
        self.receive("never.example", None)
        self.assertEqual(self.last("a.example"), 7)
        self.assertEqual(self.last("b.example"), 17)
        self.assertEqual(self.last("once.example"), 0)
        self.assertIsNone(self.last("never.example"))
        self.assertIsNone(self.last("other.example"))


class SenderTestCase(ModuleTestCase):
    """Homeserver.sender_of."""

    def test_shards(self) -> None:
        """It is the one that Synapse has handle the destination, if any is known."""
        for instances in (["master"], [], ["sender1", "sender2", "sender3"]):
            senders = ShardedWorkerHandlingConfig(instances)
            self.hs.config.worker.federation_shard_config = senders
            found = set()
            for number in range(50):
                name = f"{number}.example"
                sender = self.homeserver.sender_of(name)
                instance = "master" if sender == "main" else sender
                assert instance is None or senders.should_handle(instance, name)
                found.add(instance)
            self.assertEqual(found, set(senders.instances or [None]))
