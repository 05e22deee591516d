# SPDX-License-Identifier: Apache-2.0
"""The whole playground: a Synapse, an admin, and seven remote servers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import Json, MatrixClient, User
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)
from synapse_federation_admin.playground.synapse import SynapseServer, say_nothing

HEALTHY_MESSAGE = "Hello, everybody!"
WAITING_MESSAGE = "Are you still there?"
WAITING_TO_DEVICE = "A key that must not get lost"

# 127.0.0.1 is Synapse's own.
_ADDRESSES = {
    behaviour: f"127.0.0.{number}" for number, behaviour in enumerate(Behaviour, 2)
}
_WORKING = (Behaviour.HEALTHY, Behaviour.SLOW)

# Generous: these are for a machine that is busy with something else.
_DELIVERY_TIMEOUT_S = 60
_FAILURE_TIMEOUT_S = 90


# One of the remote servers never answers: nobody wants to wait long to be told so.
_MODULE_CONFIG = {"diagnosis": {"timeout": "4s"}}


class Playground:
    """Seven remote servers that share a room with a real Synapse, five of them failing.

    Entering the context starts everything; leaving it stops everything. `prepare` makes
    the failures. Rows, retry timings and backlog are Synapse's own doing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: bool = False,
        module_config: Mapping[str, Any] | None = _MODULE_CONFIG,
        extra_config: Mapping[str, Any] | None = None,
        extra_listeners: Sequence[Mapping[str, Any]] = (),
        progress: Callable[[str], None] = say_nothing,
    ) -> None:
        """Describe a playground.

        Args:
            folder: an existing folder for everything that is written.
            workers: run Synapse with workers, PostgreSQL and Redis.
            module_config: the module's configuration; None for a stock Synapse.
            extra_config: merged into homeserver.yaml.
            extra_listeners: more listeners of the main process.
            progress: is told about each step when it begins.
        """
        self.folder = folder
        self.workers = workers
        self.progress = progress
        certificates = folder / "certificates"
        certificates.mkdir(mode=0o700, exist_ok=True)
        self.certificates = CertificateAuthority(certificates)
        self.synapse = SynapseServer(
            folder / "synapse",
            self.certificates,
            workers=workers,
            module_config=module_config,
            extra_config=extra_config,
            extra_listeners=extra_listeners,
            progress=progress,
        )
        self.remotes = {
            behaviour: RemoteServer(address, self.certificates)
            for behaviour, address in _ADDRESSES.items()
        }
        """By the behaviour that each is meant to show."""
        self.room_id = ""
        self._admin: User | None = None
        self._client: MatrixClient | None = None
        self._stack = ExitStack()

    @property
    def admin(self) -> User:
        """The server admin."""
        assert self._admin is not None, "the playground has not been started"
        return self._admin

    @property
    def client(self) -> MatrixClient:
        """A client of the main process that acts as the admin."""
        assert self._client is not None, "the playground has not been started"
        return self._client

    @property
    def failing(self) -> list[RemoteServer]:
        """The remote servers that are meant to fail."""
        return [self.remotes[b] for b in Behaviour if b not in _WORKING]

    def behaviour_of(self, server_name: str) -> Behaviour | None:
        """Return how a remote server behaves now, or None if it is none of ours."""
        for remote in self.remotes.values():
            if remote.server_name == server_name:
                return remote.behaviour
        return None

    def __enter__(self) -> "Playground":
        """Start Synapse, the admin and the remote servers, all of them healthy.

        Raises:
            PlaygroundError: something did not start; the text says what.
        """
        with ExitStack() as stack:
            stack.enter_context(self.synapse)
            self.progress("Creating the admin")
            self._admin = self.synapse.create_user("admin", admin=True)
            self._client = self.synapse.client(self._admin)
            self.progress(f"Starting {len(self.remotes)} remote servers")
            for remote in self.remotes.values():
                stack.enter_context(remote)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything; the files stay."""
        self._stack.close()

    def prepare(self) -> None:
        """Make a healthy federation, then break it, and wait until Synapse knows.

        Raises:
            PlaygroundError: a step did not succeed in time; the text says which.
        """
        remotes = list(self.remotes.values())
        self.progress("Joining all of them to one room, over federation")
        self.room_id = self.client.create_room()
        for remote in remotes:
            remote.join_room(self.room_id, self.synapse.server_name)
        self.progress("Delivering a message to all of them")
        self.client.send_message(self.room_id, HEALTHY_MESSAGE)
        self._wait_for_delivery(remotes, HEALTHY_MESSAGE)
        wait_until(
            lambda: all(self._delivered_once(remote) for remote in remotes),
            "Synapse to note that each of them has got something",
            _DELIVERY_TIMEOUT_S,
        )
        self.progress("Breaking five of them, slowing one down, and sending again")
        for behaviour, remote in self.remotes.items():
            remote.switch(behaviour)
        self.client.send_message(self.room_id, WAITING_MESSAGE)
        for remote in remotes:
            self.client.send_to_device(f"@x:{remote.server_name}", WAITING_TO_DEVICE)
        self.progress("Waiting until Synapse has given up on those that fail")
        wait_until(
            lambda: all(self._backing_off(remote) for remote in self.failing),
            "Synapse to back off from the servers that fail",
            _FAILURE_TIMEOUT_S,
        )
        working = [self.remotes[behaviour] for behaviour in _WORKING]
        self._wait_for_delivery(working, WAITING_MESSAGE)

    def destinations(self) -> list[Json]:
        """List all destinations as the API gives them, latest failure first."""
        answer = self.client.destinations(order_by="failure_ts", dir="b")
        rows: list[Json] = answer["destinations"]
        return rows

    def _wait_for_delivery(self, remotes: Iterable[RemoteServer], text: str) -> None:
        for remote in remotes:
            remote.wait_for_message(MessageKind.PDU, text, _DELIVERY_TIMEOUT_S)

    def _delivered_once(self, remote: RemoteServer) -> bool:
        row = self.client.destination(remote.server_name)
        return row["last_successful_stream_ordering"] is not None

    def _backing_off(self, remote: RemoteServer) -> bool:
        row = self.client.destination(remote.server_name)
        return row["failure_ts"] is not None and row["retry_interval"] > 0
