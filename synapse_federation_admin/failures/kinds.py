# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail: the cause, and the facts.

Each kind stands here with what people are told of it, and each reason below one in
`synapse_federation_admin.failures.reasons`. Sentences are made of that by
`synapse_federation_admin.failures.text` alone. The file is as long as the table in it.

A text begins with the field's term, the one to search for, and is about the other
server ("the server", "their admin") or about this one ("this host", "this homeserver").
In what follows the headline, and in advice, `{host}`, `{port}`, `{said}` and
`{target}` stand for these facts, `{status}` for "HTTP 404", `{expired}` for "expired 3
d ago", `{mismatch}` for "for a.example, not for b.example", `{ahead}` for "2 h ahead
of" or "2 h behind",
`{left}` for "23 h", `{until}` for "14:05 UTC", `{begins}` for ': it begins with "<"',
`{has}` for "; it has a, b", `{most}` for " (more than 50 KiB)", `{issuer}` and
`{subject}` for whom a certificate names, `{server}` for " (nginx)", `{starts}`
for "it becomes valid only in 23 h; ". Advice says who has
to act: "Tell their admin: ...", what the reader has to do, or "Nothing to do".
"""

from typing import Any, NamedTuple

import attr

from synapse_federation_admin.failures.reasons import (
    CHECK_KEY,
    KEYS_UNVERIFIED,
    SET_CLOCK as SET_CLOCK,
    UNBLOCK,
    Fault as Fault,
    Reason as Reason,
    Worded,
)


class FailureKind(Worded):
    """Why a request to another server fails: one cause each, the same everywhere."""

    def __init__(
        self,
        headline: str,
        because: str,
        advice: str,
        fault: Fault = Fault.THEM,
    ) -> None:
        """Say what is told: the field's term, what follows it, what to do, whose."""
        self.headline = headline
        self.because = because
        self.advice = advice
        self.fault = fault

    INVALID_NAME = (
        "Invalid server name",
        "",
        "Check the spelling. If nobody uses the name any more, forget the destination.",
        Fault.UNKNOWN,
    )
    NOT_ALLOWED = (
        "Not allowed by federation_domain_whitelist",
        "",
        "To federate with this server, add it there and restart Synapse.",
        Fault.US,
    )
    IP_BLOCKED = (
        "IP address blocked",
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        UNBLOCK,
        Fault.UNKNOWN,
    )
    WELL_KNOWN_INVALID = (
        "Invalid /.well-known/matrix/server",
        "",
        'Tell their admin: the file has to be {{"m.server": "host:port"}}, and nothing '
        "else.",
    )
    WELL_KNOWN_UNREACHABLE = (
        "Cannot fetch /.well-known/matrix/server",
        "",
        "Tell their admin: {host} port 443 has to serve the file, or to answer 404 if "
        "the server does not delegate.",
    )
    DNS_NOT_FOUND = (
        "Host name not found in DNS",
        "the domain may be gone, or the resolver of this host does not work",
        "Check the spelling, and whether this host finds other names. If so, ask their "
        "admin; if nobody uses the name any more, forget the destination.",
        Fault.UNKNOWN,
    )
    DNS_FAILED = (
        "DNS lookup failed",
        "the name servers of the domain or the resolver of this host do not work",
        "If other servers fail in the same way, check the resolver of this host "
        "(/etc/resolv.conf). If not, tell their admin: their name servers fail.",
        Fault.UNKNOWN,
    )
    CONNECTION_REFUSED = (
        "Connection refused",
        "the server is down or its port is closed",
        "Wait until the server is up again, or tell their admin.",
    )
    CONNECTION_TIMEOUT = (
        "Connection timed out",
        "the host is down, or a firewall drops the connection",
        "If other homeservers reach the server, check the firewall of this host. If "
        "not, tell their admin.",
        Fault.UNKNOWN,
    )
    UNREACHABLE = (
        "No route to host",
        "the network has no route to the address of the server",
        "Check the routes and the firewall of this host. If other servers can be "
        "reached, tell their admin.",
        Fault.UNKNOWN,
    )
    TLS_EXPIRED = (
        "Expired TLS certificate",
        "the server's certificate, or one in its chain, has expired",
        "Ask their admin to renew the certificate.",
    )
    TLS_NOT_YET_VALID = (
        "TLS certificate not valid yet",
        "{starts}its start date is wrong, or the clock of this host",
        "Check the clock of this host. If it is right, tell their admin.",
        Fault.UNKNOWN,
    )
    TLS_WRONG_NAME = (
        "TLS certificate for another host name",
        "it is {mismatch}",
        "Tell their admin: a certificate that includes {host} is needed; or their web "
        "server lacks that site, and shows its default one.",
    )
    TLS_UNTRUSTED = (
        "Untrusted certificate chain",
        "it does not lead to an authority that this homeserver trusts",
        "Ask their admin for the full chain of a trusted authority. If the "
        "authority is your own, add it to federation_custom_ca_list and restart "
        "Synapse.",
    )
    TLS_FAILED = (
        "TLS handshake failed",
        "the server does not speak TLS there, or none that this host accepts",
        "Tell their admin: the port does not speak TLS, has no TLS version in "
        "common with this host, or asks for a client certificate.",
    )
    REJECTED = (
        "Requests rejected",
        "the server is up, but does not accept them from this homeserver",
        CHECK_KEY,
        Fault.UNKNOWN,
    )
    RATE_LIMITED = (
        "Rate-limited by the remote server",
        "",
        "Wait. If it goes on, ask their admin to raise the limit for this homeserver.",
    )
    GONE = (
        "Server permanently gone",
        "it answers {status}",
        "If their admin confirms it, forget the destination.",
    )
    HTTP_ERROR = (
        "HTTP error",
        "a web server answers, but no homeserver behind it",
        "Tell their admin: the homeserver, or a reverse proxy before it, answers with "
        "an error; the logs there say why.",
    )
    RESPONSE_TIMEOUT = (
        "Response timed out",
        "the server accepts connections, but does not answer in time",
        "Wait, or tell their admin: the server is overloaded or stuck.",
    )
    INVALID_RESPONSE = (
        "Invalid response",
        "what answers is not a Matrix homeserver, or the response broke off",
        "Tell their admin: something other than a homeserver answers, or something "
        "before it changes its responses.",
    )
    PROXY_FAILED = (
        "This homeserver's own proxy does not connect",
        "",
        "Check https_proxy and no_proxy, and that the proxy runs. This tells nothing "
        "of the other server.",
        Fault.US,
    )
    KEYS_MISSING = (
        "No signing keys",
        "/_matrix/key/v2/server returns none",
        KEYS_UNVERIFIED,
    )
    KEYS_INVALID = (
        "Invalid signing keys",
        "the response of /_matrix/key/v2/server is wrong",
        KEYS_UNVERIFIED,
    )
    KEYS_EXPIRED = (
        "Expired signing keys",
        "they {expired}, by the clock of this host",
        "Check the clock of this host. If it is right, tell their admin: the "
        "homeserver has to be restarted, or its clock set.",
        Fault.UNKNOWN,
    )
    OTHER = (
        "Unknown error",
        "",
        "See the stages of the diagnosis and the log of Synapse.",
        Fault.UNKNOWN,
    )
    TOO_LARGE = (
        "Request too large",
        "the server or its reverse proxy does not accept requests of this size",
        "Ask their admin to raise the size limit of their reverse proxy "
        "(client_max_body_size in nginx).",
    )
    SENDER_DOWN = (
        "Federation sender down",
        "{instance}, the process that sends to this server, does not run",
        "Start {instance}, a process of this homeserver.",
        Fault.US,
    )
    SENDER_BEHIND = (
        "Federation sender behind",
        "{instance} has not sent what was written {ago} ago",
        "Check Redis, if any, and the log of {instance}, a process of this homeserver. "
        "If it has just started, it begins with the next event. If not, restart it.",
        Fault.US,
    )
    IS_US = (
        "Name of this homeserver itself",
        "what answers there has our own server_name and signing key",
        "Nothing can be sent to a name that leads back here. Check its DNS records and "
        "/etc/hosts of this host. If nobody uses the name, forget the destination.",
        Fault.UNKNOWN,
    )
    INTERNAL = (
        "Internal error in synapse-federation-admin",
        "this tells nothing of the other server",
        "See the log of Synapse for the error, and report it.",
        Fault.US,
    )


