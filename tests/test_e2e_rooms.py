# SPDX-License-Identifier: Apache-2.0
"""Two real Synapses that share a room."""

from typing import Any

import pytest
from real_synapse import RealSynapse

from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e


def messages(sync: dict[str, Any], room_id: str) -> list[str]:
    room = sync.get("rooms", {}).get("join", {}).get(room_id, {})
    return [
        event["content"].get("body", "")
        for event in room.get("timeline", {}).get("events", [])
        if event["type"] == "m.room.message"
    ]


def test_messages_arrive_after_reset(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One is stopped, messages are sent, it comes back, reset: they are in /sync."""
    folder = tmp_path_factory.mktemp("rooms")
    with (
        RealSynapse(folder, address="127.0.0.50") as here,
        # Without the module, and unable to reach us first: that alone would make
        # Synapse try it again.
        SynapseServer(
            folder / "there",
            here.certificates,
            address="127.0.0.51",
            module_config=None,
        ) as there,
    ):
        alice = here.as_admin()
        bob = there.client(there.create_user("bob"))
        room_id = alice.create_room()
        bob.join(room_id, here.server_name)
        alice.send_message(room_id, "while you are here")
        wait_until(
            lambda: "while you are here" in messages(bob.sync(), room_id),
            "the first message in /sync",
            90,
        )
        since = bob.sync()["next_batch"]
        report = alice.diagnose(there.server_name)
        stages = {stage["name"]: stage for stage in report["stages"]}
        assert report["verdict"] == stages["clock"]["outcome"] == "ok", report
        assert stages["version"]["findings"]["server_name"] == "Synapse"

        there.stop()
        texts = ["while you are away", "and another"]
        for text in texts:
            alice.send_message(room_id, text)
        wait_until(
            lambda: alice.destination(there.server_name)["retry_last_ts"],
            "Synapse to back off",
            60,
        )
        there.start()
        assert alice.destination(there.server_name)["failure_ts"] is not None
        assert messages(bob.sync(since), room_id) == []

        alice.reset_connection(there.server_name)

        wait_until(
            lambda: texts[-1] in messages(bob.sync(since, timeout_ms=500), room_id),
            "the messages in /sync",
            90,
        )
        assert messages(bob.sync(since), room_id) == texts
        row = alice.destination(there.server_name)
        assert (row["retry_last_ts"], row["failure_ts"]) == (0, None)
