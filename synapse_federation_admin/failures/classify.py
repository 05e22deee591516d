# SPDX-License-Identifier: Apache-2.0
"""Tells why a request to another server failed: the one place that names causes.

Synapse's federation client raises

    FederationDeniedError           not on `federation_domain_whitelist`
    HttpResponseException           an answer of 3xx or 4xx
    RequestSendFailed               everything else; what it wraps is the cause:
      ├ HttpResponseException       an answer of 5xx or 429
      ├ SynapseError                an IP address as server name that is blocked
      ├ DNSLookupError, twisted.names.error.*
      ├ ConnectError                refused, no route, timed out
      ├ ResponseFailed              its reasons are the cause: TLS, a connection that
      │                             was closed, a time limit
      └ defer.TimeoutError, ValueError, BodyExceededMaxSize, RuntimeError
                                    while it reads the body

(`synapse/http/matrixfederationclient.py`). Where `outbound_federation_restricted_to`
sends it through another process, that one answers 502 with the cause as text
(`synapse/http/proxy.py`).
"""

import errno
import json
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from traceback import clear_frames

from OpenSSL import SSL
from service_identity.exceptions import VerificationError
from synapse.module_api.errors import SynapseError
from twisted.internet import error as net
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import DNSLookupError
from twisted.names import error as dns
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)

from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.errors import (
    BodyExceededMaxSize,
    FederationDeniedError,
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import UntrustedCertificateError

# How much of a text in which a remote server has a say is kept.
_MAX_TEXT = 300

# How much of the body of an error is looked at.
_MAX_BODY = 16 * 1024

# OpenSSL's verification errors: X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED.
_TLS_KINDS = {9: FailureKind.TLS_NOT_YET_VALID, 10: FailureKind.TLS_EXPIRED}

# Others of them, in words (`man openssl-verification-options`).
_UNTRUSTED = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed",
    19: "the authority in its chain is not known here",
    20: "who has issued it is not known here",
    21: "the certificates between are missing",
    24: "one that is no authority has issued it",
    26: "it is not for TLS servers",
    47: "its authority may not issue it for this name",
    48: "its authority may not issue it for this name",
    66: "its key is too weak",
    67: "the key of its authority is too weak",
    68: "its signature is too weak",
}

_HTTP_KINDS: dict[int, FailureKind] = {
    HTTPStatus.UNAUTHORIZED: FailureKind.REJECTED,
    HTTPStatus.FORBIDDEN: FailureKind.REJECTED,
    HTTPStatus.GONE: FailureKind.GONE,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.RATE_LIMITED,
}

# A request that failed for reasons of its own: while it was sent, or its body was made,
# or answered.
_HAS_REASONS = (ResponseFailed, RequestTransmissionFailed, RequestGenerationFailed)

# What an exception of a type stands for: the first that fits.
_KINDS: tuple[tuple[tuple[type[BaseException], ...], FailureKind], ...] = (
    ((VerificationError,), FailureKind.TLS_WRONG_NAME),
    ((SSL.Error,), FailureKind.TLS_FAILED),
    ((DNSLookupError,), FailureKind.DNS_NOT_FOUND),
    (
        (
            dns.DomainError,
            dns.AuthoritativeDomainError,
            dns.DNSQueryTimeoutError,
            dns.ResolverError,
        ),
        FailureKind.DNS_FAILED,
    ),
    ((net.ConnectionRefusedError,), FailureKind.CONNECTION_REFUSED),
    # The last is what is left of a connection that the time limit found unfinished.
    (
        (net.TimeoutError, net.TCPTimedOutError, net.ConnectingCancelledError),
        FailureKind.CONNECTION_TIMEOUT,
    ),
    ((net.ConnectError,), FailureKind.UNREACHABLE),
    ((CancelledError, DeferredTimeoutError), FailureKind.RESPONSE_TIMEOUT),
    # The connection was closed before there was an answer, the answer is no HTTP, or
    # its body is no JSON, or too long.
    (
        (
            net.ConnectionClosed,
            *_HAS_REASONS,
            BodyExceededMaxSize,
            ValueError,
            RuntimeError,
        ),
        FailureKind.INVALID_RESPONSE,
    ),
)

# What is said of these is for a person.
_TELLING = (
    HttpResponseException,
    UntrustedCertificateError,
    VerificationError,
    SSL.Error,
)

