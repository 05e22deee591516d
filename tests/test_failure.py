# SPDX-License-Identifier: Apache-2.0
"""Why a request failed, told from what Synapse's client raises."""

import errno
import json
import socket

import pytest
from OpenSSL import SSL
from service_identity.exceptions import CertificateError, DNSMismatch, VerificationError
from service_identity.hazmat import DNS_ID
from synapse.http.client import BodyExceededMaxSize
from synapse.module_api.errors import SynapseError
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, TimeoutError as DeferredTimeoutError
from twisted.names import error as dns
from twisted.python.failure import Failure
from twisted.web._newclient import (
    ParseError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
)
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from synapse_federation_admin.failures import classify as module
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import described, failure_of
from synapse_federation_admin.failures.kinds import FAILURE_KINDS, FailureKind, Reason
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.errors import (
    FederationDeniedError,
    FileAnswer,
    HttpResponseException,
    MetElsewhereError,
    NotRetryingDestination,
    Obstacle,
    ObstacleError,
    ProxyConnectError,
    RequestSendFailed,
    UntrustedCertificateError,
    WithoutFileError,
)

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
    (sent(ValueError("Port out of range 0-65535")), "invalid_name"),
    (sent(ValueError("invalid hostname: -a.example")), "invalid_name"),
    (sent(RequestGenerationFailed([Failure(CancelledError())])), "response_timeout"),
    (sent(ResponseFailed([Failure(ParseError("a", b"b"))])), "invalid_response"),
    (sent(ValueError("no JSON")), "invalid_response"),
    (sent(RuntimeError("content type")), "invalid_response"),
    (sent(http(429)), "rate_limited"),
    (http(301, b""), "http_error"),
    (http(999), "http_error"),
    (sent(http(500)), "http_error"),
    (sent(http(502, b"[" * 100_000)), "http_error"),
    (sent(http(503, b"\xff\xfe")), "http_error"),
    (SynapseError(500, "what"), "other"),
]

# Bugs, of ours or of Synapse's, wherever they are raised.
BUGS = [
    KeyError("what"),
    AttributeError("what"),
    ValueError("what"),
    RuntimeError("what"),
    AssertionError(),
    sent(KeyError("what")),
    sent(never(TypeError())),
    sent(never(net.ConnectionLost(), AttributeError())),
]


@pytest.mark.parametrize(("error", "kind"), CAUSES, ids=lambda x: repr(x)[:60])
def test_kind(error: Exception, kind: str) -> None:
    """Each cause has its kind, however it is wrapped; the message is one short line."""
    found = failure_of(error)
    assert found.kind.value == kind
    assert not found.is_ours
    message = message_of(found)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) <= 160


