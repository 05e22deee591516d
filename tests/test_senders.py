# SPDX-License-Identifier: Apache-2.0
"""Which processes run, and how far those are that send."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from module_case import V2, MembersTestCase

from synapse_federation_admin.destinations import queued as module
from synapse_federation_admin.destinations.queued import queued_position
from synapse_federation_admin.destinations.senders import Sender, Senders
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage import instances
from synapse_federation_admin.storage.instances import InstanceState, state_of

MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("age_ms", "has_ended", "late_ms", "state"),
    [
        (0, False, 0, "running"),
        (29_999, False, 4999, "running"),
        # The clock of the database has been put back a little.
        (-44_999, False, 0, "running"),
        (30_000, False, 0, "late"),
        (59_999, False, 0, "late"),
        (0, False, 5000, "late"),
        (60_000, False, 0, "gone"),
        # A time beyond now is not believed.
        (-60_000, False, 0, "gone"),
        (-365 * 86_400_000, False, 0, "gone"),
        (0, True, 0, "gone"),
    ],
)
def test_state(age_ms: int, has_ended: bool, late_ms: int, state: str) -> None:
    """A process runs if it was seen lately, is on time, and has not said goodbye."""
    found = state_of(age_ms, has_ended=has_ended, reactor_late_ms=late_ms)
    assert found is InstanceState(state)


@pytest.mark.parametrize("poked", [-1, 5])
def test_looks_for_events(poked: int) -> None:
    """A sender that was started anew is told of what was stored before, once."""
    api = mock.Mock()
    hs = api._hs
    sender = hs.get_federation_sender()
    sender._last_poked_id = poked
    newest = hs.get_datastores().main.get_room_max_token()
    newest.stream = 5
    Homeserver(api).look_for_events()
    calls = [mock.call(newest)] if poked < newest.stream else []
    assert sender.notify_new_events.call_args_list == calls


class SendersTestCase(MembersTestCase):
    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.senders = Senders(self.homeserver, self.tables)
        # Others that run have written that meanwhile.
        self.senders._steady_s -= 60

    def set_position(self, position: str) -> None:
        self.run_sql(
            f"UPDATE federation_stream_position SET stream_id = {position} "
            "WHERE type = 'events'"
        )

    def all(self) -> Sequence[Sender]:
        return self.get_success(self.senders.read()).senders

    def sender(self, destination: str = "a.example") -> Sender:
        return self.get_success(self.senders.of(destination))


@pytest.mark.database
class OneProcessTestCase(SendersTestCase):
    """Main, which sends."""

    def default_config(self) -> dict[str, Any]:
        return {**super().default_config(), "federation_sender_instances": ["master"]}

    def test_running(self) -> None:
        """It is written at the start already that it runs and sends."""
        ((name, sends, ended),) = self.run_sql(
            "SELECT instance, sends, has_ended FROM federation_admin_instances"
        )
        self.assertEqual((name, sends, ended), ("main", 1, 0))
        sender = self.sender()
        self.assertEqual(sender.instance, "main")
        self.assertIs(sender.state, InstanceState.RUNNING)
        self.assertFalse(sender.stands_still)
        self.assertEqual((sender.behind_events, sender.ahead_events), (0, 0))

    def test_goodbye(self) -> None:
        """Who is shut down is gone at once; who answers runs all the same."""
        self.get_success(self.senders._end())
        self.assertEqual(
            self.run_sql("SELECT has_ended FROM federation_admin_instances"), [(1,)]
        )
        self.assertIs(self.sender().state, InstanceState.RUNNING)
        self.get_success(self.senders.beat())
        self.assertEqual(
            self.run_sql("SELECT has_ended FROM federation_admin_instances"), [(0,)]
        )

    def test_cannot_write(self) -> None:
        """Who answers runs, also if it could not write that for a minute."""
        self.run_sql("UPDATE federation_admin_instances SET seen_ts = seen_ts - 60000")
        self.assertFalse(self.sender().is_down)
        self.assertIs(self.sender().state, InstanceState.RUNNING)

    def test_in_memory(self) -> None:
        """What is queued is counted, in pieces, as each release keeps it."""
        sender = self.hs.get_federation_sender()
        waiting = [mock.Mock(origin_server_ts=ts) for ts in (5, 7)]
        for number in range(3):
            queue = sender._get_per_destination_queue(f"{number}.example")  # type: ignore[attr-defined]
            queue._pending_pdus = (
                {str(pdu): pdu for pdu in waiting}
                if isinstance(queue._pending_pdus, dict)
                else waiting
            )
        with mock.patch("synapse_federation_admin.limits.QUEUES_COUNTED", 2):
            self.get_success(self.senders.beat())
        (found,) = self.get_json(f"{V2}/instances")["instances"]
        self.assertEqual(found["in_memory"]["pdus"], 6)
        self.assertEqual(found["in_memory"]["oldest_ts"], 5)

    def test_told(self) -> None:
        """The summary, the processes and a destination's own sender agree."""
        self.add_destination("a.example")
        (sender,) = self.get_json(f"{V2}/summary")["senders"]
        (instance,) = self.get_json(f"{V2}/instances")["instances"]
        one = self.get_json(f"{V2}/destinations/a.example")["sender"]
        self.assertEqual(one, sender)
        self.assertEqual(instance["sender"], sender)
        self.assertEqual((sender["instance"], sender["state"]), ("main", "running"))
        self.assertEqual(instance["in_memory"]["pdus"], 0)
        self.assertIsNotNone(instance["started_ts"])

    def test_queued_position(self) -> None:
        """It goes back by as many as are gone through at once, from what is queued."""
        other_id = self.helper.create_room_as("@admin:test", tok=self.admin_token)
        room_id = self.helper.create_room_as("@admin:test", tok=self.admin_token)
        positions = [
            position
            for (position,) in self.run_sql(
                "SELECT stream_ordering FROM events ORDER BY stream_ordering"
            )
        ]
        ours = self.sender()
        self.assertIsNone(self.get_success(queued_position(self.homeserver, ours)))
        self.add_destination("a.example")
        self.run_sql(
            "INSERT INTO destination_rooms (destination, room_id, stream_ordering) "
            f"VALUES ('a.example', '{room_id}', {positions[-2]})"
        )
        self.assertEqual(self.get_success(queued_position(self.homeserver, ours)), 0)
        with mock.patch.object(module, "_AT_ONCE", 2):
            found = self.get_success(queued_position(self.homeserver, ours))
        self.assertEqual(found, positions[-5])
        other = ours._replace(instance="federation_sender1")
        self.assertIsNone(self.get_success(queued_position(self.homeserver, other)))
        # What stands for an event that is not there may be of before a restore: then
        # others may be, too, whose numbers are used again.
        self.run_sql(
            "INSERT INTO destination_rooms (destination, room_id, stream_ordering) "
            f"VALUES ('a.example', '{other_id}', {positions[-1]})"
        )
        self.assertIsNone(self.get_success(queued_position(self.homeserver, ours)))

    def test_not_yet_queued(self) -> None:
        """Our events are counted to which it has not come: of all, and of its rooms."""
        room_id = self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.add_destination("in.example")
        self.add_destination("out.example")
        self.add_member(room_id, "@x:in.example")
        self.set_position("1")
        ((ours,),) = self.run_sql(
            "SELECT COUNT(*) FROM events WHERE stream_ordering > 1"
        )
        ((of_room,),) = self.run_sql(
            "SELECT COUNT(*) FROM events WHERE stream_ordering > 1 "
            f"AND room_id = '{room_id}'"
        )
        self.run_sql("UPDATE events SET sender = '@x:latest' WHERE stream_ordering = 3")
        for name, count in (("in.example", of_room - 1), ("out.example", 0)):
            found = self.get_json(f"{V2}/destinations/{name}")
            self.assertEqual(found["not_yet_queued"], count)
        self.assertEqual(self.get_json(f"{V2}/summary")["not_yet_queued"], ours - 1)

    def test_cannot_be_told(self) -> None:
        """Without the module's tables, it is not told, and the rest is."""
        self.add_destination("a.example")
        self.run_sql("UPDATE federation_admin_schema SET compat_version = 99")
        self.run_sql("DROP TABLE federation_admin_instances")
        found = self.get_json(f"{V2}/destinations/a.example")
        self.assertIsNone(found["sender"])
        self.assertIsNone(found["not_yet_queued"])
        self.assertIsNone(self.get_json(f"{V2}/summary")["senders"])
        self.assertEqual(self.ask("GET", f"{V2}/instances").code, 503)

    def test_position(self) -> None:
        """Behind is counted in events; ahead is what lies beyond the newest one."""
        room_id = self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.set_position("1")
        events = self.run_sql("SELECT COUNT(*) FROM events WHERE stream_ordering > 1")
        sender = self.sender()
        self.assertEqual(sender.position, 1)
        self.assertEqual([(sender.behind_events,)], events)
        self.assertFalse(sender.stands_still)
        self.reactor.advance(600)
        self.set_position("1")
        self.assertGreaterEqual(self.sender().behind_ms or 0, 600_000)
        self.assertTrue(self.sender().stands_still)

        self.set_position("(SELECT MAX(stream_ordering) + 7 FROM events)")
        sender = self.sender()
        self.assertEqual((sender.behind_events, sender.ahead_events), (0, 7))
        self.assertTrue(sender.stands_still)
        # Nobody is told of what is fetched for the sake of other events, or rejected.
        self.set_position("1")
        even = "stream_ordering / 2 * 2 = stream_ordering"
        self.run_sql(f"UPDATE events SET outlier = true WHERE {even}")
        self.run_sql(
            f"UPDATE events SET rejection_reason = 'auth_error' WHERE NOT ({even})"
        )
        sender = self.sender()
        self.assertEqual((sender.behind_events, sender.behind_ms), (0, 0))
        self.set_position("(SELECT MAX(stream_ordering) + 7 FROM events)")
        # It is no matter which events are left.
        purge = self.hs.get_storage_controllers().purge_events
        self.get_success(purge.purge_room(room_id))
        self.assertEqual(self.sender().ahead_events, 7)

    def test_rolled_back(self) -> None:
        """A position that was given to an event that was rolled back is not ahead."""
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        # SQLite has no numbers but those of events that are stored.
        newest = "SELECT MAX(stream_ordering) FROM events"
        if self.is_postgres:
            newest = "SELECT last_value FROM events_stream_seq"
            self.run_sql(f"SELECT setval('events_stream_seq', ({newest}) + 5)")
        for ahead in (0, 2):
            self.set_position(f"({newest}) + {ahead}")
            self.assertEqual(self.sender().ahead_events, ahead)


