# SPDX-License-Identifier: Apache-2.0
"""What Synapse keeps of servers that are gone for good is removed."""

from collections.abc import Callable
from functools import cached_property
from typing import Any
from unittest import mock

import pytest
from module_case import V2, MembersTestCase, quote
from parameterized import parameterized
from twisted.internet.error import ConnectionDone

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.sql import existing_tables

DEAD = "dead.example"
DAY_MS = 86_400_000
NOW_DAYS = 100
LONG_AGO = (1000, 10**12, 500, 7)

TABLES = (
    "destinations",
    "destination_rooms",
    "destination_rooms_sticky_events_backlog",
    "device_lists_outbound_pokes",
    "device_lists_outbound_last_success",
    "device_federation_outbox",
)


class ForgetTestCase(MembersTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor.advance(NOW_DAYS * DAY_MS / 1000)
        # Tokens of users do not expire by that, but the admin's may be cached.
        self.stream_id = 10

    @cached_property
    def tables(self) -> list[str]:
        """Those of the tables that this Synapse has."""
        existing = self.get_success(
            self.store.db_pool.runInteraction("test", existing_tables)
        )
        return [table for table in TABLES if table in existing]

    def add_everything(self, name: str, row: tuple[Any, ...] = LONG_AGO) -> None:
        """Write a row of a destination, and something of it into every table."""
        self.add_destination(name, *row)
        self.add_room(name, "!delivered:test", 3)
        self.add_room(name, "!waits:test", 9)
        self.stream_id += 1
        if "destination_rooms_sticky_events_backlog" in self.tables:
            self.insert(
                "destination_rooms_sticky_events_backlog",
                destination=name,
                room_id="!waits:test",
                sticky_events_stream_position=1,
            )
        for number in range(3):
            self.add_poke(name, self.stream_id * 10 + number)
        self.insert(
            "device_lists_outbound_last_success",
            destination=name,
            user_id="@user:test",
            stream_id=1,
        )
        for number in range(2):
            self.add_to_device(name, stream_id=self.stream_id * 10 + number)

    def left(self, name: str) -> dict[str, int]:
        """Return how many rows of a name there are, by table; without zeros."""
        found = {}
        for table in self.tables:
            ((found[table],),) = self.run_sql(
                f"SELECT COUNT(*) FROM {table} WHERE destination = '{name}'"
            )
        return {table: count for table, count in found.items() if count}

    def everything(self) -> dict[str, int]:
        counts = dict.fromkeys(self.tables, 1)
        counts.update(
            destination_rooms=2,
            device_lists_outbound_pokes=3,
            device_federation_outbox=2,
        )
        return counts

    def forget(self, name: str = DEAD, **body: Any) -> Any:
        path = f"{V2}/destinations/{quote(name, safe='')}/forget"
        return self.ask("POST", path, content=body)


@pytest.mark.database
class OneTestCase(ForgetTestCase):
    """POST destinations/<destination>/forget."""

    def test_forget(self) -> None:
        """Nothing is left of it, but to-device messages; others are untouched."""
        others = ["alive.example", "x.dead.example", "DEAD.example", "dead.example:1"]
        for name in (DEAD, *others):
            self.add_everything(name)
        self.assertIsNotNone(self.timings(DEAD))
        channel = self.forget(dry_run=False, reason="domain expired")
        self.assertEqual(channel.code, 200, channel.result)
        # Synapse knows at once that it is not in backoff any more.
        self.assertIsNone(self.timings(DEAD))
        body = channel.json_body
        self.assertEqual((body["dry_run"], body["forgotten"]), (False, True))
        self.assertEqual(
            body["lost"],
            {"rooms": 1, "to_device_messages": 0, "device_list_updates": 3},
        )
        self.assertEqual(body["kept"], {"to_device_messages": 2})
        self.assertEqual((body["shared_rooms"], body["refused"]), (0, None))
        self.assertEqual(body["destination"]["failure_ts"], 500)
        self.assertEqual(self.left(DEAD), {"device_federation_outbox": 2})
        for name in others:
            self.assertEqual(self.left(name), self.everything())
        (entry,) = self.audit()
        self.assertEqual((entry["action"], entry["outcome"]), ("forget", "forgotten"))
        self.assertEqual(entry["destination"], DEAD)
        self.assertEqual(entry["reason"], "domain expired")
        self.assertEqual(entry["details"]["failure_ts"], 500)
        self.assertEqual(entry["details"]["lost"], body["lost"])

    @parameterized.expand([(False,), (True,)])
    def test_drop_to_device(self, drop: bool) -> None:
        """By default it is only told what would be lost; with `drop_to_device` all."""
        self.add_everything(DEAD)
        body = self.forget(drop_to_device=drop).json_body
        self.assertEqual((body["dry_run"], body["forgotten"]), (True, False))
        self.assertEqual(body["lost"]["to_device_messages"], 2 if drop else 0)
        self.assertEqual(body["lost"]["rooms"], 1)
        self.assertEqual(self.left(DEAD), self.everything())
        self.assertEqual(self.audit(), [])
        done = self.forget(dry_run=False, drop_to_device=drop).json_body
        self.assertEqual((done["lost"], done["kept"]), (body["lost"], body["kept"]))
        left = {} if drop else {"device_federation_outbox": 2}
        self.assertEqual(self.left(DEAD), left)

    def test_shared_rooms(self) -> None:
        """While local users share rooms with it, that is refused, with their number."""
        self.add_everything(DEAD)
        self.share_room(DEAD)
        self.share_room(DEAD, "!other:test")
        self.add_member("!old:test", f"@someone:{DEAD}", "leave")
        channel = self.forget(dry_run=False, drop_to_device=True)
        self.assert_error(channel, 400, "M_UNKNOWN", "2 rooms")
        self.assertEqual(channel.json_body["shared_rooms"], 2)
        self.assertIn("(!other:test, ", channel.json_body["error"])
        listed = self.get_json(channel.json_body["shared_rooms_path"])["rooms"]
        self.assertEqual(channel.json_body["shared_rooms_sample"], listed)
        self.assertEqual(len(listed), 2)
        self.assertEqual(self.left(DEAD), self.everything())
        self.assertEqual(self.audit(), [])
        body = self.forget().json_body
        self.assertIn("2 rooms", body["refused"])
        self.assertEqual(body["shared_rooms_sample"], listed)
        self.assertEqual(body["shared_rooms"], 2)

    def before_deletion(self, func: Callable[[], object]) -> Any:
        """Have something happen once, before a destination is deleted."""
        run_to_end, funcs = Homeserver.run_to_end, [func]

        def then_run(homeserver: Any, desc: str, *args: Any) -> Any:
            if desc == "federation_admin_forget" and funcs:
                funcs.pop()()
            return run_to_end(homeserver, desc, *args)

        return mock.patch.object(Homeserver, "run_to_end", then_run)

    def test_joined_meanwhile(self) -> None:
        """If something is sent to it while it is looked at, it is 409, and stays."""
        for change in (
            lambda: self.add_room(DEAD, "!new:test", 12),
            lambda: self.add_destination(DEAD, 2000, 10**12, 500, 7),
        ):
            self.add_everything(DEAD)
            with self.before_deletion(change):
                channel = self.forget(dry_run=False, drop_to_device=True)
            self.assertEqual(channel.code, 409, channel.result)
            self.assertIn("destinations", self.left(DEAD))
            self.assertIn("device_federation_outbox", self.left(DEAD))
            self.assertEqual(self.audit(), [])
            self.assertEqual(self.forget(dry_run=False, drop_to_device=True).code, 200)
            self.run_sql("DELETE FROM federation_admin_audit")

    def test_capped_meanwhile(self) -> None:
        """That its backoff is shortened meanwhile keeps it from nothing."""
        self.add_everything(DEAD)
        cap = "UPDATE destinations SET retry_interval = 1"
        with self.before_deletion(lambda: self.run_sql(cap)):
            channel = self.forget(dry_run=False, drop_to_device=True)
        self.assertEqual(channel.code, 200, channel.result)
        self.assertEqual(self.left(DEAD), {})

    def test_disconnected(self) -> None:
        """If the client goes away, it is forgotten all the same."""
        self.add_everything(DEAD)
        channels: list[Any] = []

        def disconnect() -> None:
            channels.pop().request.connectionLost(reason=ConnectionDone())

        with self.before_deletion(disconnect):
            path = f"{V2}/destinations/{DEAD}/forget"
            body = {"dry_run": False}
            channels.append(self.ask("POST", path, content=body, await_result=False))
            self.pump(0.1)
        self.assertEqual(channels, [])
        self.assertEqual(self.left(DEAD), {"device_federation_outbox": 2})
        self.assertEqual(self.outcomes(), ["forgotten"])

    def test_database_fails(self) -> None:
        """If the database fails in the middle, everything is left."""
        self.add_everything(DEAD)
        # The last one, after all the others.
        self.refuse_changes("destinations", "DELETE")
        channel = self.forget(dry_run=False, drop_to_device=True)
        self.assertEqual(channel.code, 500)
        self.assertEqual(self.left(DEAD), self.everything())
        self.assertEqual(self.audit(), [])

    def test_unlisted(self) -> None:
        """What waits for a name that has no row can be forgotten, too."""
        self.add_poke(DEAD)
        self.assertEqual(self.forget(dry_run=False).code, 200)
        self.assertEqual(self.left(DEAD), {})

    def test_unknown(self) -> None:
        """A name of which Synapse knows nothing is 404."""
        for name in ("no.example", "%", "a\0b", ""):
            channel = self.forget(name, dry_run=False)
            self.assertEqual(channel.code, 404, channel.result)
