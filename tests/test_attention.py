# SPDX-License-Identifier: Apache-2.0
"""Which failing servers matter most, on both databases."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from module_case import V2, MembersTestCase

from synapse_federation_admin import limits
from synapse_federation_admin.destinations import attention

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]

PATH = f"{V2}/attention"


class AttentionTestCase(MembersTestCase):
    """GET attention."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.reactor.advance(1000 * 24 * 3600)

    def add_failing(self, name: str) -> None:
        now_ms = self.clock.time_msec()
        self.add_destination(name, now_ms - 5, 10**7, now_ms - 10, 5)

    def ask_anew(self, query: str = "") -> list[dict[str, Any]]:
        """Ask when what was found before is too old."""
        self.reactor.advance(601)
        body = self.get_json(PATH + query)
        self.assertTrue(body["is_complete"])
        self.assertGreater(body["as_of_ts"], self.clock.time_msec() - 1000)
        return body["destinations"]  # type: ignore[no-any-return]

    def test_nothing(self) -> None:
        """Where nothing fails, the list is empty."""
        self.add_destination("a.example")
        self.add_to_device("a.example")
        self.assertEqual(self.ask_anew(), [])

    def test_whom(self) -> None:
        """Whom it affects, what waits, and why, is told of what fails."""
        names = ("few.example", "many.example", "more.example", "none.example")
        for name in (*names, "waits.example"):
            self.add_failing(name)
        self.add_destination("well.example", 0, 0, None, 5)
        for name in (*names[:3], "well.example"):
            self.add_member("!1:x", f"@a:{name}")
        self.add_member("!1:x", "@b:few.example")
        self.add_member("!2:x", "@a:many.example")
        self.add_member("!2:x", "@a:few.example", "leave")
        self.add_member("!3:x", "@a:none.example")
        for user in ("@1:test", "@2:test"):
            self.add_member("!1:x", user)
            self.add_member("!2:x", user)
        self.add_member("!2:x", "@3:test")
        self.add_member("!3:x", "@3:test", "leave")
        self.add_room("waits.example", "!9:x", 6)
        self.add_room("waits.example", "!8:x", 4)
        self.add_room("few.example", "!1:x", 6)
        self.add_room("more.example", "!1:x", 6)
        self.add_to_device("more.example")
        self.add_to_device("waits.example")
        self.insert_failure("few.example", "tls_expired", message="It has expired")
        found = self.ask_anew()
        told = [
            (row["destination"], row["shared_rooms"], row["local_users"])
            for row in found
        ]
        expected = [("many.example", 2, 3), ("more.example", 1, 2)]
        expected += [("few.example", 1, 2), ("waits.example", 0, 0)]
        self.assertEqual(told, expected)
        self.assertEqual([row["waiting"] for row in found], [0, 2, 1, 2])
        self.assertEqual(found[3]["backlog"]["to_device_messages"], 1)
        self.assertEqual(found[0]["status"], "backing_off")
        self.assertIsNone(found[0]["last_failure"])
        self.assertEqual(found[2]["last_failure"]["message"], "It has expired")
        self.assertEqual(self.ask_anew("?limit=1"), found[:1])
        self.assertEqual(self.ask("GET", f"{PATH}?limit=51").code, 400)

    def test_kept(self) -> None:
        """What was found is told for a minute, and nothing is read for it."""
        self.add_failing("a.example")
        self.add_to_device("a.example")
        found = self.ask_anew()
        self.add_failing("b.example")
        self.add_to_device("b.example")
        with patch.object(attention.AttentionStore, "_find") as find:
            self.reactor.advance(30)
            self.assertEqual(self.get_json(PATH)["destinations"], found)
            # But what is failing no more is not told as failing.
            self.add_destination("a.example", 0, 0, None, 5)
            self.assertEqual(self.get_json(PATH)["destinations"], [])
        find.assert_not_called()
        self.add_failing("a.example")
        self.assertEqual(len(self.ask_anew()), 2)

    def test_list(self) -> None:
        """The list keeps those for which something waited, the most first, by page.

        And tells whom what fails affects, where that is known.
        """
        for number in range(5):
            self.add_failing(f"{number}.example")
            for room in range(number % 3):
                self.add_room(f"{number}.example", f"!{room}:x", 6 + number)
        self.add_failing("nothing.example")
        for name in ("2.example", "4.example", "test"):
            self.add_member("!1:x", f"@a:{name}")
        self.add_member("!2:x", "@a:2.example")
        self.add_member("!2:x", "@b:test")
        expected = ["2.example", "1.example", "4.example"]
        path = f"{V2}/destinations?has_backlog=true&include=local_users"
        self.reactor.advance(601)
        self.get_json(PATH)
        body = self.get_json(path)
        names = [row["destination"] for row in body["destinations"]]
        self.assertEqual(names, expected)
        users = {row["destination"]: row["local_users"] for row in body["destinations"]}
        self.assertEqual(users, {"2.example": 2, "1.example": 0, "4.example": 1})
        some = self.get_json(f"{path}&total=true&limit=1&destination=?.example")
        self.assertEqual((some["total"], len(some["destinations"])), (3, 1))
        self.assertTrue(body["is_complete"])
        self.assertGreater(body["as_of_ts"], self.clock.time_msec() - 1000)
        # Page by page, while one comes back and another begins to fail.
        for begin in range(3):
            pages = self.pages(f"{path}&limit=1")
            walked = [row["destination"] for p in pages for row in p["destinations"]]
            self.assertEqual(walked, expected[begin:])
            self.add_destination(expected[begin], 0, 0, None, 5)
        self.assertEqual(self.get_json(f"{path}&failing_for=5m")["destinations"], [])
        export = f"{V2}/destinations/export?has_backlog=true"
        self.assertEqual(self.exported(export), [])
        now_ms = self.clock.time_msec()
        self.add_destination("new.example", now_ms, 10**7, now_ms, 5)
        rows = self.get_json(f"{V2}/destinations?include=local_users")["destinations"]
        users = {row["destination"]: row["local_users"] for row in rows}
        self.assertEqual((users["new.example"], users["2.example"]), (None, None))
        self.assertEqual((users["nothing.example"], users["0.example"]), (0, 0))
        with patch.multiple(limits, KEPT_WAITING=1, KEPT_SHARING=1):
            for name in expected:
                self.add_failing(name)
            self.reactor.advance(601)
            self.get_json(PATH)
            body = self.get_json(path)
        self.assertEqual(len(body["destinations"]), 1)
        self.assertFalse(body["is_complete"])
        rows = self.get_json(f"{V2}/destinations?include=local_users")["destinations"]
        users = {row["destination"]: row["local_users"] for row in rows}
        self.assertEqual((users["2.example"], users["4.example"]), (2, None))

    def test_pieces(self) -> None:
        """However it is cut into pieces, it is what a plain computation finds."""
        randomness = random.Random(1)
        failing = [f"{number}.example" for number in range(12)]
        for name in failing:
            self.add_failing(name)
        servers = [*failing, "well.example", *["test"] * 2]
        joined = set()
        for room in range(9):
            self.insert(
                "room_stats_current",
                room_id=f"!{room}:x",
                joined_members=randomness.randrange(5),
                **dict.fromkeys(
                    (
                        "current_state_events",
                        "invited_members",
                        "left_members",
                        "banned_members",
                        "local_users_in_room",
                        "completed_delta_stream_id",
                    ),
                    0,
                ),
            )
            for _ in range(12):
                user = f"@{randomness.randrange(4)}:{randomness.choice(servers)}"
                member = (f"!{room}:x", user)
                if member not in joined:
                    joined.add(member)
                    self.add_member(*member)
        local = {member for member in joined if member[1].endswith(":test")}
        expected = {}
        for name in failing:
            rooms = {room for room, user in joined if user.endswith(f":{name}")}
            rooms &= {room for room, _ in local}
            users = {user for room, user in local if room in rooms}
            if users:
                expected[name] = (len(rooms), len(users))
        self.assertGreater(len(expected), 5)
        for size in (1, 2, 3, 1000):
            sizes = dict.fromkeys(("_NAMES", "_ROOMS", "_MEMBERS"), size)
            with (
                patch.multiple(attention, **sizes),
                patch.object(attention, "_COUNTED", size),
            ):
                found = self.ask_anew("?limit=50")
            counts = {
                row["destination"]: (row["shared_rooms"], row["local_users"])
                for row in found
            }
            self.assertEqual(counts, expected)

    def test_bounded(self) -> None:
        """Where there is more than there is room for, the answer says so."""
        for number in range(4):
            self.add_failing(f"{number}.example")
            self.add_member(f"!{number}:x", f"@a:{number}.example")
            self.add_member(f"!{number}:x", "@a:test")
        for limit in ("ATTENTION_NAMES", "ATTENTION_PAIRS"):
            self.reactor.advance(601)
            with (
                patch.object(limits, limit, 2),
                patch.multiple(attention, _NAMES=1, _ROOMS=1),
            ):
                body = self.get_json(PATH)
            self.assertFalse(body["is_complete"])
            self.assertEqual(len(body["destinations"]), 2)