_SENTENCES = {
    FailureKind.INVALID_NAME: "This is no valid server name: nothing can be sent to it",
    FailureKind.NOT_ALLOWED: "federation_domain_whitelist does not allow this server",
    FailureKind.IP_BLOCKED: (
        "Its address is in federation_ip_range_blacklist or ip_range_blacklist: allow "
        "it there if it is to be reached"
    ),
    FailureKind.WELL_KNOWN_INVALID: (
        "Its file /.well-known/matrix/server is wrong: it has to be corrected there"
    ),
    FailureKind.WELL_KNOWN_UNREACHABLE: (
        "Its file /.well-known/matrix/server cannot be fetched, so Synapse looks for "
        "the server elsewhere"
    ),
    FailureKind.DNS_NOT_FOUND: (
        "The DNS has no address for this server: its domain may be gone, or the "
        "resolver of this host does not answer"
    ),
    FailureKind.DNS_FAILED: (
        "The DNS could not be asked about this server: the name servers of its domain, "
        "or the resolver of this host, do not work"
    ),
    FailureKind.CONNECTION_REFUSED: (
        "Its address refuses connections: the server is down, or its port is closed"
    ),
    FailureKind.CONNECTION_TIMEOUT: (
        "Its address does not react: the host is down, or a firewall, theirs or ours, "
        "drops the connection"
    ),
    FailureKind.UNREACHABLE: "There is no way from this host to its address",
    FailureKind.TLS_EXPIRED: (
        "Its certificate, or one in the chain, has expired: it has to be renewed there"
    ),
    FailureKind.TLS_NOT_YET_VALID: (
        "Its certificate is not valid yet: its date is wrong, or the clock of this host"
    ),
    FailureKind.TLS_WRONG_NAME: (
        "Its certificate is for other names: it has to be corrected there"
    ),
    FailureKind.TLS_UNTRUSTED: (
        "Its certificate does not lead to an authority that this homeserver trusts: it "
        "is self-signed, or the chain is incomplete"
    ),
    FailureKind.TLS_FAILED: (
        "No TLS connection comes about: perhaps something else listens at that port"
    ),
    FailureKind.REJECTED: "It rejects our requests",
    FailureKind.RATE_LIMITED: "It has had too many requests from us: try later",
    FailureKind.GONE: "It says that it is gone for good",
    FailureKind.HTTP_ERROR: (
        "There is a web server, but no homeserver answers behind it"
    ),
    FailureKind.RESPONSE_TIMEOUT: (
        "It takes connections but does not answer in time: it is overloaded or stuck"
    ),
    FailureKind.INVALID_RESPONSE: (
        "What answers there is no Matrix homeserver, or it broke off its answer"
    ),
    FailureKind.KEYS_MISSING: "It gives out no keys to verify what it sends",
    FailureKind.KEYS_INVALID: (
        "The keys that it gives out are wrong: what it sends cannot be verified"
    ),
    FailureKind.KEYS_EXPIRED: (
        "The keys that it gives out have expired: what it sends cannot be verified"
    ),
    FailureKind.OTHER: "The request failed for a reason that has no name here",
}

# The text of a failure that another process has met names the types of exceptions:
# outermost first, then those that it wraps.
_PROXIED = "ProxyResource: Error when proxying request: "
_PROXIED_TYPE = re.compile(r"(?:<class '|\.Failure )([\w.]+)")
# What Twisted and Python say of names to which nothing can connect.
_NO_NAME = ("invalid hostname", "Port out of range")

_UNVERIFIED = re.compile(
    "certificate verify failed(?:: OpenSSL verification error ([0-9]+))?"
)
_NO_RESULTS = re.compile(r"no results for hostname lookup: ([^\s'\"]+)")


def failure_of(
    error: BaseException, has_addresses: Callable[[str], bool] = lambda _: False
) -> Failure:
    """Tell why a request failed.

    Args:
        error: What Synapse's federation client has raised.
        has_addresses: Tells whether a host name has led to addresses. If one has, and
            Synapse says that there are none, they are blocked.
    """
    causes = list(_causes(error))
    for cause in causes:
        kind = _kind_of(cause, has_addresses)
        if kind is not None:
            return _describe(kind, cause)
    return _describe(FailureKind.OTHER, causes[-1])


def _describe(kind: FailureKind, cause: BaseException) -> Failure:
    text = _text_of(cause)
    # The names of Python's exceptions tell a person nothing.
    detail = text if isinstance(cause, _TELLING) else ""
    return Failure(kind, _message(kind, text), detail)


def describe(kind: FailureKind, detail: str = "") -> Failure:
    """Return a failure with the sentence for its kind, and a detail behind it."""
    return Failure(kind, _message(kind, detail), detail)


def _message(kind: FailureKind, detail: str) -> str:
    sentence = _SENTENCES[kind]
    return f"{sentence} ({detail})" if detail else sentence


def summary(failure: Failure) -> str:
    """Return what is wrong in a few words, without what may be the cause."""
    sentence = _SENTENCES[failure.kind].partition(":")[0]
    said = sentence[:1].lower() + sentence[1:]
    return f"{said} ({failure.detail})" if failure.detail else said


