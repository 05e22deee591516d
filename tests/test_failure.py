# SPDX-License-Identifier: Apache-2.0
"""Why a request failed, told from what Synapse's client raises."""

import gc
import json
import re
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from service_identity.exceptions import DNSMismatch, VerificationError
from service_identity.hazmat import DNS_ID
from synapse.http.client import BodyExceededMaxSize
from synapse.module_api.errors import SynapseError
from twisted.internet import error as net
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.names import error as dns
from twisted.python.failure import Failure
from twisted.web._newclient import (
    ParseError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
)
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from synapse_federation_admin.failures import classify as module
from synapse_federation_admin.failures.classify import (
    bounded,
    describe,
    failure_of,
    forget_frames,
)
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.homeserver.errors import (
    FederationDeniedError,
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import UntrustedCertificateError

UNVERIFIED = SSL.Error([("SSL routines", "", "certificate verify failed")])
WRONG_NAME = VerificationError([DNSMismatch(mismatched_id=DNS_ID("a.example"))])


def never(*reasons: Exception) -> ResponseNeverReceived:
    return ResponseNeverReceived([Failure(reason) for reason in reasons])


def http(code: int, body: bytes = b"{}") -> HttpResponseException:
    return HttpResponseException(code, "Said", body)


def sent(error: Exception) -> RequestSendFailed:
    return RequestSendFailed(error, can_retry=False)


CAUSES: list[tuple[Exception, str]] = [
    (FederationDeniedError("a.example"), "not_allowed"),
    (sent(SynapseError(403, "IP address blocked")), "ip_blocked"),
    (sent(net.DNSLookupError("no results for hostname lookup: a")), "dns_not_found"),
    (sent(dns.DNSServerError()), "dns_failed"),
    (sent(dns.DNSQueryTimeoutError(1)), "dns_failed"),
    (sent(dns.ResolverError()), "dns_failed"),
    (sent(net.ConnectionRefusedError()), "connection_refused"),
    (sent(net.TimeoutError()), "connection_timeout"),
    (sent(net.TCPTimedOutError()), "connection_timeout"),
    (sent(net.ConnectingCancelledError(None)), "connection_timeout"),  # type: ignore[arg-type]
    (sent(net.NoRouteError()), "unreachable"),
    (sent(net.ConnectError()), "unreachable"),
    (sent(DeferredTimeoutError()), "response_timeout"),
    (sent(never(CancelledError())), "response_timeout"),
    (sent(never(net.ConnectionLost(), CancelledError())), "response_timeout"),
    (sent(ValueError("Port out of range 0-65535")), "invalid_name"),
    (sent(ValueError("invalid hostname: -a.example")), "invalid_name"),
    (sent(RequestGenerationFailed([Failure(CancelledError())])), "response_timeout"),
    (sent(never(UntrustedCertificateError(10))), "tls_expired"),
    (sent(never(UntrustedCertificateError(9))), "tls_not_yet_valid"),
    (sent(never(UntrustedCertificateError(18))), "tls_untrusted"),
    (sent(never(WRONG_NAME)), "tls_wrong_name"),
    (sent(RequestTransmissionFailed([Failure(WRONG_NAME)])), "tls_wrong_name"),
    (sent(never(SSL.Error([("", "", "wrong version number")]))), "tls_failed"),
    (sent(never(net.ConnectionDone())), "invalid_response"),
    (sent(never(net.ConnectionLost())), "invalid_response"),
    (sent(ResponseFailed([Failure(ParseError("a", b"b"))])), "invalid_response"),
    (sent(ValueError("no JSON")), "invalid_response"),
    (sent(RuntimeError("content type")), "invalid_response"),
    (sent(BodyExceededMaxSize()), "invalid_response"),
    (http(401), "rejected"),
    (http(403), "rejected"),
    (sent(http(429)), "rate_limited"),
    (http(410), "gone"),
    (http(404), "http_error"),
    (http(301, b""), "http_error"),
    (http(999), "http_error"),
    (sent(http(500)), "http_error"),
    (sent(http(502, b"<html>")), "http_error"),
    (sent(http(502, b"[" * 100_000)), "http_error"),
    (sent(http(503, b"\xff\xfe")), "http_error"),
    (sent(KeyError("what")), "other"),
    (SynapseError(500, "what"), "other"),
]


@pytest.mark.parametrize(("error", "kind"), CAUSES, ids=lambda x: repr(x)[:60])
def test_kind(error: Exception, kind: str) -> None:
    """Each cause has its kind, however it is wrapped; the message is one short line."""
    found = failure_of(error)
    assert found.kind.value == kind
    assert found.message.isascii()
    assert found.message.isprintable()
    assert len(found.message) < 500


# One of each type that the table knows.
EXAMPLES: list[Exception] = [
    WRONG_NAME,
    SSL.Error([("", "", "wrong version number")]),
    net.DNSLookupError("no results for hostname lookup: a"),
    dns.DNSServerError(),
    dns.AuthoritativeDomainError(),
    dns.DNSQueryTimeoutError(1),
    dns.ResolverError(),
    net.ConnectionRefusedError(),
    net.TimeoutError(),
    net.TCPTimedOutError(),
    net.ConnectingCancelledError(None),  # type: ignore[arg-type]
    net.NoRouteError(),
    CancelledError(),
    DeferredTimeoutError(),
    net.ConnectionDone(),
    net.ConnectionLost(),
    never(),
    RequestTransmissionFailed([]),
    RequestGenerationFailed([]),
    BodyExceededMaxSize(),
    ValueError(),
    RuntimeError(),
]


def kind_in_table(error: Exception) -> FailureKind:
    return next(kind for types, kind in module._KINDS if isinstance(error, types))


def test_table() -> None:
    """There is an example of each type in the table, and no type hides another."""
    for types, kind in module._KINDS:
        for type_ in types:
            kinds = {kind_in_table(e) for e in EXAMPLES if isinstance(e, type_)}
            assert kind in kinds, type_


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda x: type(x).__name__)
def test_wrapped(example: Exception) -> None:
    """Whatever Synapse's and Twisted's clients wrap it in, a cause has its kind."""
    kind = kind_in_table(example)
    for wrap in (never, lambda e: RequestTransmissionFailed([Failure(e)])):
        for error in (example, wrap(example), wrap(never(example))):
            assert failure_of(error).kind is kind
            assert failure_of(sent(error)).kind is kind
    # That a connection was lost is what comes of it, and not the cause.
    lost = net.ConnectionLost()
    for reasons in ((lost, example), (example, lost)):
        assert failure_of(sent(never(*reasons))).kind is kind


