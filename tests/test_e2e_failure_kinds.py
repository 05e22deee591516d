# SPDX-License-Identifier: Apache-2.0
"""Why a destination can't be reconnected: every fault real, on real sockets."""

import datetime
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attr
import pytest
import trustme
from fleet import read_rows, write_failing
from laboratory import JSON, http
from listener import Listener

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

ADDRESS = "127.0.0.70"
BLOCKED = "127.9.0.1"
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Fault:
    """What a server does wrong.

    Attributes:
        kind: What that is to be called.
        answer: What it answers to a request; None: it closes the connection.
        certificate: What makes its TLS context; None: it speaks no TLS.
        repeats: Whether the end of the answer is sent again and again.
        says: What has to be in the message.
        greets: Whether it begins to speak before it is asked anything.
    """

    kind: str
    answer: bytes | None = http("200 OK", b"{}")
    certificate: str | None = "valid"
    repeats: bytes = b""
    says: str = ""
    greets: bool = False


HOSTILE = b'{"errcode": "M_\\u001b[31m\\n2026 forged", "error": "' + b"x" * 100_000

FAULTS: dict[str, Fault] = {
    "expired": Fault("tls_expired", certificate="expired"),
    "not yet valid": Fault("tls_not_yet_valid", certificate="early"),
    "wrong name": Fault("tls_wrong_name", certificate="wrong_name"),
    "other authority": Fault("tls_untrusted", certificate="other_authority"),
    "self-signed": Fault("tls_untrusted", certificate="self_signed"),
    "incomplete chain": Fault("tls_untrusted", certificate="incomplete"),
    "no TLS": Fault("tls_failed", certificate=None),
    "no TLS, greets": Fault(
        "tls_failed", b"SSH-2.0-OpenSSH_9.2\r\n", certificate=None, greets=True
    ),
    # Synapse's client does not tell how far it has come.
    "closes in the handshake": Fault("invalid_response", None, certificate=None),
    "401": Fault("rejected", http("401 Unauthorized", b"{}")),
    "403": Fault(
        "rejected",
        http("403 Forbidden", b'{"errcode": "M_FORBIDDEN", "error": "Not you"}'),
        says="HTTP 403 M_FORBIDDEN Not you",
    ),
    "404": Fault("http_error", http("404 Not Found", b"{}"), says="404"),
    "410": Fault("gone", http("410 Gone", b"")),
    "429": Fault("rate_limited", http("429 Too Many Requests", b"{}")),
    "500": Fault("http_error", http("500 Internal Server Error", b"{}"), says="500"),
    "502 in HTML": Fault(
        "http_error", http("502 Bad Gateway", b"<html>", b"Content-Type: text/html\r\n")
    ),
    "redirect": Fault(
        "http_error", http("301 Moved", b"", b"Location: https://example.org/\r\n")
    ),
    "HTML": Fault(
        "invalid_response", http("200 OK", b"<html>", b"Content-Type: text/html\r\n")
    ),
    "no content type": Fault("invalid_response", http("200 OK", b"{}", b"")),
    "broken JSON": Fault("invalid_response", http("200 OK", b"{")),
    "a list": Fault("invalid_response", http("200 OK", b"[1]")),
    "deep JSON": Fault("invalid_response", http("200 OK", b"[" * 50_000)),
    "no HTTP": Fault("invalid_response", b"SSH-2.0-OpenSSH_9.2\r\n" * 50),
    "closes": Fault("invalid_response", None),
    "cut body": Fault(
        "invalid_response",
        b"HTTP/1.1 200 OK\r\n" + JSON + b"Content-Length: 100\r\n\r\n{",
    ),
    "endless headers": Fault(
        "invalid_response",
        b"HTTP/1.1 200 OK\r\n",
        repeats=b"X-A: " + b"x" * 4096 + b"\r\n",
    ),
    "endless body": Fault(
        "invalid_response",
        b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n[",
        repeats=b'"x", ' * 1000,
    ),
    "hostile text": Fault("rejected", http("403 Forbidden", HOSTILE + b'"}')),
    "hostile text, short": Fault(
        "rejected",
        http(
            "403 Forbidden", b'{"errcode": "M_\\u001b[31m\\n2026", "error": "\\u2028x"}'
        ),
        says=r"HTTP 403 M_\x1b[31m\n2026 \u2028x",
    ),
    "hostile status": Fault("http_error", http("500 \x1b[31m\xff" + "x" * 9000, b"{}")),
    "hostile redirect": Fault(
        "http_error", http("302 Found", b"", b"Location: \x1b[31m\xff\r\n")
    ),
    "hostile content type": Fault(
        "invalid_response", http("200 OK", b"{}", b"Content-Type: \x1b[31m\xff\r\n")
    ),
}


class FaultyServer:
    """Serves one fault, over as many connections as come."""

    def __init__(self, fault: Fault, context: ssl.SSLContext | None) -> None:
        self._fault = fault
        self._context = context
        port = free_port(ADDRESS)
        self.name = f"{ADDRESS}:{port}"
        self.close = Listener(ADDRESS, port, self._answer).close

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            if self._context is not None:
                read_request(connection)
            elif not self._fault.greets:
                connection.recv(65536)
            if self._fault.answer is None:
                return
            connection.sendall(self._fault.answer)
            while self._fault.repeats:
                connection.sendall(self._fault.repeats)


def read_request(connection: socket.socket) -> None:
    """Read all of a request: if it was closed earlier, the answer might be lost."""
    length = 0
    with connection.makefile("rb") as stream:
        while line := stream.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        stream.read(length)


def contexts(
    folder: Path, certificates: CertificateAuthority
) -> dict[str, ssl.SSLContext]:
    """Return TLS contexts by what is wrong with their certificates."""
    authority = certificates._ca

    def context(leaf: trustme.LeafCert) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(made)
        return made

    between = authority.create_child_ca()
    leaf = between.issue_cert(ADDRESS)
    # The leaf without the authority between.
    (folder / "leaf.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    leaf.private_key_pem.write_to_path(folder / "leaf.key")
    incomplete = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    incomplete.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
    return {
        "valid": certificates.valid(ADDRESS),
        "expired": certificates.expired(ADDRESS),
        "wrong_name": certificates.wrong_name(),
        "early": context(
            authority.issue_cert(ADDRESS, not_before=NOW + DAY, not_after=NOW + 9 * DAY)
        ),
        "other_authority": context(trustme.CA().issue_cert(ADDRESS)),
        "incomplete": incomplete,
        "self_signed": self_signed(folder),
    }


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return a context whose certificate is its own authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "self.pem")
    authority.private_key_pem.write_to_path(folder / "self.key")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "self.pem", folder / "self.key")
    return made


