# SPDX-License-Identifier: Apache-2.0
"""Tells why a request to another server failed: the one place that names causes.

Synapse's federation client raises

    FederationDeniedError           not on `federation_domain_whitelist`
    HttpResponseException           an answer of 3xx or 4xx
    RequestSendFailed               everything else; what it wraps is the cause:
      ├ HttpResponseException       an answer of 5xx or 429
      ├ SynapseError                an IP address as server name that is blocked
      ├ ObstacleError               what our own agents know of the way
      ├ WithoutFileError        nobody is where a wrong file leaves requests
      ├ DNSLookupError, twisted.names.error.*
      ├ ConnectError                refused, no route, timed out; by the proxy
      ├ ResponseFailed              its reasons are the cause: TLS, a connection that
      │                             was closed, a time limit
      └ defer.TimeoutError, ValueError, BodyExceededMaxSize, RuntimeError
                                    while it reads the body

(`synapse/http/matrixfederationclient.py`). Where `outbound_federation_restricted_to`
sends it through another process, that one tells the cause
(`homeserver/relay.py`).

What is none of these, nor wrapped in them, is no fault of the other server's but a bug
on this side: `FailureKind.INTERNAL`, and its traceback is logged. So is, without one,
that this process has no descriptor, thread or memory left.
"""

import errno
import json
import logging
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar

import attr
from OpenSSL import SSL
from service_identity.exceptions import CertificateError, VerificationError
from synapse.module_api.errors import SynapseError
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, TimeoutError as DeferredTimeoutError
from twisted.internet.error import DNSLookupError
from twisted.names import error as dns

