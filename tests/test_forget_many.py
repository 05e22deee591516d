# SPDX-License-Identifier: Apache-2.0
"""A filter forgets many, but for those with which local users share rooms."""

from typing import Any
from unittest import mock

import psycopg2
import pytest
from run_case import RUNS, RunsTestCase
from test_forget import DAY_MS, NOW_DAYS, ForgetTestCase

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
from synapse_federation_admin.repair import forget, forget_many

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]

NOW_MS = NOW_DAYS * DAY_MS
LONG_DEAD = (NOW_MS - DAY_MS, 2 * DAY_MS, NOW_MS - 60 * DAY_MS, 7)
WANTED = {"failing_for": "30d"}


class ForgetManyTestCase(RunsTestCase, ForgetTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.dead = [f"dead{number}.example" for number in range(6)]
        for name in self.dead:
            self.add_everything(name, LONG_DEAD)
        self.add_everything("shared.example", LONG_DEAD)
        self.share_room("shared.example")
        young = (NOW_MS - DAY_MS, 2 * DAY_MS, NOW_MS - 10 * DAY_MS, 7)
        self.add_everything("young.example", young)
        self.add_everything("fine.example", (0, 0, None, 7))

    def forget_all(self, **body: Any) -> dict[str, Any]:
        """Forget what has been failing for long, and return the run."""
        return self.complete("forget", **{"filter": WANTED, "dry_run": False, **body})

    def assert_untouched(self, *names: str) -> None:
        for name in names:
            self.assertEqual(self.left(name), self.everything(), name)

    def assert_gone(self, *names: str) -> None:
        for name in names:
            self.assertEqual(self.left(name), {"device_federation_outbox": 2}, name)

    def test_forget(self) -> None:
        """What a filter keeps is forgotten, but for what shares rooms with us.

        The audit says who, when, from which process, why, and what was lost.
        """
        with mock.patch.object(limits, "DESTINATIONS_FORGOTTEN", 2):
            run = self.forget_all(reason="spring")
        self.assertEqual(run["matched"], 7)
        self.assertEqual(run["outcomes"], {"forgotten": 6, "refused": 1})
        self.assertEqual(
            run["totals"],
            {
                "lost_rooms": 6,
                "lost_to_device_messages": 0,
                "lost_device_list_updates": 18,
                "kept_to_device_messages": 12,
            },
        )
        self.assertEqual(run["criteria"], {"filter": {"failing_for_ms": 30 * DAY_MS}})
        self.assertEqual(run["options"], {"drop_to_device": False})
        (refused,) = run["errors"]["shared_rooms"]["recent"]
        self.assertEqual(refused["destination"], "shared.example")
        self.assertIn("1 room", refused["message"])
        self.assert_gone(*self.dead)
        self.assert_untouched("shared.example", "young.example", "fine.example")
        self.assertEqual(
            self.entries(run),
            {
                **{name: ["forgotten"] for name in self.dead},
                "shared.example": ["refused"],
            },
        )
        (entry,) = self.audit(f"?destination={self.dead[0]}")
        self.assertEqual((entry["user_id"], entry["reason"]), ("@admin:test", "spring"))
        self.assertEqual((entry["run_id"], entry["instance"]), (run["id"], "main"))
        self.assertGreaterEqual(entry["ts"], NOW_MS)
        self.assertEqual(
            entry["details"],
            {
                "failure_ts": NOW_MS - 60 * DAY_MS,
                "lost": {"rooms": 1, "to_device_messages": 0, "device_list_updates": 3},
                "kept": {"to_device_messages": 2},
            },
        )

    def test_dry_run(self) -> None:
        """By default it is only told what would be done."""
        body = self.post("forget", filter=WANTED).json_body
        self.assertEqual(
            body,
            {
                "dry_run": True,
                "matched": 7,
                "forgotten": 6,
                "refused": 1,
                "lost": {
                    "rooms": 6,
                    "to_device_messages": 0,
                    "device_list_updates": 18,
                },
                "kept": {"to_device_messages": 12},
                "sample": self.dead,
                "refused_sample": [
                    {"destination": "shared.example", "shared_rooms": 1}
                ],
            },
        )
        self.assert_untouched(*self.dead)
        self.assertEqual((self.audit(), self.get_json(RUNS)["runs"]), ([], []))

    def test_list(self) -> None:
        """A list is forgotten as it is, however young, but for shared rooms.

        What is not there is refused, or left out; what bears no server name is not.
        """
        self.add_destination("no server name", NOW_MS, 1, NOW_MS)
        names = ["young.example", "fine.example", "shared.example", "no server name"]
        unknown = ["gone.example", "x" * 262]
        channel = self.post("forget", destinations=[*names, *unknown])
        self.assertEqual(channel.code, 400, channel.result)
        body = channel.json_body
        self.assertEqual(
            (body["unknown"], body["invalid"]), ([unknown[0]], [unknown[1]])
        )
        wanted = {"destinations": [*names, *unknown], "ignore_unknown": True}
        body = self.post("forget", **wanted).json_body
        self.assertEqual(
            (body["matched"], body["forgotten"], body["refused"]), (4, 3, 1)
        )
        self.assertEqual(body["ignored"], {"unknown": 1, "invalid": 1})
        self.assert_untouched(*names[:3])
        run = self.complete("forget", dry_run=False, **wanted)
        self.assertEqual(run["criteria"], {"destinations": 4})
        self.assertEqual(run["outcomes"], {"forgotten": 3, "refused": 1})
        self.assert_gone(*names[:2])
        self.assert_untouched("shared.example", *self.dead)

    def test_samples(self) -> None:
        """Of those that would be forgotten and refused, ten are named each."""
        for number in range(12):
            self.add_destination(f"d{number:02}.example", *LONG_DEAD)
            self.add_destination(f"s{number:02}.example", *LONG_DEAD)
            self.share_room(f"s{number:02}.example", f"!shared{number}:test")
        with mock.patch.object(forget_many, "_CANDIDATES", 5):
            body = self.post("forget", filter=WANTED).json_body
        self.assertEqual((body["forgotten"], body["refused"]), (18, 13))
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

    def test_force(self) -> None:
        """With `force` it may be younger; never with rooms shared."""
        run = self.forget_all(
            filter={"destination": "*.example", "status": ["backing_off"]},
            force=True,
            drop_to_device=True,
        )
        self.assertEqual(run["outcomes"], {"forgotten": 7, "refused": 1})
        self.assertEqual(run["totals"]["lost_to_device_messages"], 14)
        for name in (*self.dead, "young.example"):
            self.assertEqual(self.left(name), {})
        self.assert_untouched("shared.example", "fine.example")

    def test_passes(self) -> None:
        """No pass over the members is for more than so many destinations."""
        counts = mock.patch.object(
            SharedRoomsStore,
            "counts",
            autospec=True,
            side_effect=SharedRoomsStore.counts,
        )
        with mock.patch.object(forget_many, "_CANDIDATES", 4), counts as counted:
            run = self.forget_all()
        asked = [len(call.args[1]) for call in counted.call_args_list]
        self.assertEqual(asked, [4, 3])
        self.assertEqual(run["outcomes"], {"forgotten": 6, "refused": 1})

    def test_recovers_meanwhile(self) -> None:
        """What was failing for long when the run was made, and is not, stays."""

        def recover() -> None:
            self.add_destination(self.dead[0], 0, 0, None, 9)
            self.add_destination(self.dead[1], NOW_MS, 2 * DAY_MS, NOW_MS, 9)

        with self.once_prepared(recover):
            run = self.forget_all()
        self.assertEqual(
            run["outcomes"], {"forgotten": 4, "refused": 1, "no_longer_failing": 2}
        )
        self.assert_untouched(*self.dead[:2])
        self.assert_gone(*self.dead[2:])

    def test_changed_meanwhile(self) -> None:
        """What something is queued for meanwhile stays; the rest of its batch goes.

        It counts as refused, nothing of it is lost, and the audit says why.
        """
        changes = {
            "event": lambda: self.add_room(self.dead[1], "!new:test", 12),
            "failure": lambda: self.add_destination(
                self.dead[2], NOW_MS, 2 * DAY_MS, NOW_MS - 60 * DAY_MS, 7
            ),
            "message": lambda: self.add_to_device(self.dead[3], stream_id=10**6),
            "update": lambda: self.add_poke(self.dead[4], 10**6),
        }
        of = forget_many.BacklogStore.of

        async def change(store: Any, names: Any) -> Any:
            found = await of(store, names)
            while changes:
                changes.popitem()[1]()
            return found

        with mock.patch.object(forget_many.BacklogStore, "of", change):
            run = self.forget_all(drop_to_device=True)
        self.assertEqual(run["outcomes"], {"forgotten": 2, "refused": 5})
        self.assertEqual(run["errors"]["changed"]["count"], 4)
        self.assertEqual(run["totals"]["lost_to_device_messages"], 4)
        for name in (self.dead[0], self.dead[5]):
            self.assertEqual(self.left(name), {})
        for name in self.dead[1:5]:
            kept = self.left(name)
            for table, count in self.everything().items():
                self.assertGreaterEqual(kept[table], count)
            (entry,) = self.audit(f"?destination={name}")
            self.assertEqual(entry["outcome"], "refused")
            self.assertIn("meanwhile", entry["details"]["note"])

    def test_joined_meanwhile(self) -> None:
        """Who has joined a room since shared rooms were looked for is not forgotten."""
        counts, joined = SharedRoomsStore.counts, []

        async def join(store: Any, names: Any) -> Any:
            found = await counts(store, names)
            if not joined:
                joined.append(self.dead[1])
                self.share_room(self.dead[1], "!new:test")
                self.add_room(self.dead[1], "!new:test", 12)
            return found

        with mock.patch.object(SharedRoomsStore, "counts", join):
            run = self.forget_all()
        self.assertEqual(run["outcomes"], {"forgotten": 5, "refused": 2})
        self.assertEqual(run["errors"]["changed"]["count"], 1)
        self.assertEqual(self.left(self.dead[1])["destination_rooms"], 3)

    def test_queued_while_deleting(self) -> None:
        """An event that another process queues meanwhile waits until it is deleted.

        On PostgreSQL only: on SQLite there is one transaction at a time.
        """
        if not self.is_postgres:
            return
        self.insert(
            "rooms", room_id="!new:test", is_public=False, creator="@admin:test"
        )
        look, waited = forget._look_txn, []

        def look_and_queue(txn: Any, names: Any) -> Any:
            # The second time is in the transaction that deletes.
            if look_and_queue.calls:  # type: ignore[attr-defined]
                waited.append(self.queue_elsewhere(names[0]))
            look_and_queue.calls = True  # type: ignore[attr-defined]
            return look(txn, names)

        look_and_queue.calls = False  # type: ignore[attr-defined]
        with mock.patch.object(forget, "_look_txn", look_and_queue):
            self.assertEqual(self.forget(self.dead[0], dry_run=False).code, 200)
        self.assertEqual(waited, [True])
        self.assert_gone(self.dead[0])

    def queue_elsewhere(self, name: str) -> bool:
        """Queue an event over a connection of our own; tell whether it has to wait."""
        try:
            with self.connected() as connection, connection:
                cursor = connection.cursor()
                cursor.execute("SET lock_timeout = '200ms'")
                cursor.execute(
                    "INSERT INTO destination_rooms (destination, room_id, "
                    "stream_ordering) VALUES (%s, '!new:test', 20)",
                    (name,),
                )
        except psycopg2.errors.LockNotAvailable:
            return True
        return False

    def test_filter(self) -> None:
        """400 M_INVALID_PARAM, and there is no run. (More: test_bad_input.py.)"""
        bodies: list[tuple[dict[str, Any], str]] = [
            ({"force": True}, "'filter'"),
            ({"filter": WANTED, "destinations": ["a"]}, "'destinations'"),
            ({"filter": {}}, "'filter'"),
            ({"filter": {}, "force": True}, "'filter'"),
            ({"filter": {"destination": "dead"}}, "'filter.failing_for'"),
            ({"filter": {"failing_for": "29d"}}, "'filter.failing_for'"),
            ({"filter": {"failing_for": "719h"}}, "'filter.failing_for'"),
        ]
        for body, named in bodies:
            channel = self.post("forget", **{"dry_run": False, **body})
            self.assert_error(channel, 400, "M_INVALID_PARAM", named)
        self.assertEqual(self.get_json(RUNS)["runs"], [])
