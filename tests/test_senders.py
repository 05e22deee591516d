# SPDX-License-Identifier: Apache-2.0
"""Which processes run, and how far those are that send."""

from typing import Any

import pytest
from module_case import ModuleTestCase
from synapse.server import HomeServer
from synapse.util.clock import Clock
from twisted.internet.testing import MemoryReactor

from synapse_federation_admin.destinations.senders import Sender, Senders
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.instances import InstanceState, state_of
from synapse_federation_admin.storage.schema import Tables

MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("age_ms", "has_ended", "late_ms", "state"),
    [
        (0, False, 0, "running"),
        (44_999, False, 4999, "running"),
        # The clock of the database has been put back a little.
        (-44_999, False, 0, "running"),
        (45_000, False, 0, "late"),
        (0, False, 5000, "late"),
        (180_000, False, 0, "gone"),
        # A time beyond now is not believed.
        (-45_001, False, 0, "gone"),
        (-365 * 86_400_000, False, 0, "gone"),
        (0, True, 0, "gone"),
    ],
)
def test_state(age_ms: int, has_ended: bool, late_ms: int, state: str) -> None:
    """A process runs if it was seen lately, is on time, and has not said goodbye."""
    found = state_of(age_ms, has_ended=has_ended, reactor_late_ms=late_ms)
    assert found is InstanceState(state)


class SendersTestCase(ModuleTestCase):
    def prepare(self, reactor: MemoryReactor, clock: Clock, hs: HomeServer) -> None:
        super().prepare(reactor, clock, hs)
        homeserver = Homeserver(hs.get_module_api())
        self.senders = Senders(homeserver, Tables(homeserver))

    def shift(self, name: str, age_ms: int) -> None:
        """Have a process been seen at another time."""
        self.run_sql(
            f"UPDATE federation_admin_instances SET seen_ts = seen_ts - {age_ms} "
            f"WHERE instance = '{name}'"
        )

    def set_position(self, position: str) -> None:
        self.run_sql(
            f"UPDATE federation_stream_position SET stream_id = {position} "
            "WHERE type = 'events'"
        )

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
        self.assertFalse(sender.is_down or sender.is_behind)
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

    def test_position(self) -> None:
        """Behind is counted in events; ahead is what lies beyond the newest one."""
        room_id = self.helper.create_room_as("@admin:test", tok=self.admin_token)
        self.set_position("1")
        events = self.run_sql("SELECT COUNT(*) FROM events WHERE stream_ordering > 1")
        sender = self.sender()
        self.assertEqual(sender.position, 1)
        self.assertEqual([(sender.behind_events,)], events)
        self.assertFalse(sender.is_behind)
        self.reactor.advance(600)
        self.set_position("1")
        self.assertGreaterEqual(self.sender().behind_ms or 0, 600_000)
        self.assertTrue(self.sender().is_behind)

        self.set_position("(SELECT MAX(stream_ordering) + 7 FROM events)")
        sender = self.sender()
        self.assertEqual((sender.behind_events, sender.ahead_events), (0, 7))
        self.assertTrue(sender.is_behind)
        # It is no matter which events are left.
        purge = self.hs.get_storage_controllers().purge_events
        self.get_success(purge.purge_room(room_id))
        self.assertEqual(self.sender().ahead_events, 7)


class TwoSendersTestCase(SendersTestCase):
    """Main, and two senders that the configuration names."""

    def default_config(self) -> dict[str, Any]:
        return {
            **super().default_config(),
            "send_federation": False,
            "federation_sender_instances": ["sender1", "sender2"],
        }

    def add(self, name: str, age_ms: int) -> None:
        """Write of another process that it was seen."""
        self.run_sql(
            "INSERT INTO federation_admin_instances SELECT "
            f"'{name}', seen_ts - {age_ms}, started_ts, 0, module_version, "
            "synapse_version, 1, 0, 0, 0, NULL, 0 FROM federation_admin_instances "
            "WHERE instance = 'main'"
        )

    def test_states(self) -> None:
        """What was never seen is told apart from what is gone."""
        self.add("sender1", MINUTE_MS)
        one, two = self.get_success(self.senders.all())
        self.assertEqual((one.instance, two.instance), ("sender1", "sender2"))
        self.assertIs(one.state, InstanceState.LATE)
        self.assertIs(two.state, InstanceState.NEVER_SEEN)
        self.assertTrue(one.is_down and two.is_down)
        self.assertIsNone(two.position)

    def test_without_module(self) -> None:
        """Who comes to new events runs, also without this module."""
        self.run_sql(
            "INSERT INTO federation_stream_position (type, stream_id, instance_name) "
            "VALUES ('events', 1000, 'sender1')"
        )
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        one, two = self.get_success(self.senders.all())
        self.assertIs(one.state, InstanceState.NEVER_SEEN)
        self.assertFalse(one.is_down)
        self.assertTrue(two.is_down)


class NobodyTestCase(SendersTestCase):
    """One process that does not send, and no other."""

    def default_config(self) -> dict[str, Any]:
        config = super().default_config()
        config.pop("federation_sender_instances", None)
        return {**config, "send_federation": False}

    def test_nobody(self) -> None:
        """It is told that nobody sends, and what waits for whoever will."""
        self.set_position("1")
        self.helper.create_room_as("@admin:test", tok=self.admin_token)
        sender = self.sender()
        self.assertEqual((sender.instance, sender.state.value), (None, "nobody"))
        self.assertTrue(sender.is_down)
        self.assertGreater(sender.behind_events or 0, 0)