@pytest.mark.parametrize("error", BUGS, ids=lambda x: repr(x)[:60])
def test_ours(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What is no error of the network is ours, and is logged with its traceback."""
    found = failure_of(error)
    assert found.is_ours
    assert found.kind.value not in FAILURE_KINDS
    (record,) = caplog.records
    assert record.exc_info
    assert isinstance(record.exc_info[1], BaseException)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UntrustedCertificateError(18), Reason.SELF_SIGNED),
        (UntrustedCertificateError(21), Reason.MISSING_INTERMEDIATE),
        (UntrustedCertificateError(10, 1), Reason.IN_CHAIN),
        (UntrustedCertificateError(77), None),
        (VerificationError([]), Reason.NO_NAMES),
        (CertificateError(), Reason.NO_NAMES),
        (WRONG_NAME, None),
        (net.ConnectionDone(), Reason.CLOSED),
        (
            ProxyConnectError("Unexpected status on CONNECT: b'504'"),
            Reason.PROXY_REFUSES,
        ),
        (
            ProxyConnectError("Unexpected status on CONNECT: b'407'"),
            Reason.PROXY_AUTHENTICATION,
        ),
    ],
    ids=lambda x: repr(x)[:60],
)
def test_reason(error: Exception, reason: Reason | None) -> None:
    """What exactly is wrong is told where the exception tells it."""
    assert failure_of(sent(never(error))).reason is reason


def test_facts() -> None:
    """What is particular: status and Matrix error, OpenSSL's code, names."""
    body = b'{"errcode": "M_FORBIDDEN", "error": "Not you"}'
    facts = failure_of(http(403, body)).facts
    assert (facts.status, facts.errcode, facts.said) == (403, "M_FORBIDDEN", "Not you")
    facts = failure_of(UntrustedCertificateError(10, 1, "CN=a")).facts
    assert (facts.code, facts.issuer) == (10, "CN=a")
    assert failure_of(WRONG_NAME).facts.host == "a.example"
    found = failure_of(ProxyConnectError("Unexpected status on CONNECT: b'504'"))
    assert (found.kind.value, found.facts.status) == ("proxy_failed", 504)


# By kind, one of each type that the table knows.
BY_KIND: dict[str, list[Exception]] = {
    "tls_wrong_name": [WRONG_NAME, CertificateError()],
    "tls_failed": [SSL.Error([("", "", "wrong version number")])],
    "dns_not_found": [net.DNSLookupError("no results for hostname lookup: a")],
    "dns_failed": [
        dns.DNSServerError(),
        dns.AuthoritativeDomainError(),
        dns.DNSQueryTimeoutError(1),
        dns.ResolverError(),
    ],
    "connection_refused": [net.ConnectionRefusedError()],
    "connection_timeout": [
        net.TimeoutError(),
        net.TCPTimedOutError(),
        net.ConnectingCancelledError(None),  # type: ignore[arg-type]
    ],
    "unreachable": [net.NoRouteError(), net.ConnectError()],
    "response_timeout": [CancelledError(), DeferredTimeoutError()],
    "invalid_response": [
        net.ConnectionDone(),
        net.ConnectionLost(),
        BodyExceededMaxSize(),
        RecursionError(),
    ],
    "other": [NotRetryingDestination(1, 2, "a.example")],
}
EXAMPLES = [(error, kind) for kind, errors in BY_KIND.items() for error in errors]
each_example = pytest.mark.parametrize(
    ("example", "kind"), EXAMPLES, ids=lambda x: repr(x)[:60]
)


def test_table() -> None:
    """There is an example of each type in the table, and no type hides another."""
    for types, kind, _ in module._KINDS:
        for type_ in types:
            assert any(isinstance(error, type_) for error in BY_KIND[kind.value]), type_


@each_example
def test_wrapped(example: Exception, kind: str) -> None:
    """Whatever Synapse's and Twisted's clients wrap it in, a cause has its kind."""
    for wrap in (never, lambda e: RequestTransmissionFailed([Failure(e)])):
        for error in (example, wrap(example), wrap(never(example))):
            assert failure_of(error).kind.value == kind
            assert failure_of(sent(error)).kind.value == kind
    # That a connection was lost is what comes of it, and not the cause.
    lost = net.ConnectionLost()
    for reasons in ((lost, example), (example, lost)):
        assert failure_of(sent(never(*reasons))).kind.value == kind


def test_empty_delegation() -> None:
    """An m.server that is empty is called so, and has no text to be told."""
    failure = failure_of(sent(ObstacleError(Obstacle.BAD_DELEGATION, "")))
    assert failure.reason is Reason.M_SERVER_EMPTY


URL = "https://a.example/.well-known/matrix/server"
AWAY = FileAnswer(
    "https://b.example/file",
    is_redirected=True,
    error=ObstacleError(Obstacle.BLOCKED, "b.example"),
    addresses=("10.0.0.1",),
)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (FileAnswer(URL, status=200, body=b"<p>"), "well_known_invalid web_page"),
        (
            FileAnswer(URL, status=200, body=b"{}"),
            "well_known_invalid m_server_missing",
        ),
        (FileAnswer(URL, status=502), "well_known_unreachable web_status"),
        (
            FileAnswer(URL, error=BodyExceededMaxSize()),
            "well_known_invalid body_too_large",
        ),
        (
            FileAnswer(URL, error=UntrustedCertificateError(18, 0, "")),
            "well_known_unreachable web_certificate",
        ),
        (AWAY, "well_known_unreachable leads_to_internal"),
        # There is no such file, or no web server: nobody has meant to delegate.
        (FileAnswer(URL, status=404), "connection_refused"),
        (FileAnswer(URL, error=net.ConnectionRefusedError()), "connection_refused"),
        (FileAnswer(URL, error=net.TimeoutError()), "connection_refused"),
    ],
)
def test_without_file(file: FileAnswer, expected: str) -> None:
    """A file that is wrong, and nobody where requests go without it: both are told."""
    error = WithoutFileError(file, net.ConnectionRefusedError())
    told = failure_of(sent(MetElsewhereError(described(sent(error)))))
    for failure in (failure_of(sent(error)), told):
        reason = failure.reason.value if failure.reason else ""
        assert f"{failure.kind.value} {reason}".strip() == expected
        assert "onnection refused" in message_of(failure)
    # What is met there is why, if somebody is there.
    there = WithoutFileError(file, UntrustedCertificateError(18, 0, ""))
    assert failure_of(sent(there)).kind is FailureKind.TLS_UNTRUSTED