# In place of a kind, where a destination fails and it is not known why: no request has
# failed since this module was installed, or the kind is that of another release.
UNKNOWN_KIND = "unknown"

# Those of which no request tells: what this homeserver itself does not do.
OWN_KINDS = (
    FailureKind.INTERNAL,
    FailureKind.SENDER_DOWN,
    FailureKind.SENDER_BEHIND,
)

# What may be asked for, and is counted: every kind of theirs, and UNKNOWN_KIND.
FAILURE_KINDS = (
    *(kind.value for kind in FailureKind if kind not in OWN_KINDS),
    UNKNOWN_KIND,
)

# Those that are about TLS and certificates.
TLS_KINDS = frozenset(
    {
        FailureKind.TLS_EXPIRED,
        FailureKind.TLS_NOT_YET_VALID,
        FailureKind.TLS_WRONG_NAME,
        FailureKind.TLS_UNTRUSTED,
        FailureKind.TLS_FAILED,
    }
)


# With these nothing is at the place to which requests go: the place may be wrong.
NOBODY_THERE = (
    FailureKind.CONNECTION_REFUSED,
    FailureKind.CONNECTION_TIMEOUT,
    FailureKind.DNS_NOT_FOUND,
    FailureKind.DNS_FAILED,
    FailureKind.UNREACHABLE,
    FailureKind.IP_BLOCKED,
)


