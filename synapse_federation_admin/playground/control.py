# SPDX-License-Identifier: Apache-2.0
"""A switchboard: change a remote server's behaviour with curl while playing.

GET /                  every remote server and how it behaves
PUT /<server name>     the body names a behaviour, such as `healthy` or `down`
GET /console/<secret>  sign a browser in to the console, once
"""

import hashlib
import hmac
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.processes import free_port
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground


class Control:
    """Serves the switchboard on 127.0.0.1 while its context lasts."""

    def __init__(self, playground: Playground) -> None:
        """Describe a switchboard for a playground's remote servers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        secret = secrets.token_urlsafe(16)
        self.sign_in_url = f"{self.url}/console/{secret}"
        """Signs who opens it first in to the console, as the admin, and nobody else."""
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.playground = playground
        self._server.sign_in_paths = [f"/console/{secret}"]

    def __enter__(self) -> "Control":
        """Begin to serve."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    playground: Playground
    # What is left of it.
    sign_in_paths: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path.startswith("/console/"):
            self._sign_in()
            return
        if self.path != "/":
            self._answer(404, {"error": "There is only /"})
            return
        remotes = [remote for _, remote in self.server.playground.servers]
        self._answer(
            200,
            {remote.server_name: remote.behaviour.name.lower() for remote in remotes},
        )

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        wanted = self.rfile.read(length).decode("utf-8", "replace").strip()
        names = {behaviour.name.lower(): behaviour for behaviour in Behaviour}
        server_name = unquote(self.path[1:])
        for _, remote in self.server.playground.servers:
            if remote.server_name == server_name:
                break
        else:
            self._answer(404, {"error": f"No remote server is called {server_name}"})
            return
        if wanted not in names:
            self._answer(400, {"error": f"The body must be one of {', '.join(names)}"})
            return
        remote.switch(names[wanted])
        self._answer(200, {server_name: wanted})

    def _sign_in(self) -> None:
        try:
            expected = self.server.sign_in_paths.pop()
        except IndexError:
            self._answer(410, {"error": "This link has been used: it works once"})
            return
        if not hmac.compare_digest(expected.encode(), self.path.encode()):
            self.server.sign_in_paths.append(expected)
            self._answer(404, {"error": "There is only the link that was printed"})
            return
        # What the console itself has a browser keep, with the access token of the admin
        # as if it had been pasted. Cookies are one for all ports of a host.
        token = quote(self.server.playground.admin.access_token, safe="")
        session = f"{secrets.token_urlsafe(16)}.p.{token}"
        self.send_response(303)
        self.send_header("Location", f"{self.server.playground.synapse.url()}{CONSOLE}")
        name = self.server.playground.synapse.server_name
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        cookie = f"federation_admin_session_{digest}={session}"
        self.send_header(
            "Set-Cookie", f"{cookie}; Path={CONSOLE}; HttpOnly; SameSite=Lax"
        )
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the terminal is for the playground's own text."""

    def _answer(self, status: int, answer: dict[str, str]) -> None:
        body = json.dumps(answer, indent=1).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