@pytest.mark.parametrize(
    "error",
    [
        net.ConnectError(errno.ECONNRESET, "Connection reset by peer"),
        net.ConnectError(errno.EPIPE, "Broken pipe"),
        net.ConnectError(string=Failure(net.ConnectionLost())),
        net.ConnectError(string=Failure(net.ConnectionDone())),
    ],
    ids=repr,
)
def test_closed_at_once(error: Exception) -> None:
    """A server that closes a connection before Twisted has seen it made is there."""
    failure = failure_of(sent(error))
    assert failure.kind is FailureKind.TLS_FAILED
    assert failure.reason is Reason.CLOSED_IN_HANDSHAKE


@pytest.mark.parametrize("obstacle", Obstacle)
def test_obstacle(obstacle: Obstacle) -> None:
    """What our own agents have met has a kind; that nothing is left is ours."""
    failure = failure_of(sent(ObstacleError(obstacle, "a.example")))
    assert failure.is_ours == (obstacle is Obstacle.OUT_OF_RESOURCES)
    assert message_of(failure)


OUT = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "Too many open files in system"),
    OSError(errno.ENOBUFS, "No buffer space available"),
    net.ConnectBindError(errno.EMFILE, "Too many open files"),
    net.ConnectError(errno.ENOMEM, "Cannot allocate memory"),
    net.CannotListenError("", 5353, OSError(errno.EMFILE, "Too many open files")),
    socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
    RuntimeError("can't start new thread"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT, ids=repr)
def test_out_of_resources(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """That this process has nothing left is no failure of the other server's."""
    failure = failure_of(sent(error))
    assert failure.is_ours
    assert failure.reason is Reason.OUT_OF_RESOURCES
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM])
def test_no_way_to_dns(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """While this host has no network its DNS does not answer: that is no bug."""
    failure = failure_of(sent(OSError(number, "x")))
    assert (failure.kind.value, failure.reason) == ("dns_failed", Reason.DNS_NO_ANSWER)
    assert not caplog.text


@each_example
def test_another_process(example: Exception, kind: str) -> None:
    """What another process of this homeserver has met has the same kind and reason."""
    own = failure_of(sent(example))
    found = failure_of(sent(MetElsewhereError(described(sent(example)))))
    assert (found.kind, found.reason) == (own.kind, own.reason)
    assert found.kind.value == kind
    assert (found.facts.host, found.facts.code) == (own.facts.host, own.facts.code)
    assert found.facts.is_relayed


def test_another_release() -> None:
    """What a process with another release of this module tells is not known."""
    for told in ("", "[]", '["new_kind", null, {}]', '["gone", null, {"new": 1}]'):
        assert failure_of(sent(MetElsewhereError(told))).kind is FailureKind.OTHER


def test_hostile_text() -> None:
    """What a remote server says is shown as one bounded line of printable ASCII."""
    body = json.dumps({"errcode": "M_\n\x1b[31m\u2028", "error": "x" * 10_000})
    facts = failure_of(http(403, body.encode())).facts
    assert facts.errcode == r"M_\n\x1b[31m\u2028"
    assert len(facts.said) == 300
    for odd in ({"errcode": 1, "error": ["x"]}, {}, ["x"]):
        found = failure_of(http(403, json.dumps(odd).encode()))
        assert (found.facts.errcode, found.facts.said) == ("", "")


def test_bounded() -> None:
    """However much of it is escaped, no text is longer than its bound."""
    for text in ("", "plain", "'\"\\", "\0" * 1000, "\U0001f600" * 1000):
        assert len(bounded(text, 50)) <= 50
        assert bounded(text, 50).isprintable()


def test_huge_body() -> None:
    """Of a huge body only the beginning is looked at."""
    body = b'{"errcode": "M_X", "error": "' + b"x" * 1_000_000 + b'"}'
    assert failure_of(http(403, body)).facts.errcode == ""
