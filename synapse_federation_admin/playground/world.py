# SPDX-License-Identifier: Apache-2.0
"""The whole playground: a Synapse, an admin, and remote servers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import Json, MatrixClient, User
from synapse_federation_admin.playground.configuration import merged
from synapse_federation_admin.playground.names import Names
from synapse_federation_admin.playground.population import (
    NEIGHBOURS,
    PEOPLE,
    ROOMS,
    Neighbour,
    make_older,
    without_names,
)
from synapse_federation_admin.playground.processes import claim, free_port, wait_until
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)
from synapse_federation_admin.playground.synapse import SynapseServer, say_nothing

HEALTHY_MESSAGE = "Hello, everybody!"
WAITING_MESSAGE = "Are you still there?"
WAITING_TO_DEVICE = "A key that must not get lost"

# The first of each behaviour, which a small playground has.
_FIRST = 7
# 127.0.0.1 is Synapse's own.
_ADDRESSES = [f"127.0.0.{number}" for number in range(2, 2 + len(NEIGHBOURS))]
_WORKING = (Behaviour.HEALTHY, Behaviour.SLOW)
# Where a real server listens.
_PORT = 8448

# Generous: these are for a machine that is busy with something else.
_DELIVERY_TIMEOUT_S = 60
_FAILURE_TIMEOUT_S = 90


# One of the remote servers never answers: nobody wants to wait long to be told so.
_MODULE_CONFIG = {"diagnosis": {"timeout": "4s"}}

# What is written to a table of Synapse's is true at once.
_NOTHING_REMEMBERED = {
    "caches": {"per_cache_factors": {"get_destination_retry_timings": 0}}
}


class Playground:
    """Remote servers that share rooms with a real Synapse, most of them failing.

    Seven that share one room, five of them failing; populated, thirty, and people, in
    rooms with names.

    Entering the context starts everything; leaving it stops everything. `prepare` makes
    the failures. Rows, retry timings and backlog are Synapse's own doing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_populated: bool = False,
        module_config: Mapping[str, Any] | None = _MODULE_CONFIG,
        extra_config: Mapping[str, Any] | None = None,
        progress: Callable[[str], None] = say_nothing,
        **synapse: Any,
    ) -> None:
        """Describe a playground.

        Args:
            folder: an existing folder for everything that is written.
            is_populated: have more servers, rooms and people, and a made-up history.
            module_config: as `SynapseServer` has it.
            extra_config: likewise.
            progress: is told about each step when it begins.
            synapse: what else `SynapseServer` is described with.
        """
        self.folder = folder
        self.progress = progress
        certificates = folder / "certificates"
        certificates.mkdir(mode=0o700, exist_ok=True)
        self.certificates = CertificateAuthority(certificates)
        self.is_populated = is_populated
        self.servers = self._make_servers()
        """What each remote server is meant to be, and the server."""
        self.remotes: dict[Behaviour, RemoteServer] = {}
        """The first for each behaviour."""
        for neighbour, remote in self.servers:
            self.remotes.setdefault(neighbour.behaviour, remote)
        if is_populated:
            extra_config = merged(_NOTHING_REMEMBERED, extra_config or {})
        self.synapse = SynapseServer(
            folder / "synapse",
            self.certificates,
            module_config=module_config,
            extra_config=extra_config,
            wrapper=self._names.wrapper if self._names else (),
            progress=progress,
            **synapse,
        )
        self.rooms: dict[str, str] = {}
        """The room IDs, by name."""
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
        return [
            remote
            for neighbour, remote in self.servers
            if neighbour.behaviour not in _WORKING
        ]

    def behaviour_of(self, server_name: str) -> Behaviour | None:
        """Return how a remote server behaves now, or None if it is none of ours."""
        for _, remote in self.servers:
            if remote.server_name == server_name:
                return remote.behaviour
        return None

    def _make_servers(self) -> list[tuple[Neighbour, RemoteServer]]:
        self._names: Names | None = None
        neighbours: Sequence[Neighbour] = NEIGHBOURS
        if not self.is_populated:
            neighbours = NEIGHBOURS[:_FIRST]
        port = 0
        if self.is_populated:
            known = zip((n.name for n in neighbours), _ADDRESSES, strict=True)
            names = Names(self.folder / "names", dict(known))
            if names.can_be_used():
                self._names = names
            else:
                neighbours = [without_names(neighbour) for neighbour in neighbours]
            port = _PORT if claim(f"port {_PORT}") else free_port(_ADDRESSES[0])
        return [
            (
                neighbour,
                RemoteServer(
                    address,
                    self.certificates,
                    port=port,
                    name=neighbour.name if self._names else "",
                    names=self._names,
                    expired_for_s=neighbour.failing_for_s or 86_400,
                ),
            )
            for neighbour, address in zip(neighbours, _ADDRESSES, strict=False)
        ]

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
            self.progress(f"Starting {len(self.servers)} remote servers")
            for _, remote in self.servers:
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
        self.settle()
        self.break_some()

    def settle(self) -> None:
        """Make a healthy federation: all of them have got a message.

        Raises:
            PlaygroundError: a step did not succeed in time; the text says which.
        """
        remotes = [remote for _, remote in self.servers]
        self.progress("Joining all of them to rooms, over federation")
        self._make_rooms()
        self.progress("Delivering a message to all of them")
        self._say(HEALTHY_MESSAGE)
        self._wait_for_delivery(remotes, HEALTHY_MESSAGE)
        wait_until(
            lambda: all(self._delivered_once(remote) for remote in remotes),
            "Synapse to note that each of them has got something",
            _DELIVERY_TIMEOUT_S,
        )

    def break_some(self) -> None:
        """Break those that are meant to fail, and wait until Synapse knows.

        Raises:
            PlaygroundError: a step did not succeed in time; the text says which.
        """
        remotes = [remote for _, remote in self.servers]
        self.progress(f"Breaking {len(self.failing)} of them, and sending again")
        for neighbour, remote in self.servers:
            remote.switch(neighbour.behaviour)
        self._say(WAITING_MESSAGE)
        for remote in remotes:
            self.client.send_to_device(f"@x:{remote.server_name}", WAITING_TO_DEVICE)
        self.progress("Waiting until Synapse has given up on those that fail")
        wait_until(
            lambda: all(self._backing_off(remote) for remote in self.failing),
            "Synapse to back off from the servers that fail",
            _FAILURE_TIMEOUT_S,
        )
        working = [r for n, r in self.servers if n.behaviour in _WORKING]
        self._wait_for_delivery(working, WAITING_MESSAGE)
        if self.is_populated:
            self._make_history()

    def _make_rooms(self) -> None:
        home = self.synapse.server_name
        if not self.is_populated:
            self.room_id = self.client.create_room()
            self.rooms[""] = self.room_id
            for _, remote in self.servers:
                remote.join_room(self.room_id, home)
            return
        people = {name: self.synapse.create_user(name) for name in PEOPLE}
        for room, members in ROOMS.items():
            self.rooms[room] = self.client.create_room(room)
            for name in members:
                client = self.synapse.client(people[name])
                client.join(self.rooms[room])
        for neighbour, remote in self.servers:
            for room in neighbour.rooms:
                remote.join_room(self.rooms[room], home)

    def _say(self, text: str) -> None:
        for room_id in self.rooms.values():
            self.client.send_message(room_id, text)

    def _make_history(self) -> None:
        self.progress("Making up for how long they have failed")

        def recorded() -> bool:
            kinds = self.client.last_failure_kinds()
            return all(kinds.get(remote.server_name) for remote in self.failing)

        wait_until(recorded, "what they failed with to be recorded", 60)
        servers = [
            (remote.server_name, neighbour) for neighbour, remote in self.servers
        ]
        make_older(self.synapse, servers)

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