class TwoSendersTestCase(SendersTestCase):
    """Main, and two senders that the configuration names."""

    def default_config(self) -> dict[str, Any]:
        return {
            **super().default_config(),
            "send_federation": False,
            "federation_sender_instances": ["sender1", "sender2"],
        }

    def test_late(self) -> None:
        """Who has not been seen for 30 s is late, not down; so is one held up."""
        # However slow this machine is.
        self.patch(instances, "_GONE_MS", 3_600_000)
        self.add_instance("sender1", 40_000)
        self.add_instance("sender2", 0)
        self.run_sql(
            "UPDATE federation_admin_instances SET reactor_late_ms = 7000 "
            "WHERE instance = 'sender2'"
        )
        for sender in self.all():
            self.assertIs(sender.state, InstanceState.LATE)
            self.assertEqual((sender.is_late, sender.is_down), (True, False))
        # Where nobody could write, nobody is late by that.
        self.senders._written_s -= 60
        one, two = self.all()
        self.assertEqual((one.is_late, two.is_late), (False, True))

    def test_outlook(self) -> None:
        """It is us if a sender of ours stands still."""
        outlook = self.get_json(f"{V2}/summary")["outlook"]
        self.assertEqual(outlook["verdict"], "us")
        self.assertIn("sender1, sender2", outlook["explanation"])
        self.add_instance("sender1", 0)
        self.add_instance("sender2", 0)
        # It is read once for all who ask within five seconds.
        self.assertEqual(self.get_json(f"{V2}/summary")["outlook"], outlook)
        self.reactor.advance(5)
        outlook = self.get_json(f"{V2}/summary")["outlook"]
        self.assertEqual(outlook["verdict"], "normal")

    def test_old(self) -> None:
        """What was not seen for a week is forgotten, and what was a week beyond now."""
        week_ms = 7 * 24 * 60 * MINUTE_MS
        for name, age_ms in (
            ("old", week_ms + MINUTE_MS),
            ("new", week_ms - MINUTE_MS),
            ("ahead", MINUTE_MS - week_ms),
            ("beyond", -week_ms - MINUTE_MS),
        ):
            self.add_instance(name, age_ms)
        ((now_ts,),) = self.run_sql(
            "SELECT seen_ts FROM federation_admin_instances WHERE instance = 'main'"
        )
        self.get_success(
            self.homeserver.run_db_interaction(
                "test", lambda txn: instances.OLD.delete_txn(txn, now_ts - week_ms, 10)
            )
        )
        found = self.run_sql("SELECT instance FROM federation_admin_instances")
        self.assertEqual({name for (name,) in found}, {"main", "new", "ahead"})

    def add_position(self, name: str, position: int) -> None:
        self.run_sql(
            "INSERT INTO federation_stream_position (type, stream_id, instance_name) "
            f"VALUES ('events', {position}, '{name}')"
        )

    def test_without_module(self) -> None:
        """Who is never seen may run without this module, while nothing waits for it."""
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        ((newest,),) = self.run_sql("SELECT MAX(stream_ordering) FROM events")
        self.add_position("sender1", newest)
        # However long nobody has written anything.
        self.reactor.advance(3600)
        one, two = self.all()
        self.assertIs(one.state, InstanceState.NEVER_SEEN)
        self.assertEqual((one.is_down, two.is_down), (False, True))
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.reactor.advance(40)
        self.assertFalse(self.all()[0].is_down)
        self.reactor.advance(10)
        self.assertTrue(self.all()[0].is_down)

    def test_module_taken_out(self) -> None:
        """Who has come to events since it was last seen runs."""
        self.add_instance("sender1", 10 * MINUTE_MS)
        self.add_position("sender1", 1_000_000)
        self.assertTrue(self.all()[0].is_down)
        now_ms = self.clock.time_msec()
        self.run_sql(
            f"UPDATE federation_admin_instances SET seen_ts = {now_ms - 600_000} "
            "WHERE instance = 'sender1'"
        )
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        one = self.all()[0]
        self.assertIs(one.state, InstanceState.GONE)
        self.assertFalse(one.is_down)

    def test_database_was_away(self) -> None:
        """Who could not write is not down, and neither is who did not start yet."""
        self.add_instance("sender1", MINUTE_MS)
        self.add_position("sender1", 1)
        for is_steady in (True, False):
            one = self.all()[0]
            self.assertIs(one.is_down, is_steady)
            self.senders._written_s -= 60
            self.get_success(self.senders.beat())
        # It has been long enough ago.
        self.senders._steady_s -= 60
        self.assertTrue(self.all()[0].is_down)

    def test_not_running(self) -> None:
        """Another process is told as not running only if it was seen before."""
        for name, age_ms in (("seen", 0), ("gone", 5 * MINUTE_MS)):
            self.add_instance(name, age_ms)
        found = self.get_success(self.senders.read())
        self.assertEqual(found.not_running, {"gone", "sender1", "sender2"})
        never = instances.Instance("never")
        found = found._replace(instances={**found.instances, "never": never})
        self.assertNotIn("never", found.not_running)


