# SPDX-License-Identifier: Apache-2.0
"""Our own processes that send: stopped, killed, never started, behind and ahead."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from deadlines import SOON_S
from fleet import select
from real_synapse import Admin, RealSynapse, remote_of
from synapse.config.workers import ShardedWorkerHandlingConfig

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import MessageKind, RemoteServer

pytestmark = pytest.mark.e2e

NEVER_STARTED = "federation_sender_3"
ALL_SENDERS = [*FEDERATION_SENDERS, NEVER_STARTED]
SHARDS = ShardedWorkerHandlingConfig(ALL_SENDERS)

OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"

# After a minute a process is gone, and it is read within some seconds.
GONE_S = 120


def senders(client: Admin) -> dict[str | None, dict[str, Any]]:
    found = client.v2("summary")["senders"]
    return {sender["instance"]: sender for sender in found}


def outlook(client: Admin) -> str:
    return str(client.v2("summary")["outlook"]["verdict"])


def wait_for_state(client: Admin, state: str, *names: str) -> None:
    wait_until(
        lambda: {senders(client)[name]["state"] for name in names} == {state},
        f"{names} to be {state}",
        GONE_S,
        0.5,
    )


@contextmanager
def remotes(certificates: CertificateAuthority) -> Iterator[dict[str, RemoteServer]]:
    """Have a remote server of each sender that is started, by the sender's name."""
    with ExitStack() as stack:
        yield {
            sender: stack.enter_context(
                remote_of(sender, f"127.0.0.{number}", certificates, SHARDS)
            )
            for number, sender in enumerate(FEDERATION_SENDERS, start=170)
        }


def test_cluster(tmp_path: Path) -> None:
    """Who does not run is told from whichever process is asked, and never as told."""
    config = {"federation_sender_instances": ALL_SENDERS}
    with (
        RealSynapse(tmp_path, workers=True, extra_config=config) as synapse,
        remotes(synapse.certificates) as found,
    ):
        client, worker = synapse.as_admin(), synapse.as_admin(GENERIC_WORKER)
        room_id = client.create_room()
        for remote in found.values():
            remote.join_room(room_id, synapse.server_name)
        client.send_message(room_id, "to all")
        for remote in found.values():
            remote.wait_for_message(MessageKind.PDU, "to all", SOON_S)
        one, two = FEDERATION_SENDERS
        wait_for_state(client, "running", one, two)
        assert senders(client)[NEVER_STARTED]["state"] == "never_seen"
        assert outlook(client) == "us"

        synapse.process(two).pause()
        synapse.process(one).kill()
        wait_for_state(worker, "gone", one, two)
        client.send_message(room_id, "not yet")
        name = found[two].server_name
        wait_until(
            lambda: client.detail(name)["not_yet_queued"], "an event to wait", SOON_S
        )
        one_of = worker.detail(name)
        assert one_of["status"] == "online"
        assert one_of["sender"]["instance"] == two
        assert one_of["sender"]["state"] == "gone"
        assert one_of["sender"]["behind_events"] >= 1
        report = worker.diagnose(name)
        is_ = [report[key] for key in ("verdict", "kind", "reason", "fault")]
        assert is_ == ["failing", "sender_down", "sender_gone", "us"], report
        for text in (report["explanation"], report["advice"]):
            assert two in text
            assert "does not help" not in text
        answer = client.reconnect(name)
        # It has got all that it was sent before; what is new is in no table.
        assert answer["outcome"] == "not_sent"
        assert set(answer["not_running"]) == set(ALL_SENDERS)
        assert not set(answer["told"]) & set(ALL_SENDERS)

        synapse.process(two).resume()
        synapse.start(one)
        wait_for_state(client, "running", one, two)
        # Synapse looks at all new events when there is another.
        client.create_room()
        for remote in found.values():
            remote.wait_for_message(MessageKind.PDU, "not yet", SOON_S)
        wait_until(
            lambda: client.detail(name)["not_yet_queued"] == 0, "none to wait", SOON_S
        )
        assert client.reconnect(name)["not_running"] == [NEVER_STARTED]
        wait_until(
            lambda: worker.diagnose(name)["verdict"] == "ok", "all to be well", SOON_S
        )

        # It says that it ends.
        synapse.stop(one)
        wait_for_state(client, "gone", one)
        states = {
            each["instance"]: (each["state"], each["sends"])
            for each in worker.v2("instances")["instances"]
        }
        assert states == {
            "main": ("running", False),
            GENERIC_WORKER: ("running", False),
            one: ("gone", True),
            two: ("running", True),
            NEVER_STARTED: ("never_seen", True),
        }