def bounded(text: str, most: int = _MAX_TEXT) -> str:
    """Return a text as one line of printable ASCII that is not endless."""
    shown = ascii(text[:most])[1:-1]
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def forget_frames(error: BaseException) -> None:
    """Have an exception, and what it wraps, let go of where it was raised.

    What was raised refers to the frames it came through, and those to it. That is
    garbage which only Synapse's garbage collection finds, every 10 to 30 s; ten
    thousand contacts that fail leave some 60 MiB of it.
    """
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if found.__traceback__ is not None:
            clear_frames(found.__traceback__)
            found.__traceback__ = None
        for other in (
            *(found.__cause__, found.__context__),
            getattr(found, "inner_exception", None),
        ):
            if isinstance(other, BaseException):
                todo.append(other)
        found.__cause__ = found.__context__ = None
        for reason in getattr(found, "reasons", ()):
            reason.cleanFailure()
            todo.append(reason.value)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that may be the cause: what is wrapped, innermost first."""
    if isinstance(error, RequestSendFailed):
        yield from _causes(error.inner_exception)
    elif isinstance(error, _HAS_REASONS):
        reasons = [reason.value for reason in error.reasons]
        # A connection that is closed for a reason is closed as well.
        reasons.sort(key=lambda reason: isinstance(reason, net.ConnectionClosed))
        for reason in reasons:
            yield from _causes(reason)
        yield error
    else:
        yield error


def _kind_of(
    cause: BaseException, has_addresses: Callable[[str], bool]
) -> FailureKind | None:
    if isinstance(cause, HttpResponseException):
        proxied = _proxied_text(cause)
        if proxied is not None:
            return _kind_by_text(proxied)
        return _HTTP_KINDS.get(cause.code, FailureKind.HTTP_ERROR)
    if isinstance(cause, FederationDeniedError):
        return FailureKind.NOT_ALLOWED
    if isinstance(cause, SynapseError):
        is_blocked = cause.code == HTTPStatus.FORBIDDEN
        return FailureKind.IP_BLOCKED if is_blocked else FailureKind.OTHER
    if isinstance(cause, UntrustedCertificateError):
        return _TLS_KINDS.get(cause.code, FailureKind.TLS_UNTRUSTED)
    if isinstance(cause, net.ConnectError) and cause.osError == errno.ECONNRESET:
        # There is a way: it was taken, and closed at once.
        return FailureKind.INVALID_RESPONSE
    if isinstance(cause, DNSLookupError):
        host = _NO_RESULTS.search(str(cause))
        if host and has_addresses(host[1].rstrip(".")):
            return FailureKind.IP_BLOCKED
    if isinstance(cause, ValueError) and str(cause).startswith(_NO_NAME):
        return FailureKind.INVALID_NAME
    for types, kind in _KINDS:
        if isinstance(cause, types):
            return kind
    return None


def _kind_by_text(text: str) -> FailureKind:
    """Return the kind of a failure that another process tells of."""
    unverified = _UNVERIFIED.search(text)
    if unverified:
        code = int(unverified[1] or 0)
        return _TLS_KINDS.get(code, FailureKind.TLS_UNTRUSTED)
    # What is wrapped comes last.
    for found in reversed(_PROXIED_TYPE.findall(text)):
        name = found.removeprefix("builtins.")
        for types, kind in _KINDS:
            if any(name in _names_of(type_) for type_ in types):
                return kind
    return FailureKind.OTHER


def _names_of(type_: type[BaseException]) -> Iterator[str]:
    """Yield the full name of a type, and those of the types that are made of it.

    Python's own are without their module: a text has them with it and without.
    """
    yield f"{type_.__module__}.{type_.__qualname__}".removeprefix("builtins.")
    for below in type_.__subclasses__():
        yield from _names_of(below)


def _proxied_text(error: HttpResponseException) -> str | None:
    if error.code != HTTPStatus.BAD_GATEWAY:
        return None
    body = error.response[:_MAX_BODY].decode("utf-8", "replace")
    return body if _PROXIED in body else None


def _text_of(cause: BaseException) -> str:
    """Return what an exception says, as it may be shown."""
    if isinstance(cause, HttpResponseException):
        if _proxied_text(cause) is not None:
            return "as another process of this homeserver tells"
        return bounded(f"HTTP {cause.code} {_error_in(cause)}".strip())
    if isinstance(cause, UntrustedCertificateError):
        what = _UNTRUSTED.get(cause.code, f"OpenSSL verification error {cause.code}")
        return f"{what}, of one in its chain" if cause.depth else what
    if isinstance(cause, SSL.Error):
        return bounded(_tls_text(cause))
    if isinstance(cause, FederationDeniedError):
        return ""
    if isinstance(cause, VerificationError):
        return bounded(_not_for(cause))
    text = str(cause)
    return bounded(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)


def _tls_text(error: SSL.Error) -> str:
    """Return what OpenSSL says of a handshake, in its own words."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    texts = [str(reason[-1]) for reason in reasons if isinstance(reason, tuple)]
    return ", ".join(filter(None, texts)) or type(error).__name__


def _not_for(error: VerificationError) -> str:
    """Tell which names a certificate is not for."""
    expected = [getattr(mismatch, "mismatched_id", None) for mismatch in error.errors]
    names = [
        name.decode() if isinstance(name, bytes) else str(name)
        for identity in expected
        for name in (getattr(identity, "hostname", getattr(identity, "ip", None)),)
        if name is not None
    ]
    return f"it is not for {', '.join(names)}" if names else "it has no subjectAltName"


def _error_in(error: HttpResponseException) -> str:
    """Return the Matrix error in the body of an answer; "" if there is none."""
    try:
        body = json.loads(error.response[:_MAX_BODY])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(body, dict):
        return ""
    texts = [body.get(key) for key in ("errcode", "error")]
    return " ".join(text for text in texts if isinstance(text, str))