class NobodyTestCase(SendersTestCase):
    """One process that does not send, and no other."""

    def default_config(self) -> dict[str, Any]:
        config = super().default_config()
        config.pop("federation_sender_instances", None)
        return {**config, "send_federation": False}

    def test_never(self) -> None:
        """Who has never begun has no position; what waits is told all the same."""
        self.set_position("-1")
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        (sender,) = self.get_json(f"{V2}/summary")["senders"]
        self.assertIsNone(sender["position"])
        self.assertGreater(sender["behind_events"], 0)
        self.assertEqual(sender["ahead_events"], 0)


class OldStyleTestCase(SendersTestCase):
    """A main process that does not send, and does not know who does."""

    def default_config(self) -> dict[str, Any]:
        config = super().default_config()
        config.pop("federation_sender_instances", None)
        return {
            **config,
            "send_federation": False,
            "redis": {"enabled": True},
        }

    def test_unknown(self) -> None:
        """That nobody sends is proven by an event that waits, or not at all."""
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.set_position("(SELECT MAX(stream_ordering) FROM events)")
        self.reactor.advance(3600)
        found = self.get_success(self.senders.read())
        self.assertIs(found.senders[0].state, InstanceState.NOBODY)
        self.assertFalse(found.senders[0].is_down)
        self.assertTrue(found.is_sent)
        self.set_position("1")
        found = self.get_success(self.senders.read())
        self.assertTrue(found.senders[0].is_down)
        self.assertFalse(found.is_sent)
