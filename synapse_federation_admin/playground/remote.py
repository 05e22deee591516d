# SPDX-License-Identifier: Apache-2.0
"""Fake remote homeservers: real sockets, real TLS, and faults at will.

A `RemoteServer` can join a room over federation like any server, so Synapse's own
queues, retry timings and backlog come from Synapse's own failures.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import httpx

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import Json, answer_to, quoted
from synapse_federation_admin.playground.events import Identity
from synapse_federation_admin.playground.names import Names
from synapse_federation_admin.playground.processes import WaitTimeoutError, free_port
from synapse_federation_admin.playground.records import (
    Behaviour,
    Message,
    MessageKind,
    Request,
)
from synapse_federation_admin.playground.remote_http import Handler

__all__ = [
    "Behaviour",
    "Message",
    "MessageKind",
    "RemoteServer",
    "Request",
]

T = TypeVar("T")

Special = Callable[[str, bytes], tuple[int, Json] | None]


# While it behaves like that, its port is closed.
_CLOSED = (Behaviour.DOWN, Behaviour.NO_NAME)

# What a web server says to a TLS handshake at a port that is not for it.
_PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


class RemoteServer:
    """A remote homeserver whose behaviour can be switched while it runs.

    Its threads serve from `start` (or from entering the context) to `stop`. While it is
    DOWN, its port stays bound, but not listening: nobody else gets it.
    """

    def __init__(
        self,
        address: str,
        certificates: CertificateAuthority,
        *,
        port: int = 0,
        name: str = "",
        names: Names | None = None,
        slowness_s: float = 2,
        expired_for_s: int = 86_400,
    ) -> None:
        """Describe a server.

        Args:
            address: an address in 127.0.0.0/8.
            certificates: who issues its certificates.
            port: where it listens; 0 chooses a free one.
            name: its host name; it has none, but its address, if that is empty.
            names: what knows the host name, and forgets it while it has NO_NAME.
            slowness_s: seconds that each answer takes while it is SLOW.
            expired_for_s: how long ago an EXPIRED_CERTIFICATE of it ended.
        """
        self.address = address
        self.port = port or free_port(address)
        self.host = name or address
        self.server_name = f"{self.host}:{self.port}"
        self._names = names
        self.slowness_s = slowness_s
        self._expired_for_s = expired_for_s
        # What it answers otherwise than its behaviour says: status and body, by path
        # and body; None: as ever.
        self.special: Special = lambda _path, _body: None
        self.identity = Identity(self.server_name)
        self._certificates = certificates
        self._context = self._good_context = certificates.valid(self.host)
        self._client_context = certificates.client_context()
        self._behaviour = Behaviour.HEALTHY
        self._news = threading.Condition()
        self._connections: list[float] = []
        self._requests: list[Request] = []
        self._messages: list[Message] = []
        self._transactions: set[str] = set()
        self._socket: socket.socket | None = None
        self._listening = False
        # Duplicates of the accepted sockets: shutting one down ends the connection
        # without touching the TLS object that another thread is using.
        self._open: set[socket.socket] = set()

    # What it has seen.

    @property
    def behaviour(self) -> Behaviour:
        """How it behaves now."""
        return self._behaviour

    @property
    def connections(self) -> list[float]:
        """When it accepted each connection, as `time.monotonic()`, oldest first."""
        with self._news:
            return list(self._connections)

    @property
    def requests(self) -> list[Request]:
        """The requests that it has read, oldest first."""
        with self._news:
            return list(self._requests)

    @property
    def messages(self) -> list[Message]:
        """The PDUs and to-device messages that it has received, oldest first."""
        with self._news:
            return list(self._messages)

    def wait_for_connection(self, since: float, timeout_s: float) -> float:
        """Wait for a connection accepted at or after a `time.monotonic()`; return when.

        Raises:
            WaitTimeoutError: there was none for `timeout_s` seconds.
        """
        return self._wait_for(
            self._connections, lambda at: at >= since, "a connection", timeout_s
        )

    def wait_for_request(
        self, since: float, timeout_s: float, path: str = ""
    ) -> Request:
        """Wait for a request, read at or after a `time.monotonic()`.

        Args:
            since: seconds, as `time.monotonic()`.
            timeout_s: seconds.
            path: what its path must contain.

        Raises:
            WaitTimeoutError: there was none for `timeout_s` seconds.
        """
        return self._wait_for(
            self._requests,
            lambda request: request.monotonic >= since and path in request.path,
            f"a request for …{path}…",
            timeout_s,
        )

    def wait_for_message(
        self, kind: MessageKind, text: str, timeout_s: float
    ) -> Message:
        """Wait for a message with a text in its content, or find it if it is here.

        Raises:
            WaitTimeoutError: there was none for `timeout_s` seconds.
        """
        return self._wait_for(
            self._messages,
            lambda message: message.kind is kind and message.has(text),
            f"the {kind.value} {text!r}",
            timeout_s,
        )

    def _wait_for(
        self, seen: list[T], wanted: Callable[[T], bool], what: str, timeout_s: float
    ) -> T:
        def find() -> T | None:
            return next((item for item in seen if wanted(item)), None)

        with self._news:
            found = self._news.wait_for(find, timeout_s)
        if found is None:
            raise WaitTimeoutError(
                f"Waited {timeout_s:g} s for {what} to reach {self.server_name}"
            )
        return found

    # Running.

    def __enter__(self) -> "RemoteServer":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self, behaviour: Behaviour = Behaviour.HEALTHY) -> None:
        """Take the port and begin to behave as told."""
        self._behave(behaviour)
        self._bind()
        if behaviour not in _CLOSED:
            self._listen()

    def stop(self) -> None:
        """Give the port back and end every connection."""
        self._close_port()
        self._close_connections()

    def switch(self, behaviour: Behaviour) -> None:
        """Behave differently from now on, also towards those already connected."""
        self._behave(behaviour)
        if behaviour in _CLOSED:
            self._close_port()
            self._bind()
        elif not self._listening:
            self._listen()
        self._close_connections()

    def _behave(self, behaviour: Behaviour) -> None:
        ca = self._certificates
        make = {
            Behaviour.EXPIRED_CERTIFICATE: lambda h: ca.expired(h, self._expired_for_s),
            Behaviour.WRONG_NAME_CERTIFICATE: lambda _: ca.wrong_name(),
            Behaviour.UNTRUSTED_CERTIFICATE: ca.untrusted,
        }.get(behaviour)
        self._context = self._good_context if make is None else make(self.host)
        if self._names is not None:
            self._names.know(self.host, behaviour is not Behaviour.NO_NAME)
        self._behaviour = behaviour

    def _bind(self) -> None:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Connections of before may still be in TIME_WAIT.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.address, self.port))
        except OSError:
            bound.close()
            raise
        self._socket = bound

    def _listen(self) -> None:
        assert self._socket is not None
        self._socket.listen(64)
        self._listening = True
        threading.Thread(
            target=self._accept,
            args=(self._socket,),
            name=f"remote {self.server_name}",
            daemon=True,
        ).start()

    def _close_port(self) -> None:
        self._listening = False
        if self._socket is not None:
            # Wakes the thread that accepts; merely closing does not.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None

    def _close_connections(self) -> None:
        with self._news:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            behaviour = self._behaviour
            handle = accepted.dup()
            with self._news:
                self._open.add(handle)
                self._connections.append(time.monotonic())
                self._news.notify_all()
            threading.Thread(
                target=self._serve,
                args=(accepted, handle, behaviour, self._context),
                daemon=True,
            ).start()

    def _serve(
        self,
        accepted: socket.socket,
        handle: socket.socket,
        behaviour: Behaviour,
        context: ssl.SSLContext,
    ) -> None:
        try:
            if behaviour is Behaviour.HANGING:
                while accepted.recv(65536):
                    pass
                return
            if behaviour is Behaviour.PLAIN_HTTP:
                accepted.recv(65536)
                accepted.sendall(_PLAIN_HTTP)
                return
            accepted.settimeout(30)
            with context.wrap_socket(accepted, server_side=True) as connection:
                connection.settimeout(None)
                Handler(connection, self, behaviour)
        except (OSError, ssl.SSLError, ValueError):
            # The client went away, disliked our certificate, or we were switched.
            pass
        finally:
            accepted.close()
            with self._news:
                self._open.discard(handle)
            handle.close()

    # Called by the connections' threads.

    def saw_request(self, path: str) -> None:
        """Remember a request."""
        with self._news:
            self._requests.append(Request(time.monotonic(), path))
            self._news.notify_all()

    def saw_transaction(self, transaction_id: str, transaction: Json) -> None:
        """Remember what a transaction carried, unless it is a repetition."""
        carried = [
            *((MessageKind.PDU, pdu["content"]) for pdu in transaction.get("pdus", [])),
            *(
                (MessageKind.TO_DEVICE, edu["content"])
                for edu in transaction.get("edus", [])
                if edu["edu_type"] == "m.direct_to_device"
            ),
        ]
        now = time.monotonic()
        with self._news:
            if transaction_id not in self._transactions:
                self._transactions.add(transaction_id)
                self._messages += [Message(now, *each) for each in carried]
                self._news.notify_all()

    # Speaking to others.

    def join_room(
        self, room_id: str, homeserver: str, localpart: str = "x"
    ) -> tuple[str, str]:
        """Join a room over federation: make_join, then send_join.

        Args:
            room_id: a room of version 11 that anybody may join.
            homeserver: the server name, host:port, of a server that is in the room.
            localpart: who of this server joins.

        Returns:
            The user id of who joined, and the id of the member event.

        Raises:
            ApiError: the homeserver refused.
        """
        user_id = f"@{localpart}:{self.server_name}"
        with httpx.Client(
            base_url=f"https://{homeserver}",
            verify=self._client_context,
            timeout=60,
            trust_env=False,
        ) as client:
            made = self._request(
                client,
                "GET",
                homeserver,
                f"/_matrix/federation/v1/make_join/{quoted(room_id)}/{quoted(user_id)}"
                "?ver=11",
            )
            event_id, event = self.identity.join_event(made["event"])
            self._request(
                client,
                "PUT",
                homeserver,
                f"/_matrix/federation/v2/send_join/{quoted(room_id)}/{quoted(event_id)}",
                event,
            )
        return user_id, event_id

    def _request(
        self,
        client: httpx.Client,
        method: str,
        homeserver: str,
        uri: str,
        content: Json | None = None,
    ) -> Json:
        request = client.build_request(method, uri, json=content)
        # Signed is what is really sent, however httpx chose to write it.
        request.headers["Authorization"] = self.identity.authorization(
            method, request.url.raw_path.decode("ascii"), homeserver, content
        )
        return answer_to(request, client)
