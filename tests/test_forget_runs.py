# SPDX-License-Identifier: Apache-2.0
"""A filter forgets many: whole batches or none, one run at a time, whatever happens."""

from typing import Any
from unittest import mock

import psycopg2
import pytest
from test_forget import DAY_MS, DEAD, FORGET_MANY, NOW_DAYS, V2, ForgetTestCase
from twisted.internet.error import ConnectionDone

from synapse_federation_admin.destinations import reader
from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
from synapse_federation_admin.repair import cap_backoff as clamp
from synapse_federation_admin.repair import forget as module

pytestmark = pytest.mark.database

NOW_MS = NOW_DAYS * DAY_MS
LONG_DEAD = (NOW_MS - DAY_MS, 2 * DAY_MS, NOW_MS - 60 * DAY_MS, 7)
WANTED = {"failing_for": "30d"}


class RunsTestCase(ForgetTestCase):
    """POST forget."""

    def setUp(self) -> None:
        super().setUp()
        self.dead = [f"dead{number}.example" for number in range(6)]
        for name in self.dead:
            self.add_everything(name, LONG_DEAD)

    def begin(self, path: str, **body: Any) -> Any:
        """Make a request, and do not wait for its answer."""
        return self.ask("POST", path, content=body, await_result=False)

    def finish(self) -> None:
        """Let what goes on come to its end."""
        self.pump(0.1)

    def disconnect_at(self, owner: type, method: str, path: str, **body: Any) -> None:
        """Make a request whose client goes away when a method is called first."""
        channels = []
        called = getattr(owner, method)

        def disconnect_and_call(*args: Any, **kwargs: Any) -> Any:
            while channels:
                channel = channels.pop()
                self.assertFalse(channel.is_finished())
                channel.request.connectionLost(reason=ConnectionDone())
            return called(*args, **kwargs)

        with mock.patch.object(owner, method, disconnect_and_call):
            channels.append(self.begin(path, **body))
            self.finish()
        self.assertEqual(channels, [], "not called")

    def forgotten(self) -> list[str]:
        """Return the names that the audit says are forgotten."""
        entries = self.audit("?action=forget&limit=1000")
        return sorted(entry["destination"] for entry in entries)

    def assert_untouched(self, *names: str) -> None:
        for name in names:
            self.assertEqual(self.left(name), self.everything(), name)

    def assert_gone(self, *names: str) -> None:
        for name in names:
            self.assertEqual(self.left(name), {"device_federation_outbox": 2}, name)

    def test_disconnected(self) -> None:
        """If the client goes away, the run still comes to its end."""
        with mock.patch.object(module, "_DELETED_AT_ONCE", 1):
            self.disconnect_at(
                module.Forget, "_delete", FORGET_MANY, filter=WANTED, dry_run=False
            )
        self.assert_gone(*self.dead)
        self.assertEqual(self.forgotten(), self.dead)
        (whole,) = self.audit("?action=bulk_forget")
        self.assertEqual(whole["outcome"], "done")

    def test_disconnected_clamp(self) -> None:
        """So does a clamp."""
        with mock.patch.object(clamp, "_WINDOW", 1):
            self.disconnect_at(
                clamp.Clamp, "_walk", f"{V2}/clamp", max_retry_interval_ms=DAY_MS
            )
        for name in self.dead:
            row = self.get_json(f"{V2}/destinations/{name}")
            self.assertEqual(row["retry_interval"], DAY_MS)
        (entry,) = self.audit()
        self.assertEqual((entry["outcome"], entry["details"]["changed"]), ("done", 6))

    def test_disconnected_single(self) -> None:
        """And so does forgetting one destination."""
        path = f"{V2}/destinations/{self.dead[0]}/forget"
        self.disconnect_at(module.Forget, "_delete", path, dry_run=False)
        self.assert_gone(self.dead[0])
        self.assertEqual(self.forgotten(), self.dead[:1])

    def test_one_at_a_time(self) -> None:
        """A second run begins when the first has ended: none takes part of its work."""
        with mock.patch.object(module, "_DELETED_AT_ONCE", 1):
            channels = [
                self.begin(FORGET_MANY, filter=WANTED, dry_run=False) for _ in range(2)
            ]
            self.finish()
        counts = [
            {key: channel.json_body[key] for key in ("matched", "forgotten", "refused")}
            for channel in channels
        ]
        self.assertEqual(
            counts,
            [
                {"matched": 6, "forgotten": 6, "refused": 0},
                {"matched": 0, "forgotten": 0, "refused": 0},
            ],
        )
        self.assertEqual(self.forgotten(), self.dead)

    def test_one_clamp_at_a_time(self) -> None:
        """So does a second clamp: what is shortened is counted once."""
        with mock.patch.object(clamp, "_WINDOW", 1):
            channels = [
                self.begin(f"{V2}/clamp", max_retry_interval_ms=DAY_MS)
                for _ in range(2)
            ]
            self.finish()
        counts = [channel.json_body["changed"] for channel in channels]
        self.assertEqual(counts, [6, 0])

    def test_fails_between_batches(self) -> None:
        """If a batch fails, those before it are gone as a whole, and it is as it was.

        The audit has an entry of each that is gone, and of no other.
        """
        self.refuse_deletion_of(self.dead[3])
        with mock.patch.object(module, "_DELETED_AT_ONCE", 2):
            channel = self.forget_many(filter=WANTED, dry_run=False)
        self.assertEqual(channel.code, 500)
        self.assert_gone(*self.dead[:2])
        self.assert_untouched(*self.dead[2:])
        self.assertEqual(self.forgotten(), self.dead[:2])
        (whole,) = self.audit("?action=bulk_forget")
        self.assertEqual(whole["outcome"], "failed")
        (first, second) = self.audit(f"?action=forget&run_id={whole['run_id']}")
        self.assertEqual({first["outcome"], second["outcome"]}, {"forgotten"})

    def refuse_deletion_of(self, name: str) -> None:
        """Have the database fail when a destination's row is to be deleted."""
        if self.is_postgres:
            self.run_sql(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
                "AS $$ BEGIN RAISE 'disk full'; END $$"
            )
            self.run_sql(
                "CREATE TRIGGER refuse BEFORE DELETE ON destinations FOR EACH ROW "
                f"WHEN (OLD.destination = '{name}') EXECUTE FUNCTION refuse()"
            )
        else:
            self.run_sql(
                "CREATE TRIGGER refuse BEFORE DELETE ON destinations "
                f"WHEN OLD.destination = '{name}' "
                "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )

    def test_changed_meanwhile(self) -> None:
        """What something is queued for meanwhile stays; the rest of its batch goes.

        It counts as refused, nothing of it is lost, and it is not in the audit.
        """
        changes = {
            "event": lambda: self.add_room(self.dead[1], "!new:test", 12),
            "failure": lambda: self.add_destination(
                self.dead[2], NOW_MS, 2 * DAY_MS, NOW_MS - 60 * DAY_MS, 7
            ),
            "message": lambda: self.insert(
                "device_federation_outbox",
                destination=self.dead[3],
                stream_id=10**6,
                queued_ts=1,
                messages_json="{}",
            ),
            "update": lambda: self.insert(
                "device_lists_outbound_pokes",
                destination=self.dead[4],
                stream_id=10**6,
                user_id="@user:test",
                device_id="D",
                sent=False,
                ts=1,
            ),
        }
        delete = module.Forget._delete

        def change_and_delete(forget: Any, *args: Any) -> Any:
            while changes:
                changes.popitem()[1]()
            return delete(forget, *args)

        with mock.patch.object(module.Forget, "_delete", change_and_delete):
            body = self.forget_many(
                filter=WANTED, dry_run=False, drop_to_device=True
            ).json_body
        self.assertEqual(
            (body["matched"], body["forgotten"], body["refused"]), (6, 2, 4)
        )
        self.assertEqual(
            body["lost"],
            {"rooms": 2, "to_device_messages": 4, "device_list_updates": 6},
        )
        self.assertEqual(body["sample"], [self.dead[0], self.dead[5]])
        for name in (self.dead[0], self.dead[5]):
            self.assertEqual(self.left(name), {})
        for name in self.dead[1:5]:
            kept = self.left(name)
            for table, count in self.everything().items():
                self.assertGreaterEqual(kept[table], count)
        self.assertEqual(self.forgotten(), [self.dead[0], self.dead[5]])

    def test_queued_while_deleting(self) -> None:
        """An event queued by another process within the transaction keeps the row.

        On PostgreSQL only: on SQLite there is one transaction at a time.
        """
        if not self.is_postgres:
            return
        self.insert(
            "rooms", room_id="!new:test", is_public=False, creator="@admin:test"
        )
        look = module._look_txn
        calls = []

        def look_and_queue(txn: Any, names: Any) -> Any:
            found = look(txn, names)
            # First to be compared with later, then in the deleting transaction.
            calls.append(names)
            if len(calls) == 2:
                self.queue_elsewhere(self.dead[1])
            return found

        with mock.patch.object(module, "_look_txn", look_and_queue):
            channel = self.forget_many(filter=WANTED, dry_run=False)
        self.assertEqual(channel.code, 200, channel.result)
        body = channel.json_body
        self.assertEqual((body["forgotten"], body["refused"]), (5, 1))
        others = [name for name in self.dead if name != self.dead[1]]
        self.assert_gone(*others)
        everything = self.everything()
        everything["destination_rooms"] += 1
        self.assertEqual(self.left(self.dead[1]), everything)
        self.assertEqual(self.forgotten(), others)

    def queue_elsewhere(self, name: str) -> None:
        """Queue an event for a destination over a connection of our own."""
        config = self.hs.config.database.get_single_database().config["args"]
        args = {key: value for key, value in config.items() if key[:3] != "cp_"}
        connection = psycopg2.connect(**args)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO destination_rooms (destination, room_id, "
                    "stream_ordering) VALUES (%s, '!new:test', 20) "
                    "ON CONFLICT DO NOTHING",
                    (name,),
                )
        finally:
            connection.close()

    def test_samples(self) -> None:
        """Of those that are forgotten and refused, ten are named each."""
        for number in range(12):
            self.add_destination(f"d{number:02}.example", *LONG_DEAD)
            self.add_destination(f"s{number:02}.example", *LONG_DEAD)
            self.share_room(f"s{number:02}.example", f"!shared{number}:test")
        body = self.forget_many(filter=WANTED).json_body
        self.assertEqual((body["forgotten"], body["refused"]), (18, 12))
        self.assertEqual(
            body["sample"], [f"d{number:02}.example" for number in range(10)]
        )
        self.assertEqual(
            body["refused_sample"],
            [
                {"destination": f"s{number:02}.example", "shared_rooms": 1}
                for number in range(10)
            ],
        )

    def test_passes(self) -> None:
        """No pass over the members is for more than so many destinations."""
        asked = []
        counts = SharedRoomsStore.counts

        async def count(store: Any, names: Any) -> Any:
            asked.append(len(names))
            return await counts(store, names)

        with (
            mock.patch.object(module, "_CANDIDATES", 4),
            mock.patch.multiple(reader, _PIECE=2, _PASS_PIECE=2),
            mock.patch.object(SharedRoomsStore, "counts", count),
        ):
            body = self.forget_many(filter=WANTED, dry_run=False).json_body
        self.assertEqual(asked, [4, 2])
        self.assertEqual((body["matched"], body["forgotten"]), (6, 6))

    def test_room_through_synapse(self) -> None:
        """A room made through Synapse is shared until the last of us has left it."""
        self.add_everything(DEAD, LONG_DEAD)
        room_id = self.helper.create_room_as("user", tok=self.user_token)
        self.add_member(room_id, f"@someone:{DEAD}")
        channel = self.forget(dry_run=False)
        self.assertEqual((channel.code, channel.json_body["shared_rooms"]), (400, 1))
        body = self.forget_many(filter=WANTED, dry_run=False).json_body
        self.assertEqual(
            body["refused_sample"], [{"destination": DEAD, "shared_rooms": 1}]
        )
        self.assert_untouched(DEAD)
        self.helper.leave(room_id, "@user:test", tok=self.user_token)
        self.assertEqual(self.forget(dry_run=False).code, 200)
        self.assert_gone(DEAD)

    def test_audit(self) -> None:
        """The audit says who, when, from which process, why, and what was lost."""
        self.forget_many(filter=WANTED, dry_run=False, reason="spring")
        self.add_everything(DEAD)
        self.forget(dry_run=False, drop_to_device=True, reason="gone")
        (whole,) = self.audit("?action=bulk_forget")
        (one,) = self.audit(f"?destination={DEAD}")
        (of_run, *_) = self.audit(f"?destination={self.dead[0]}")
        for entry, reason in ((whole, "spring"), (of_run, "spring"), (one, "gone")):
            self.assertEqual(entry["user_id"], "@admin:test")
            self.assertEqual(entry["instance"], "main")
            self.assertEqual(entry["reason"], reason)
            self.assertGreaterEqual(entry["ts"], NOW_MS)
            self.assertGreaterEqual(entry["ended_ts"], entry["ts"])
        self.assertEqual(whole["details"]["filter"], {"failing_for_ms": 30 * DAY_MS})
        self.assertEqual(of_run["run_id"], whole["run_id"])
        self.assertIsNone(one["run_id"])
        self.assertEqual(
            of_run["details"],
            {
                "failure_ts": NOW_MS - 60 * DAY_MS,
                "lost": {"rooms": 1, "to_device_messages": 0, "device_list_updates": 3},
                "kept": {"to_device_messages": 2},
            },
        )
        self.assertEqual(
            one["details"],
            {
                "failure_ts": 500,
                "lost": {"rooms": 1, "to_device_messages": 2, "device_list_updates": 3},
                "kept": {"to_device_messages": 0},
            },
        )