from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.files import why_no_file
from synapse_federation_admin.failures.handshakes import (
    expected_name,
    reason_of_handshake,
    text_of_handshake,
    untrusted,
)
from synapse_federation_admin.failures.kinds import (
    NOBODY_THERE,
    Facts,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.responses import http_failure, reason_of_bytes
from synapse_federation_admin.homeserver.errors import (
    HTTP_CLIENT,
    NO_RESULTS,
    NO_WAY,
    READS_DATE,
    TLS_CLIENT,
    BodyExceededMaxSize,
    FederationDeniedError,
    HttpResponseException,
    MetElsewhereError,
    NotRetryingDestination,
    Obstacle,
    ObstacleError,
    ProxyConnectError,
    UntrustedCertificateError,
    WithoutFileError,
    forget_frames,
    innermost,
    is_out_of_resources,
    stumbled_in,
)
from synapse_federation_admin.homeserver.server_name import is_internal

T = TypeVar("T")

logger = logging.getLogger(__name__)

# What this host says if it has no way to its name servers, or its firewall forbids it.
_CANNOT_SEND = NO_WAY | {errno.EHOSTUNREACH, errno.ENETDOWN, errno.EPERM}

# What the system says of a connection that is closed before it is seen to be made.
_CLOSED_AT_ONCE = {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN}

_PROXY_STATUS = re.compile(r"Unexpected status on CONNECT: \D*([0-9]{3})")

_Row = tuple[tuple[type[BaseException], ...], FailureKind, Reason | None]

# What an exception of a type stands for: the first that fits.
_KINDS: tuple[_Row, ...] = (
    ((DNSLookupError,), FailureKind.DNS_NOT_FOUND, None),
    ((dns.DNSQueryTimeoutError,), FailureKind.DNS_FAILED, Reason.DNS_NO_ANSWER),
    (
        (dns.DomainError, dns.AuthoritativeDomainError, dns.ResolverError),
        FailureKind.DNS_FAILED,
        Reason.DNS_SERVER_FAILURE,
    ),
    ((net.ConnectionRefusedError,), FailureKind.CONNECTION_REFUSED, None),
    # The last is what is left of a connection that the time limit found unfinished.
    (
        (net.TimeoutError, net.TCPTimedOutError, net.ConnectingCancelledError),
        FailureKind.CONNECTION_TIMEOUT,
        None,
    ),
    ((net.ConnectError,), FailureKind.UNREACHABLE, None),
    ((CancelledError, DeferredTimeoutError), FailureKind.RESPONSE_TIMEOUT, None),
    ((net.ConnectionClosed,), FailureKind.INVALID_RESPONSE, Reason.CLOSED),
    ((BodyExceededMaxSize,), FailureKind.INVALID_RESPONSE, Reason.BODY_TOO_LARGE),
    # It is nested too deeply.
    ((RecursionError,), FailureKind.INVALID_RESPONSE, Reason.NOT_JSON),
    ((NotRetryingDestination,), FailureKind.OTHER, Reason.BACKING_OFF),
)

# What our own agents tell of.
_OBSTACLES: dict[Obstacle, tuple[FailureKind, Reason | None]] = {
    Obstacle.NO_SUCH_HOST: (FailureKind.DNS_NOT_FOUND, Reason.NO_SUCH_HOST),
    Obstacle.NO_ADDRESS: (FailureKind.DNS_NOT_FOUND, Reason.NO_ADDRESS),
    Obstacle.NO_HOST_NAME: (FailureKind.DNS_NOT_FOUND, Reason.NO_HOST_NAME),
    Obstacle.DNS_SERVER_FAILURE: (FailureKind.DNS_FAILED, Reason.DNS_SERVER_FAILURE),
    Obstacle.DNS_NO_ANSWER: (FailureKind.DNS_FAILED, Reason.DNS_NO_ANSWER),
    Obstacle.BLOCKED: (FailureKind.IP_BLOCKED, None),
    Obstacle.NO_SERVICE: (FailureKind.UNREACHABLE, Reason.NO_SERVICE),
    Obstacle.OWN_NAME: (FailureKind.IS_US, Reason.DELEGATED_TO_US),
    Obstacle.CLOSED_IN_HANDSHAKE: (FailureKind.TLS_FAILED, Reason.CLOSED_IN_HANDSHAKE),
    Obstacle.LATE_HANDSHAKE: (FailureKind.RESPONSE_TIMEOUT, Reason.IN_HANDSHAKE),
    Obstacle.NO_END: (FailureKind.RESPONSE_TIMEOUT, Reason.ENDLESS),
    Obstacle.NO_IPV4: (FailureKind.UNREACHABLE, Reason.NO_IPV4),
    Obstacle.NO_IPV6: (FailureKind.UNREACHABLE, Reason.NO_IPV6),
    Obstacle.OTHER_PROCESS: (FailureKind.SENDER_DOWN, None),
    Obstacle.UNTOLD: (FailureKind.OTHER, None),
}

# The types among those of an answer that ends too early.
_CUT = ("_DataLoss", "PotentialDataLoss")

# What these mean depends on who raises them: the network's and Synapse's clients do for
# an answer that they cannot read, and for a name that can be no host's. Anywhere else
# they are a bug.
_OF_CLIENTS: tuple[_Row, ...] = (
    ((ValueError,), FailureKind.INVALID_RESPONSE, Reason.NOT_JSON),
    # For a Content-Type that it does not want.
    ((RuntimeError,), FailureKind.INVALID_RESPONSE, Reason.WRONG_CONTENT_TYPE),
)

# What Twisted and Python say of names to which nothing can connect.
_NO_NAME = ("invalid hostname", "Port out of range")


# The facts that another process of this homeserver is told.
_TOLD = ("host", "status", "said", "exception", "code", "issuer", "subject", "ago_ms")


def failure_of(error: BaseException) -> Failure:
    """Tell why a request failed.

    Args:
        error: What Synapse's federation client has raised.

    Returns:
        The failure. Of the kind INTERNAL, `is_ours`, if it is a bug on this side, or
        this process has nothing left: it is logged here, and the caller must not take
        it for one of the other server.
    """
    failure, cause = _found(error), innermost(error)
    if failure.reason is Reason.OUT_OF_RESOURCES:
        logger.warning("A federation request found nothing left to make it: %s", cause)
    elif failure.is_ours:
        logger.error(
            "Internal error in a federation request; it tells nothing of the other "
            "server: please report it",
            exc_info=(type(cause), cause, cause.__traceback__),
        )
    return failure


async def result_or_failure(request: Awaitable[T]) -> T | Failure:
    """Await a request; return what comes of it, or why it failed.

    Raises:
        CancelledError: It was called off, as Synapse shuts down.
    """
    try:
        return await request
    except CancelledError:
        raise
    except Exception as error:
        failure = failure_of(error)
        forget_frames(error)
        return failure


def is_ours(error: BaseException) -> bool:
    """Tell whether a request failed by this side's fault; nothing is logged."""
    return _found(error).is_ours


def _found(error: BaseException) -> Failure:
    cause = innermost(error)
    if is_out_of_resources(cause):
        return Failure(FailureKind.INTERNAL, Reason.OUT_OF_RESOURCES)
    if isinstance(cause, MetElsewhereError):
        return _failure_told(cause.told)
    if isinstance(cause, HttpResponseException):
        return http_failure(cause.code, cause.response or b"")
    return _read(cause, is_of_clients=cause is not error)


def described(error: BaseException) -> str:
    """Say for another process of this homeserver why a request failed."""
    failure = failure_of(error)
    facts = attr.asdict(failure.facts, filter=lambda field, _: field.name in _TOLD)
    facts["also"] = [kind.value for kind in failure.facts.also]
    reason = failure.reason.value if failure.reason else None
    return json.dumps([failure.kind.value, reason, facts])


def _failure_told(description: str) -> Failure:
    """Return the failure that another process has met; see `described`."""
    try:
        kind, reason, facts = json.loads(description)
        also = facts.pop("also", ())
        return Failure(
            FailureKind[kind.upper()],
            Reason[reason.upper()] if reason else None,
            Facts(
                **facts,
                also=tuple(FailureKind[kind.upper()] for kind in also),
                is_relayed=True,
            ),
        )
    except (AttributeError, LookupError, ValueError, TypeError):
        # It has another release of this module.
        return Failure(FailureKind.OTHER, facts=Facts(is_relayed=True))


def _stopped_by(error: ObstacleError) -> Failure:
    """Tell what an obstacle means that our own agents have met."""
    if error.obstacle is Obstacle.BAD_DELEGATION:
        is_empty = not error.host
        reason = Reason.M_SERVER_EMPTY if is_empty else Reason.M_SERVER_INVALID
        facts = Facts(said=bounded(error.host))
        return Failure(FailureKind.WELL_KNOWN_INVALID, reason, facts)
    if error.obstacle is Obstacle.OWN_PROXY:
        met = error.__cause__
        cause = None if met is None else _read(met, is_of_clients=True)
        facts = Facts(host=bounded(error.host), cause=cause)
        return Failure(FailureKind.PROXY_FAILED, facts=facts)
    if error.obstacle is Obstacle.LATE_FILE:
        late = Failure(FailureKind.RESPONSE_TIMEOUT)
        return Failure(FailureKind.WELL_KNOWN_UNREACHABLE, facts=Facts(cause=late))
    kind, found = _OBSTACLES[error.obstacle]
    met = error.__cause__
    facts = Facts(
        host=bounded(error.host),
        exception=bounded(f"{type(met).__name__}: {met}") if met else "",
        is_relayed=error.obstacle is Obstacle.UNTOLD,
    )
    return Failure(kind, found, facts)


def _without_file(error: WithoutFileError) -> Failure:
    """Tell what it means that nobody is where requests go without a file.

    Two facts: the file is wrong, and requests go where nobody is. The first is why.
    """
    met, file = error.__cause__, error.file
    assert met is not None
    found = _read(met, is_of_clients=True)
    if found.kind not in NOBODY_THERE:
        return found
    cause = None if file.error is None else _read(file.error, is_of_clients=True)
    # There it is as here: there is no such file.
    is_none = cause and not file.is_redirected and cause.kind in NOBODY_THERE
    why = None if is_none or (cause and cause.is_ours) else why_no_file(file, cause)
    if why is None:
        return found
    if file.addresses and all(map(is_internal, file.addresses)):
        why = why.but(Reason.LEADS_TO_INTERNAL)
    return why.but(also=(found.kind,))


def _read(cause: BaseException, *, is_of_clients: bool) -> Failure:
    """Tell what an exception means that wraps no other."""
    if isinstance(cause, WithoutFileError):
        return _without_file(cause)
    if isinstance(cause, ObstacleError):
        return _stopped_by(cause)
    text = f"{type(cause).__name__}: {cause}".removesuffix(": ")
    facts = Facts(exception=bounded(text))
    if isinstance(cause, FederationDeniedError):
        return Failure(FailureKind.NOT_ALLOWED, facts=facts)
    if isinstance(cause, SynapseError):
        is_blocked = cause.code == HTTPStatus.FORBIDDEN
        kind = FailureKind.IP_BLOCKED if is_blocked else FailureKind.OTHER
        return Failure(kind, facts=facts)
    if isinstance(cause, UntrustedCertificateError):
        return untrusted(cause)
    if isinstance(cause, VerificationError | CertificateError):
        name = expected_name(cause)
        facts = Facts(host=bounded(name))
        return Failure(
            FailureKind.TLS_WRONG_NAME, None if name else Reason.NO_NAMES, facts
        )
    if isinstance(cause, BodyExceededMaxSize) and cause.args:
        facts = Facts(most_bytes=cause.args[0])
    if isinstance(cause, SSL.Error):
        text = text_of_handshake(cause)
        reason = reason_of_handshake(text)
        return Failure(FailureKind.TLS_FAILED, reason, Facts(exception=text))
    if isinstance(cause, ProxyConnectError):
        found = _PROXY_STATUS.search(str(cause))
        status = int(found[1]) if found else None
        wants = status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
        why = Reason.PROXY_AUTHENTICATION if wants else Reason.PROXY_REFUSES
        return Failure(FailureKind.PROXY_FAILED, why, Facts(status=status))
    if isinstance(cause, net.ConnectError) and _is_closed_at_once(cause):
        # There is a way: it was taken, and closed at once, before anything was said.
        return Failure(FailureKind.TLS_FAILED, Reason.CLOSED_IN_HANDSHAKE, facts)
    if isinstance(cause, DNSLookupError) and (found := NO_RESULTS.search(str(cause))):
        facts = attr.evolve(facts, host=bounded(found[1]))
    if is_of_clients and str(cause).startswith(_NO_NAME):
        return Failure(FailureKind.INVALID_NAME, facts=facts)
    if isinstance(cause, OSError) and cause.errno in _CANNOT_SEND:
        # A datagram: of a connection, Twisted says it in words of its own.
        return Failure(FailureKind.DNS_FAILED, Reason.DNS_NO_ANSWER, facts)
    for types, kind, of_type in (*_KINDS, *(_OF_CLIENTS if is_of_clients else ())):
        if isinstance(cause, types):
            return Failure(kind, of_type, facts)
    is_of_http = type(cause).__module__.startswith(HTTP_CLIENT)
    where = stumbled_in(cause) if is_of_clients else ""
    if where == READS_DATE:
        return Failure(FailureKind.WELL_KNOWN_INVALID, Reason.EXPIRES_EMPTY, facts)
    if where.startswith(TLS_CLIENT):
        return Failure(FailureKind.TLS_FAILED, Reason.CLOSED_IN_HANDSHAKE, facts)
    if is_of_http or where.startswith(HTTP_CLIENT):
        return Failure(FailureKind.INVALID_RESPONSE, _reason_of_http(cause), facts)
    return Failure(FailureKind.INTERNAL, facts=facts)


def _is_closed_at_once(error: net.ConnectError) -> bool:
    """Tell whether a connection was made, and closed before Twisted has seen that.

    It then has the error of the system, or a failure in place of a text.
    """
    reasons = (getattr(argument, "value", None) for argument in error.args)
    return error.osError in _CLOSED_AT_ONCE or any(
        isinstance(reason, net.ConnectionDone | net.ConnectionLost)
        for reason in reasons
    )


def _reason_of_http(cause: BaseException) -> Reason | None:
    """Return why Twisted's HTTP client cannot read an answer."""
    name, data = type(cause).__name__, getattr(cause, "data", b"")
    if name in _CUT:
        return Reason.BROKE_OFF
    if name != "ParseError":
        return None
    return reason_of_bytes(data) if isinstance(data, bytes) else None
