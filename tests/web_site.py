# SPDX-License-Identifier: Apache-2.0
"""A small web site on a real socket, for what stands in for other people's services."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attr
from listener import Listener, Request, requests


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Asked:
    """A request: parameters of its address and of its form, and its JSON."""

    method: str
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    json: Any
    authorization: str


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Answer:
    status: int
    body: bytes
    media_type: str = "application/json"
    location: str | None = None


def as_json(content: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode())


def page(html: str, status: int = 200) -> Answer:
    body = f"<!doctype html><title>A page</title>{html}".encode()
    return Answer(status, body, "text/html; charset=utf-8")


def see(address: str) -> Answer:
    return Answer(303, b"", location=address)


class WebSite:
    """Answers `GET /a/b` by the method `get_a_b`; until the context is left."""

    def __init__(
        self, address: str, port: int, context: ssl.SSLContext | None = None
    ) -> None:
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://{address}:{port}"
        # While it is away: what it answers.
        self.fails_with: HTTPStatus | None = None
        # What it answers instead of what it should, as JSON: by path.
        self.instead: dict[str, Any] = {}
        # What was asked for: `POST /oauth2/token`.
        self.asked: list[str] = []
        self._lock = threading.Lock()
        self._context = context
        self._listener = Listener(address, port, self._serve)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            # One: some take a connection that is about to be closed for their next.
            for request in islice(requests(connection), 1):
                connection.sendall(self._answered(request))

    def _answered(self, request: Request) -> bytes:
        is_json = "json" in request.headers.get("Content-Type", "")
        target = urlsplit(request.target)
        asked = Asked(
            request.method,
            target.path,
            dict(parse_qsl(target.query)),
            {} if is_json else dict(parse_qsl(request.body.decode())),
            json.loads(request.body) if is_json and request.body else None,
            request.headers.get("Authorization", ""),
        )
        with self._lock:
            self.asked.append(f"{asked.method} {asked.path}")
            answer = self._answer(asked)
        head = [
            f"HTTP/1.1 {int(answer.status)} Answered",
            f"Content-Type: {answer.media_type}",
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
            *([] if answer.location is None else [f"Location: {answer.location}"]),
        ]
        return "\r\n".join([*head, "", ""]).encode() + answer.body

    def _answer(self, asked: Asked) -> Answer:
        if self.fails_with is not None:
            return page("Away", self.fails_with)
        if asked.path in self.instead:
            content = self.instead[asked.path]
            is_error = isinstance(content, dict) and "error" in content
            return as_json(content, 400 if is_error else 200)
        name = asked.path.strip("/").replace("/", "_").replace(".", "").replace("-", "")
        handle: Callable[[Asked], Answer] | None = getattr(
            self, f"{asked.method.lower()}_{name}", None
        )
        if handle is None:
            return page("No such page", 404)
        return handle(asked)
