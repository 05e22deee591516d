# SPDX-License-Identifier: Apache-2.0
"""Servers that are wrong in one way each, at addresses: none needs a resolver."""

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attr
import trustme
from faults import BAD_GATEWAY, BLOCKED, DAY, NOW, PAGE_NOT_FOUND, context, loaded
from laboratory import Answer, Server, close, full, hang, http

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import free_port

__all__ = ["ADDRESS", "BLOCKED", "FAULTS", "FaultyServer"]

ADDRESS = "127.0.0.70"
OK = http("200 OK")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class LiteralFault:
    """What a server does wrong.

    Attributes:
        kind: What that is to be called.
        answer: What it answers to a request.
        certificate: What makes its TLS context; None: it speaks no TLS.
    """

    kind: str
    answer: Answer = OK
    certificate: str | None = "valid"


FAULTS = {
    "expired": LiteralFault("tls_expired", certificate="expired"),
    "not yet valid": LiteralFault("tls_not_yet_valid", certificate="early"),
    "wrong name": LiteralFault("tls_wrong_name", certificate="wrong_name"),
    "other authority": LiteralFault("tls_untrusted", certificate="other_authority"),
    "self-signed": LiteralFault("tls_untrusted", certificate="self_signed"),
    "no TLS": LiteralFault("tls_failed", certificate=None),
    "401": LiteralFault("rejected", http("401 Unauthorized")),
    "403": LiteralFault("rejected", http("403 Forbidden")),
    "404": LiteralFault("http_error", PAGE_NOT_FOUND),
    "410": LiteralFault("gone", http("410 Gone", b"")),
    "429": LiteralFault("rate_limited", http("429 Too Many Requests")),
    "502 in HTML": LiteralFault("http_error", BAD_GATEWAY),
    "closes": LiteralFault("invalid_response", close),
    "no HTTP": LiteralFault("invalid_response", b"SSH-2.0-OpenSSH_9.2\r\n" * 50),
}


class FaultyServer(Server):
    """Serves one fault, over as many connections as come."""

    def __init__(self, fault: LiteralFault, context: ssl.SSLContext | None) -> None:
        port = free_port(ADDRESS)
        self.name = f"{ADDRESS}:{port}"
        super().__init__(ADDRESS, port, context, fault.answer)


def contexts(
    folder: Path, certificates: CertificateAuthority
) -> dict[str, ssl.SSLContext]:
    """Return TLS contexts by what is wrong with their certificates."""
    own = trustme.CA()
    dates = {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}
    return {
        "valid": certificates.valid(ADDRESS),
        "expired": certificates.expired(ADDRESS),
        "wrong_name": certificates.wrong_name(),
        "early": context(certificates._ca.issue_cert(ADDRESS, **dates)),
        "other_authority": context(trustme.CA().issue_cert(ADDRESS)),
        "self_signed": loaded(
            folder, "self", own.cert_pem.bytes(), own.private_key_pem.bytes()
        ),
    }


@contextmanager
def hanging_servers(context: ssl.SSLContext) -> Iterator[dict[str, str]]:
    """Run servers that never answer; yield their names, by where it hangs."""
    ports = {where: free_port(ADDRESS) for where in ("connect", "handshake", "answer")}
    with ExitStack() as stack:
        stack.enter_context(full(ADDRESS, ports["connect"]))
        for where, used in (("handshake", None), ("answer", context)):
            stack.callback(Server(ADDRESS, ports[where], used, hang).close)
        yield {where: f"{ADDRESS}:{port}" for where, port in ports.items()}