def test_nobody(tmp_path: Path) -> None:
    """One process that is told not to send says that nobody does."""
    config = {"send_federation": False}
    with (
        RealSynapse(tmp_path, extra_config=config) as synapse,
        RemoteServer("127.0.0.174", synapse.certificates) as remote,
    ):
        client = synapse.as_admin()
        room_id = client.create_room()
        remote.join_room(room_id, synapse.server_name)
        client.send_message(room_id, "to nobody")
        select(
            synapse,
            "INSERT INTO destinations (destination, last_successful_stream_ordering) "
            f"VALUES ('{remote.server_name}', 1)",
        )
        answer = client.reconnect(remote.server_name)
        assert answer["outcome"] == "not_sent"
        assert (answer["told"], answer["not_running"]) == ([], [])
        found = client.detail(remote.server_name)
        assert found["status"] == "online"
        assert found["sender"]["instance"] is None
        assert found["sender"]["state"] == "nobody"
        assert found["not_yet_queued"] >= 1
        assert list(senders(client)) == [None]
        assert outlook(client) == "us"


def test_ahead(tmp_path: Path) -> None:
    """A position beyond the newest event is told, and put back as the docs say."""
    with (
        RealSynapse(tmp_path) as synapse,
        RemoteServer("127.0.0.175", synapse.certificates) as remote,
    ):
        client = synapse.as_admin()
        room_id = client.create_room()
        remote.join_room(room_id, synapse.server_name)
        client.send_message(room_id, "before")
        remote.wait_for_message(MessageKind.PDU, "before", SOON_S)
        wait_for_state(client, "running", "main")
        assert outlook(client) == "normal"

        synapse.stop()
        select(
            synapse,
            "UPDATE federation_stream_position SET stream_id = stream_id + 1000 "
            "WHERE type = 'events'",
        )
        synapse.start()
        client.send_message(room_id, "after")
        found = client.detail(remote.server_name)
        assert found["status"] == "online"
        assert found["sender"]["state"] == "running"
        assert 900 < found["sender"]["ahead_events"] <= 1000
        assert outlook(client) == "us"

        diagnosis = client.diagnose(remote.server_name)
        assert (diagnosis["verdict"], diagnosis["kind"]) == ("failing", "sender_behind")
        assert diagnosis["reason"] == "position_ahead"
        (stage,) = [s for s in diagnosis["stages"] if s["name"] == "sender"]
        assert stage["findings"]["queued_position"] < found["sender"]["position"] - 900
        synapse.stop()
        (statement,) = re.findall(
            "```sql\n(UPDATE federation_stream_position.*?)```",
            OPERATIONS.read_text(),
            re.DOTALL,
        )
        statement = statement.replace("federation_sender1", "master")
        queued = str(stage["findings"]["queued_position"])
        statement = " ".join(statement.replace("4711", queued).split())
        assert statement in diagnosis["advice"]
        select(synapse, statement)
        synapse.start()
        # Synapse looks at all new events when there is another.
        client.create_room()
        remote.wait_for_message(MessageKind.PDU, "after", SOON_S)
        assert senders(client)["main"]["ahead_events"] == 0