@attr.s(slots=True, auto_attribs=True)
class Laboratory:
    synapse: SynapseServer
    client: MatrixClient
    names: dict[str, str]
    hanging: dict[str, str]


@contextmanager
def hanging_servers(context: ssl.SSLContext) -> Iterator[dict[str, str]]:
    """Run servers that never answer; yield their names, by where it hangs."""
    with ExitStack() as stack:

        def listen(backlog: int) -> tuple[socket.socket, str]:
            server = stack.enter_context(
                socket.create_server((ADDRESS, free_port(ADDRESS)), backlog=backlog)
            )
            return server, f"{ADDRESS}:{server.getsockname()[1]}"

        # Linux takes one connection more than that, and then ignores who connects.
        server, full = listen(0)
        stack.enter_context(socket.create_connection(server.getsockname()))
        # The kernel takes the connection, and nobody reads from it.
        _, silent = listen(100)

        def answer_nothing(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secure:
                while secure.recv(65536):
                    pass

        port = free_port(ADDRESS)
        stack.enter_context(Listener(ADDRESS, port, answer_nothing))
        yield {
            "connect": full,
            "handshake": silent,
            "answer": f"{ADDRESS}:{port}",
        }


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A homeserver, and a server for every fault, known and long failing."""
    folder = tmp_path_factory.mktemp("laboratory")
    certificates = CertificateAuthority(folder)
    made = contexts(folder, certificates)
    config = {
        "federation_ip_range_blacklist": ["127.9.0.0/16", "::1/128"],
        "federation_domain_whitelist": None,
    }
    with ExitStack() as stack:
        names = {}
        for what, fault in FAULTS.items():
            server = FaultyServer(
                fault, made[fault.certificate] if fault.certificate else None
            )
            stack.callback(server.close)
            names[what] = server.name
        hanging = stack.enter_context(hanging_servers(made["valid"]))
        names.update(
            {
                "refused": f"{ADDRESS}:{free_port(ADDRESS)}",
                "no such name": "nosuch.invalid:8448",
                "blocked address": f"{BLOCKED}:8448",
                "invalid name": "no server",
            }
        )
        synapse = stack.enter_context(
            SynapseServer(folder / "synapse", certificates, extra_config=config)
        )
        known = [*names.values(), *hanging.values()]
        write_failing(synapse, known, failing_since_ts=1_000_000)
        admin = synapse.create_user("admin", admin=True)
        yield Laboratory(synapse, synapse.client(admin), names, hanging)


@pytest.fixture(scope="module")
def answers(laboratory: Laboratory) -> dict[str, dict[str, Any]]:
    """What a reconnect of each answers, all of them side by side."""
    before = read_rows(laboratory.synapse)
    reconnect: Callable[[str], dict[str, Any]] = laboratory.client.reconnect
    with ThreadPoolExecutor(10) as pool:
        found = dict(
            zip(
                laboratory.names,
                pool.map(reconnect, laboratory.names.values()),
                strict=True,
            )
        )
    # What Synapse stores of a failure it stores in the background.
    time.sleep(1)
    assert read_rows(laboratory.synapse) == before
    return found


KINDS = {
    **{what: fault.kind for what, fault in FAULTS.items()},
    "refused": "connection_refused",
    "no such name": "dns_not_found",
    "blocked address": "ip_blocked",
    "invalid name": "invalid_name",
}


@pytest.mark.parametrize("what", KINDS)
def test_kind(answers: dict[str, dict[str, Any]], what: str) -> None:
    """In time, the right kind, and a message that is one bounded line of ASCII.

    The row is untouched.
    """
    answer = answers[what]
    assert answer["outcome"] == "still_failing", answer
    error = answer["contact"]["error"]
    assert error["kind"] == KINDS[what], error
    message = error["message"]
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500
    assert answer["contact"]["duration_ms"] < 10_000
    if what in FAULTS:
        assert FAULTS[what].says in message
    assert answer["before"] == answer["after"]


def test_time_is_over(laboratory: Laboratory) -> None:
    """What hangs is told by where it hangs, as soon as its time is over."""
    client, hanging = laboratory.client, laboratory.hanging
    before = read_rows(laboratory.synapse)
    run = client.start_run(destinations=list(hanging.values()), timeout_ms=1000)
    wait_until(lambda: client.run(run["id"])["ended_ts"], "the run to end", 30)
    assert read_rows(laboratory.synapse) == before
    entries = client.audit(run_id=run["id"], action="reconnect")
    contacts = {entry["destination"]: entry["details"]["contact"] for entry in entries}
    kinds = {what: contacts[name]["error"]["kind"] for what, name in hanging.items()}
    assert kinds == {
        "connect": "connection_timeout",
        "handshake": "response_timeout",
        "answer": "response_timeout",
    }
    for contact in contacts.values():
        assert 900 < contact["duration_ms"] < 10_000, contact


def test_blocked_by_name_and_not_allowed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A name that leads to a blocked address is `ip_blocked`, not a missing name.

    What `federation_domain_whitelist` shuts out is `not_allowed`.
    """
    folder = tmp_path_factory.mktemp("blocked")
    certificates = CertificateAuthority(folder)
    names = ["localhost:8448", "shut.example"]
    config = {
        "federation_ip_range_blacklist": ["127.0.0.0/8", "::1/128"],
        "federation_domain_whitelist": ["localhost:8448"],
    }
    with SynapseServer(
        folder / "synapse", certificates, extra_config=config
    ) as synapse:
        write_failing(synapse, names, failing_since_ts=1_000_000)
        client = synapse.client(synapse.create_user("admin", admin=True))
        kinds = [client.reconnect(n)["contact"]["error"]["kind"] for n in names]
    assert kinds == ["ip_blocked", "not_allowed"]