def test_blocked_name() -> None:
    """A name that has addresses, of which Synapse says there are none, is blocked."""
    error = sent(net.DNSLookupError("no results for hostname lookup: a.example"))
    assert failure_of(error, {"a.example": True}.__getitem__).kind.value == "ip_blocked"
    asked: list[str] = []
    failure_of(error, lambda name: bool(asked.append(name)))
    assert asked == ["a.example"]


def proxied(error: Exception) -> RequestSendFailed:
    """Return what comes back if another process of the homeserver meets an error."""
    text = (
        "ProxyResource: Error when proxying request: GET matrix-federation://a/b -> "
        f"{Failure(error)}"
    )
    return sent(http(502, json.dumps({"errcode": "M_UNKNOWN", "err": text}).encode()))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (net.ConnectionRefusedError(), "connection_refused"),
        (net.DNSLookupError("no results"), "dns_not_found"),
        (dns.DNSServerError(), "dns_failed"),
        (net.TimeoutError(), "connection_timeout"),
        (never(UNVERIFIED), "tls_untrusted"),
        (never(WRONG_NAME), "tls_wrong_name"),
        (never(net.ConnectionLost()), "invalid_response"),
        (DeferredTimeoutError(), "response_timeout"),
        (KeyError("what"), "other"),
    ],
    ids=lambda x: repr(x)[:60],
)
def test_another_process(error: Exception, kind: str) -> None:
    """What another process has met, and tells of as text, has the same kind."""
    found = failure_of(proxied(error))
    assert found.kind.value == kind
    assert "another process" in found.message


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda x: type(x).__name__)
def test_another_process_with_stack(example: Exception) -> None:
    """So has each type of the table, where the text has a stack in it, too."""
    kind = kind_in_table(example)
    for error in (example, never(example), never(net.ConnectionLost(), example)):
        try:
            raise error
        except Exception:
            text = f"ProxyResource: Error when proxying request: GET a -> {Failure()}"
        assert __file__ in text
        body = json.dumps({"errcode": "M_UNKNOWN", "err": text}).encode()
        assert failure_of(sent(http(502, body))).kind is kind, text


def test_hostile_text() -> None:
    """What a remote server says is shown as one bounded line of printable ASCII."""
    body = json.dumps({"errcode": "M_\n\x1b[31m\u2028", "error": "x" * 10_000})
    message = failure_of(http(403, body.encode())).message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500
    assert "M_\\n\\x1b[31m" in message
    for odd in ({"errcode": 1, "error": ["x"]}, {}, ["x"]):
        assert "HTTP 403" in failure_of(http(403, json.dumps(odd).encode())).message


def test_bounded() -> None:
    """However much of it is escaped, no text is longer than its bound."""
    for text in ("", "plain", "'\"\\", "\0" * 1000, "\U0001f600" * 1000):
        assert len(bounded(text, 50)) <= 50
        assert bounded(text, 50).isprintable()


def test_sentences() -> None:
    """Every kind that a contact can have has a sentence for a person."""
    kinds = {kind for _, kind in CAUSES} | {"invalid_name"}
    for kind in kinds:
        assert len(describe(FailureKind(kind)).message) > 15


def test_documented() -> None:
    """Every kind that can occur has its sentence, and its line in docs/api.md."""
    text = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    section = text.split("### Why a contact fails")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert documented[0] == "kind"
    occurring = {kind.value for kind in module._SENTENCES}
    assert sorted(documented[1:]) == sorted(occurring)
    assert {kind for _, kind in CAUSES} <= occurring


def raised(error: Exception) -> tuple[Exception, Iterable[Any]]:
    """Raise an error through a frame; return it, and a weak reference to a local."""

    class Local:
        pass

    local = Local()
    try:
        try:
            raise net.ConnectionRefusedError
        except net.ConnectionRefusedError as e:
            raise error from e
    except Exception as e:
        # As a coroutine's frame would, it refers to the error.
        kept = e
        return kept, weakref.ref(local)  # type: ignore[return-value]


def test_forget_frames() -> None:
    """Once it is told, an error keeps nothing alive of where it was raised."""
    gc.collect()
    gc.disable()
    try:
        inner, local = raised(never(net.ConnectionLost()))
        assert inner.__traceback__ is not None
        outer = sent(inner)
        forget_frames(outer)
        for error in (outer, inner):
            assert error.__traceback__ is None
            assert error.__cause__ is None
        assert all(reason.tb is None for reason in inner.reasons)  # type: ignore[attr-defined]
        if sys.implementation.name == "cpython":
            assert local() is None  # type: ignore[operator]
    finally:
        gc.enable()
