# SPDX-License-Identifier: Apache-2.0
"""Fake remote homeservers: real sockets, real TLS, and faults at will.

A `RemoteServer` can join a room over federation like any server, so Synapse's own
queues, retry timings and backlog come from Synapse's own failures.
"""

import socket
import ssl
import threading
from contextlib import suppress

import httpx

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import Json, answer_to, quoted
from synapse_federation_admin.playground.names import Names
from synapse_federation_admin.playground.processes import free_port
from synapse_federation_admin.playground.records import (
    Behaviour,
    Message,
    MessageKind,
    Records,
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

# While it behaves like that, its port is closed.
_CLOSED = (Behaviour.DOWN, Behaviour.NO_NAME)

# What a web server says to a TLS handshake at a port that is not for it.
_PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


class RemoteServer(Records):
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
        super().__init__(self.server_name, slowness_s)
        self._names = names
        self._expired_for_s = expired_for_s
        self._certificates = certificates
        self._context = self._good_context = certificates.valid(self.host)
        self._client_context = certificates.client_context()
        self._behaviour = Behaviour.HEALTHY
        self._socket: socket.socket | None = None
        self._listening = False
        # Duplicates of the accepted sockets: shutting one down ends the connection
        # without touching the TLS object that another thread is using.
        self._open: set[socket.socket] = set()

    @property
    def behaviour(self) -> Behaviour:
        """How it behaves now."""
        return self._behaviour

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
            self.saw_connection()
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
