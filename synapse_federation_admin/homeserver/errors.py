# SPDX-License-Identifier: Apache-2.0
"""What Synapse's federation client raises, and what our own agents raise in it."""

import errno
import os
import re
import socket
from contextlib import closing, suppress
from enum import Enum
from traceback import clear_frames, walk_tb
from typing import NamedTuple
from urllib.parse import urlsplit

from OpenSSL import SSL
from synapse.api.errors import (
    FederationDeniedError as FederationDeniedError,
    HttpResponseException as HttpResponseException,
    LimitExceededError as LimitExceededError,
    RequestSendFailed as RequestSendFailed,
)
from synapse.http.client import BodyExceededMaxSize as BodyExceededMaxSize
from synapse.http.connectproxyclient import ProxyConnectError as ProxyConnectError
from synapse.http.federation.well_known_resolver import (
    WELL_KNOWN_MAX_SIZE as WELL_KNOWN_MAX_SIZE,
)
from synapse.util.retryutils import NotRetryingDestination as NotRetryingDestination
from twisted.internet import error as net
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)

# A request that failed for reasons of its own: while it was sent, or its body was made,
# or answered.
_HAS_REASONS = (ResponseFailed, RequestTransmissionFailed, RequestGenerationFailed)

# Where the exceptions are defined that mean that an answer is no HTTP, and where those
# are raised; what speaks TLS; and what reads the header that says until when a
# well-known file holds.
HTTP_CLIENT = "twisted.web."
TLS_CLIENT = "twisted.protocols.tls."
READS_DATE = "twisted.web.http.stringToDatetime"
_READS = ("dataReceived", "stringToDatetime")

# What Twisted says of a host name without an address that may be used.
NO_RESULTS = re.compile(r"no results for hostname lookup: ([^\s'\"]+)")

# What it says of a host name to which it does not connect.
BAD_HOST = "invalid hostname: "

