# SPDX-License-Identifier: Apache-2.0
"""Servers of a test's own that leave no socket and no thread behind.

A socket on which another thread waits keeps its address after it was closed, until that
thread wakes; and one that nobody closes is a warning in whichever test runs when it is
collected. So whatever listens in tests does it by this.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.message import Message
from http.client import parse_headers
from typing import Any

import attr

# How long a connection may take to find out that it is over.
_END_S = 20

Serve = Callable[[socket.socket], None]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Request:
    method: str
    target: str
    headers: Message
    body: bytes


def requests(connection: Any) -> Iterator[Request]:
    """Yield the HTTP requests of a connection, as they come.

    All of each is read: a connection that is closed before is reset.
    """
    with connection.makefile("rb") as stream:
        while line := stream.readline().decode("latin-1"):
            method, target, _ = line.split(" ", 2)
            headers = parse_headers(stream)
            body = stream.read(int(headers.get("Content-Length", 0)))
            yield Request(method, target, headers, body)


def reset(connection: socket.socket) -> None:
    """Have a connection be reset when it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Listener:
    """Listens at an address, and serves each connection in a thread of its own."""

    def __init__(
        self, address: str, port: int, serve: Serve, *, backlog: int = 100
    ) -> None:
        """Begin to listen.

        Args:
            address: An IPv4 or IPv6 address.
            port: The port.
            serve: Serves a connection, which is closed when it returns; its OSErrors
                and ValueErrors end the connection.
            backlog: How many connections wait to be accepted.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._serve = serve
        self._lock = threading.Lock()
        self._is_over = False
        # By duplicates connections are ended whose sockets other threads are using.
        self._open: dict[threading.Thread, socket.socket] = {}
        self._socket = socket.create_server(
            (address, port), family=family, backlog=backlog
        )
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the address back and end every connection."""
        with self._lock:
            self._is_over = True
            threads = dict(self._open)
            # Wakes the thread that accepts; merely closing does not.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            for handle in threads.values():
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)
        self._accepting.join(_END_S)
        self._socket.close()
        for thread in threads:
            thread.join(_END_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve_one, args=(connection,), daemon=True
            )
            with self._lock:
                if self._is_over:
                    connection.close()
                    return
                self._open[thread] = connection.dup()
                thread.start()

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError, ValueError), connection:
                self._serve(connection)
        finally:
            with self._lock:
                handle = self._open.pop(threading.current_thread())
                handle.close()
