# SPDX-License-Identifier: Apache-2.0
"""A small web site on a real socket, for what stands in for other people's services."""

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attr


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
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site._handle(self)

            def do_POST(self) -> None:
                site._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((address, port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        is_json = "json" in (handler.headers.get("Content-Type") or "")
        target = urlsplit(handler.path)
        asked = Asked(
            handler.command,
            target.path,
            dict(parse_qsl(target.query)),
            {} if is_json else dict(parse_qsl(body.decode())),
            json.loads(body) if is_json and body else None,
            handler.headers.get("Authorization") or "",
        )
        with self._lock:
            self.asked.append(f"{asked.method} {asked.path}")
            answer = self._answer(asked)
        handler.send_response(answer.status)
        handler.send_header("Content-Type", answer.media_type)
        handler.send_header("Content-Length", str(len(answer.body)))
        # Else some take a connection that is about to be closed for their next request.
        handler.send_header("Connection", "close")
        if answer.location is not None:
            handler.send_header("Location", answer.location)
        handler.end_headers()
        handler.wfile.write(answer.body)

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