# What this host says of an address to which it has no way at all, as of IPv6 where it
# has none.
NO_WAY = frozenset({errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

# Addresses of the global Internet, to see whether there is a route to any.
_GLOBAL = {socket.AF_INET: "192.31.196.1", socket.AF_INET6: "2001:4:112::1"}

# Too many open files, here or on the whole machine; no memory for another socket.
_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Obstacle(Enum):
    """What stops a request on its way, where Twisted or Synapse tell less of it."""

    # Of a host name: it does not exist; it has no address; the name servers return an
    # error; they do not answer in time; its addresses are blocked; it can be none.
    NO_SUCH_HOST = "no_such_host"
    NO_ADDRESS = "no_address"
    DNS_SERVER_FAILURE = "dns_server_failure"
    DNS_NO_ANSWER = "dns_no_answer"
    BLOCKED = "blocked"
    NO_HOST_NAME = "no_host_name"

    # Their SRV records say that the service is not there.
    NO_SERVICE = "no_service"

    # The well-known file delegates to what is no server name; or it does not come.
    BAD_DELEGATION = "bad_delegation"
    LATE_FILE = "late_file"

    # It delegates to this homeserver itself.
    OWN_NAME = "own_name"

    # The connection is closed in the TLS handshake; or that is not completed in time.
    CLOSED_IN_HANDSHAKE = "closed_in_handshake"
    LATE_HANDSHAKE = "late_handshake"

    # There is no answer yet in all that is read. Synapse itself would read on.
    NO_END = "no_end"

    # This host has no address of the only family that the host has.
    NO_IPV4 = "no_ipv4"
    NO_IPV6 = "no_ipv6"

    # This homeserver's own proxy is not connected to, or does not answer.
    OWN_PROXY = "own_proxy"

    # This process has no descriptor, thread or memory left.
    OUT_OF_RESOURCES = "out_of_resources"

    # The other process of this homeserver is not reached through which this one goes
    # out; or it does not tell what it has met.
    OTHER_PROCESS = "other_process"
    UNTOLD = "untold"


class ObstacleError(Exception):
    """A request was stopped on its way.

    Attributes:
        obstacle: By what.
        host: The name that it is about: of a host, or what a file delegates to.
    """

    def __init__(
        self, obstacle: Obstacle, host: str = "", cause: BaseException | None = None
    ) -> None:
        # As it stands in the DNS: Twisted makes letters of Punycode.
        if not host.isascii():
            with suppress(UnicodeError):
                host = host.encode("idna").decode()
        super().__init__(f"{obstacle.value}: {host}" if host else obstacle.value)
        self.obstacle = obstacle
        self.host = host
        self.__cause__ = cause


class FileAnswer(NamedTuple):
    """What was met where the well-known file of a server is to be.

    Attributes:
        url: Where, after redirects.
        is_redirected: Whether there were any.
        is_proxied: Whether this homeserver's proxy was to connect.
        status: The HTTP status; None if there was no answer, or that is not known.
        content_type: As the server says it; empty if it does not.
        body: The body, or its beginning.
        error: Why there was no answer, or no end of it; None if there was.
        addresses: Those of its host, if that is because they are blocked.
    """

    url: str
    is_redirected: bool = False
    is_proxied: bool = False
    status: int | None = None
    content_type: bytes = b""
    body: bytes = b""
    error: BaseException | None = None
    addresses: tuple[str, ...] = ()


def host_in(url: str) -> str:
    """Return the host of a URL, which may be any that a server redirects to.

    "" if none can be read in it.
    """
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class UntrustedCertificateError(SSL.Error):
    """A certificate does not lead to an authority that this homeserver trusts.

    Attributes:
        code: OpenSSL's verification error, one of its `X509_V_ERR_*`.
        depth: Of which certificate: 0 is the server's, others are in its chain.
        issuer: Who issued that certificate, as `CN=..., O=...`; "" if that is unknown.
        subject: Whose it is, likewise.
        ago_ms: How long ago it expired, by the clock of this host; None: it has not.
        left_ms: How long it is until it is valid; 0 if it is.
    """

    def __init__(
        self,
        code: int,
        depth: int = 0,
        issuer: str = "",
        subject: str = "",
        ago_ms: int | None = None,
        left_ms: int = 0,
    ) -> None:
        # As OpenSSL's own error, which Twisted looks into.
        said = f"certificate verify failed: OpenSSL verification error {code}"
        super().__init__([("SSL routines", "", said)])
        self.code = code
        self.depth = depth
        self.issuer = issuer
        self.subject = subject
        self.ago_ms = ago_ms
        self.left_ms = left_ms


class WithoutFileError(Exception):
    """A request was stopped where it goes without a well-known file.

    Attributes:
        file: What was met in place of that.
    """

    def __init__(self, file: FileAnswer, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.file = file
        self.__cause__ = cause


class MetElsewhereError(Exception):
    """Another process of this homeserver has met this, and tells.

    Attributes:
        told: In its words.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told


def innermost(error: BaseException) -> BaseException:
    """Return the cause of an error of Synapse's client: what is wrapped, innermost."""
    if isinstance(error, RequestSendFailed):
        return innermost(error.inner_exception)
    if isinstance(error, _HAS_REASONS) and error.reasons:
        causes = [innermost(reason.value) for reason in error.reasons]
        # A connection that is closed for a reason is closed as well.
        causes.sort(key=lambda cause: isinstance(cause, net.ConnectionClosed))
        return causes[0]
    return error


def stumbled_in(error: BaseException) -> str:
    """Return what of Twisted's stumbled over what it received, with its module, or "".

    Not all of that raises what is for it: a transfer encoding that it does not know is
    a `KeyError`, a notice of TLS that ends a handshake an `IndexError`, and so is an
    empty date.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    if not any(frame.f_code.co_name in _READS for frame in frames):
        return ""
    return f"{frames[-1].f_globals.get('__name__')}.{frames[-1].f_code.co_name}"


def is_out_of_resources(error: BaseException) -> bool:
    """Tell whether an error is that this process, or machine, has nothing left.

    That is no fault of the server that was to be asked.
    """
    if isinstance(error, ObstacleError):
        return error.obstacle is Obstacle.OUT_OF_RESOURCES
    if isinstance(error, net.CannotListenError):
        # Twisted's DNS client has no socket.
        return is_out_of_resources(error.socketError)
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_MEMORY
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    return isinstance(error, MemoryError) or number_of(error) in _OUT


def number_of(error: BaseException) -> int | None:
    """Return what the operating system has said, as in `errno`; None if nothing."""
    number = getattr(error, "osError", None) or getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def has_route(family: socket.AddressFamily) -> bool:
    """Tell whether this host has a route to any address; nothing is sent."""
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as udp:
            udp.connect((_GLOBAL[family], 9))
    except OSError as e:
        return e.errno not in NO_WAY
    return True


def are_resources_out() -> bool:
    """Tell whether this process can open no file now.

    The C library tells of it only that a name cannot be looked up for the moment.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as e:
        return e.errno in _OUT
    return False


def forget_frames(error: BaseException) -> None:
    """Have an exception, and what it wraps, let go of where it was raised.

    What was raised refers to the frames it came through, and those to it. That is
    garbage which only Synapse's garbage collection finds, every 10 to 30 s; ten
    thousand contacts that fail leave some 60 MiB of it.
    """
    if error.__traceback__ is not None:
        clear_frames(error.__traceback__)
        error.__traceback__ = None
    reasons = getattr(error, "reasons", ())
    others = [error.__cause__, error.__context__, *(r.value for r in reasons)]
    others.append(getattr(error, "inner_exception", None))
    error.__cause__ = error.__context__ = None
    for other in filter(None, others):
        forget_frames(other)
    for reason in reasons:
        reason.cleanFailure()