class How(Worded):
    """How a place was found, with what people are told of it.

    Of a link the text has `{to}` and `{port}`. What is found otherwise, by the server
    name alone, has no link.
    """

    def __init__(self, first: str, later: str = "") -> None:
        """Say what is told of the first link, and of one that comes after another."""
        self.first = first
        self.later = later

    # The server name has a port: nothing else is asked where the server is.
    PORT = "The server name itself has port {port}"

    FILE = "Their well-known file names {to} port {port}"
    FILE_WITHOUT_PORT = (
        "Their well-known file names {to} without a port, which means {port}"
    )
    SERVICE = (
        "Their SRV record names {to} port {port}",
        "Their well-known file names {from_}, and the SRV record of that names {to} "
        "port {port}",
    )

    # The name to which a file delegates has a file of its own. Nobody follows that.
    SECOND_FILE = (
        "Their well-known file delegates on to {to} port {port}; nobody follows that",
        "Their well-known file names {from_}, and that delegates on to {to} port "
        "{port}, which nobody follows",
    )

    # Of the well-known file itself.
    REDIRECT = "Their web server redirects the file to {to}"


class Link(NamedTuple):
    """One step from a server name to a place.

    Attributes:
        how: How it was found.
        to: The host, or the URL, as it may be told.
        port: The port there; None of a URL.
    """

    how: How
    to: str
    port: int | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True, kw_only=True)
class Facts:
    """What is particular of a failure; of each that is not known, its default.

    Texts in which a remote server has a say are one bounded line of printable ASCII.

    Attributes:
        host: The host name that it is about.
        address: The IP address, or the host, to which a connection failed.
        port: The port there.
        via: How a request comes to that host from the server name, step by step.
        target: Where the host, if it is an alias, leads to; or what a file that is
            wrong would have to name.
        more: How many other addresses fail in the same way.
        status: The HTTP status.
        errcode: The Matrix error in the answer.
        said: What the other side says of it, or OpenSSL.
        exception: The exception: for whoever reports a bug, and not for an operator.
        code: OpenSSL's verification error, one of its `X509_V_ERR_*`.
        issuer: Who issued that certificate; "" if that is unknown.
        subject: Whose certificate it is, if it is not the server's own.
        server: What answers over HTTP calls itself.
        names: Names: of a certificate, or blocked addresses; the first some of them.
        ago_ms: How long ago something expired, or was last seen.
        left_ms: How long it goes on by itself: for how long something is cached.
        until_ts: Until when that is, in ms since the epoch.
        most_bytes: The size up to which an answer is read; 0 if that is not the matter.
        took_ms: How long an answer took.
        instance: The process of this homeserver that it is about.
        position: To which stream ordering its position can be set back.
        ahead_ms: How much their clock is ahead of ours; negative if it is behind.
        also: What else is wrong with the same thing, or with other addresses.
        cause: What it comes from: of a well-known file, what the request met.
        is_relayed: Whether another process of this homeserver has met it, and tells.
        others: How many others have servers that fail by the same authority.
    """

    host: str = ""
    address: str = ""
    port: int | None = None
    via: tuple[Link, ...] = ()
    target: str = ""
    more: int = 0
    status: int | None = None
    errcode: str = ""
    said: str = ""
    exception: str = ""
    code: int | None = None
    issuer: str = ""
    subject: str = ""
    server: str = ""
    names: tuple[str, ...] = ()
    ago_ms: int | None = None
    left_ms: int = 0
    until_ts: int = 0
    most_bytes: int = 0
    took_ms: int = 0
    instance: str = ""
    position: int | None = None
    ahead_ms: int = 0
    also: tuple[FailureKind, ...] = ()
    cause: "Failure | None" = None
    is_relayed: bool = False
    others: int = 0


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Failure:
    """Why a request failed. In words: `synapse_federation_admin.failures.text`.

    Attributes:
        kind: The cause.
        reason: What exactly; None if that is not known.
        facts: What is particular of it.
    """

    kind: FailureKind
    reason: Reason | None = None
    facts: Facts = attr.Factory(Facts)

    @property
    def is_ours(self) -> bool:
        """Whether it is a bug on this side, and tells nothing of the other server."""
        return self.kind is FailureKind.INTERNAL

    def but(self, reason: Reason | None = None, **facts: Any) -> "Failure":
        """Return it with some other facts; and with another reason, if one is given."""
        return attr.evolve(
            self,
            reason=reason or self.reason,
            facts=attr.evolve(self.facts, **facts),
        )


class HasFailure:
    """What has a failure, or None for there being none."""

    failure: Failure | None

    @property
    def kind(self) -> FailureKind | None:
        """What is wrong; None if nothing is."""
        return self.failure.kind if self.failure else None

    @property
    def reason(self) -> Reason | None:
        """What exactly, below the kind; None where that cannot be told."""
        return self.failure.reason if self.failure else None
