# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail: the cause, the reason below it, and the facts.

Each kind and reason stands here with what people are told of it: one table, however
long. Sentences are made of that by `synapse_federation_admin.failures.text` alone.

A text begins with the field's term, the one to search for, and is about the other
server ("the server", "their admin") or about this one ("this host", "this homeserver").
In what follows the headline, and in advice, `{host}` and `{said}` stand for these
facts, `{expired}` for "expired 3 days ago", `{mismatch}` for "for a.example, not for
b.example", `{ahead}` for "2 h ahead of" or "2 h behind", `{left}` for "23 h".
"""

from enum import Enum

import attr
from typing_extensions import Self


class Fault(Enum):
    """Whose fault a failure is: who has to act."""

    US = "us"
    THEM = "them"

    # It may be either's.
    UNKNOWN = "unknown"


class _Worded(Enum):
    """An enum whose members stand with what people are told: its value comes first."""

    _value_: str

    def __new__(cls, value: str, *_: object) -> Self:
        member = object.__new__(cls)
        member._value_ = value
        return member


_UNBLOCK = (
    "If the address is right, remove it from the blacklist or add it to "
    "ip_range_whitelist, and restart Synapse. If not, tell their admin."
)
_CHECK_KEY = (
    "Check that they can fetch the key of this homeserver, that its clock is right, "
    "and that server_name and signing key are unchanged. If so, ask whether they "
    "block it."
)
_KEYS_WRONG = "Tell their admin what is wrong with /_matrix/key/v2/server."
_KEYS_UNVERIFIED = f"{_KEYS_WRONG} Until then nothing that they send can be verified."
_ONLY_OTHERS = "the server answers others, but not one that this homeserver signs"
_ASK_FOR_ANOTHER = "Ask their admin for another certificate."
_CACHE_EXPIRES = "Wait {left} until it expires, or restart Synapse with its workers."

# What to do where clocks differ and nothing fails.
SET_CLOCK = "Set the clock that is wrong, with NTP."


class FailureKind(_Worded):
    """Why a request to another server fails: one cause each, the same everywhere."""

    def __init__(
        self,
        _: str,
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
        "invalid_name",
        "Invalid server name",
        "",
        "Check the spelling. If nobody uses the name any more, forget the destination.",
        Fault.UNKNOWN,
    )
    NOT_ALLOWED = (
        "not_allowed",
        "Not allowed by federation_domain_whitelist",
        "",
        "To federate with this server, add it there and restart Synapse.",
        Fault.US,
    )
    IP_BLOCKED = (
        "ip_blocked",
        "IP address blocked",
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        _UNBLOCK,
        Fault.UNKNOWN,
    )
    WELL_KNOWN_INVALID = (
        "well_known_invalid",
        "Invalid /.well-known/matrix/server",
        "",
        'Tell their admin: the file has to be {{"m.server": "host:port"}}, with no '
        "scheme and no path.",
    )
    WELL_KNOWN_UNREACHABLE = (
        "well_known_unreachable",
        "Cannot fetch /.well-known/matrix/server",
        "",
        "Tell their admin: serve the file, or 404 if the server does not delegate.",
    )
    DNS_NOT_FOUND = (
        "dns_not_found",
        "Host name not found in DNS",
        "the domain may be gone, or the resolver of this host does not work",
        "If other servers fail in the same way, check the resolver of this host. If "
        "not, the domain may be gone: ask their admin, or forget the destination.",
        Fault.UNKNOWN,
    )
    DNS_FAILED = (
        "dns_failed",
        "DNS lookup failed",
        "the name servers of the domain or the resolver of this host do not work",
        "If other servers fail in the same way, check the resolver of this host "
        "(/etc/resolv.conf). If not, tell their admin: their name servers fail.",
        Fault.UNKNOWN,
    )
    CONNECTION_REFUSED = (
        "connection_refused",
        "Connection refused",
        "the server is down or its port is closed",
        "Wait until the server is up again, or tell their admin.",
    )
    CONNECTION_TIMEOUT = (
        "connection_timeout",
        "Connection timed out",
        "the host is down, or a firewall drops the connection",
        "If other homeservers reach the server, check the firewall of this host. If "
        "not, tell their admin.",
        Fault.UNKNOWN,
    )
    UNREACHABLE = (
        "unreachable",
        "No route to host",
        "the network has no route to the address of the server",
        "Check the routes and the firewall of this host. If other servers can be "
        "reached, tell their admin.",
        Fault.UNKNOWN,
    )
    TLS_EXPIRED = (
        "tls_expired",
        "Expired TLS certificate",
        "the server's certificate, or one in its chain, has expired",
        "Ask their admin to renew the certificate.",
    )
    TLS_NOT_YET_VALID = (
        "tls_not_yet_valid",
        "TLS certificate not valid yet",
        "its start date is wrong, or the clock of this host",
        "Check the clock of this host. If it is right, tell their admin.",
        Fault.UNKNOWN,
    )
    TLS_WRONG_NAME = (
        "tls_wrong_name",
        "TLS certificate for another host name",
        "it is {mismatch}",
        "Ask their admin for a certificate that includes {host}.",
    )
    TLS_UNTRUSTED = (
        "tls_untrusted",
        "Untrusted certificate chain",
        "it does not lead to an authority that this homeserver trusts",
        "Ask their admin for the full chain of a trusted authority. If the "
        "authority is your own, add it to federation_custom_ca_list and restart "
        "Synapse.",
    )
    TLS_FAILED = (
        "tls_failed",
        "TLS handshake failed",
        "the server does not speak TLS there, or none that this host accepts",
        "Tell their admin: the port does not speak TLS, has no TLS version in "
        "common with this host, or asks for a client certificate.",
    )
    REJECTED = (
        "rejected",
        "Requests rejected",
        "the server is up, but does not accept them from this homeserver",
        _CHECK_KEY,
        Fault.UNKNOWN,
    )
    RATE_LIMITED = (
        "rate_limited",
        "Rate-limited by the remote server",
        "",
        "Wait. If it goes on, ask their admin to raise the limit for this homeserver.",
    )
    GONE = (
        "gone",
        "Server permanently gone",
        "it answers HTTP 410",
        "If their admin confirms it, forget the destination.",
    )
    HTTP_ERROR = (
        "http_error",
        "HTTP error",
        "a web server answers, but no homeserver behind it",
        "Tell their admin: the homeserver is down, or the reverse proxy does not "
        "pass /_matrix on to it.",
    )
    RESPONSE_TIMEOUT = (
        "response_timeout",
        "Response timed out",
        "the server accepts connections, but does not answer in time",
        "Wait, or tell their admin: the server is overloaded or stuck.",
    )
    INVALID_RESPONSE = (
        "invalid_response",
        "Invalid response",
        "what answers is not a Matrix homeserver, or the response broke off",
        "Tell their admin: something other than a homeserver answers at their address.",
    )
    KEYS_MISSING = (
        "keys_missing",
        "No signing keys",
        "/_matrix/key/v2/server returns none",
        _KEYS_UNVERIFIED,
    )
    KEYS_INVALID = (
        "keys_invalid",
        "Invalid signing keys",
        "the response of /_matrix/key/v2/server is wrong",
        _KEYS_UNVERIFIED,
    )
    KEYS_EXPIRED = (
        "keys_expired",
        "Expired signing keys",
        "they {expired}, by the clock of this host",
        "Check the clock of this host. If it is right, tell their admin: the "
        "homeserver has to be restarted, or its clock set.",
        Fault.UNKNOWN,
    )
    OTHER = (
        "other",
        "Unknown error",
        "",
        "See the stages of the diagnosis and the log of Synapse.",
        Fault.UNKNOWN,
    )
    TOO_LARGE = (
        "too_large",
        "Request too large",
        "the server or its reverse proxy does not accept requests of this size",
        "Ask their admin to raise the size limit of their reverse proxy "
        "(client_max_body_size in nginx).",
    )
    INTERNAL = (
        "internal",
        "Internal error in synapse-federation-admin",
        "this tells nothing of the other server",
        "See the log of Synapse for the error, and report it.",
        Fault.US,
    )


# In place of a kind, where a destination fails and it is not known why: no request has
# failed since this module was installed, or the kind is that of another release.
UNKNOWN_KIND = "unknown"

# What may be asked for, and is counted: every kind of theirs, and UNKNOWN_KIND.
FAILURE_KINDS = (
    *(kind.value for kind in FailureKind if kind is not FailureKind.INTERNAL),
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


class Reason(_Worded):
    """What exactly is wrong, below a kind, where that can be told."""

    def __init__(
        self,
        _: str,
        because: str,
        advice: str | None = None,
        fault: Fault | None = None,
        headline: str | None = None,
    ) -> None:
        """Say what is told; what is None is that of the kind."""
        self.because = because
        self.advice = advice
        self.fault = fault
        self.headline = headline

    # Server names.
    NAME_IS_URL = "name_is_url", "a server name has no scheme and no path"
    NAME_NOT_ASCII = "name_not_ascii", "it is not ASCII: use Punycode"
    NAME_MALFORMED = "name_malformed", "a server name has the form host or host:port"
    PORT_INVALID = "port_invalid", "the port is not a number from 1 to 65535"
    IPV6_INVALID = "ipv6_invalid", "what is in brackets is not an IPv6 address"
    LABEL_EMPTY = "label_empty", "a dot is at an end, or two are in a row"
    LABEL_TOO_LONG = "label_too_long", "a label has more than 63 characters"
    NAME_REFUSED = "name_refused", "Synapse does not accept it"
    OWN_NAME = (
        "own_name",
        "it is the name of this homeserver itself",
        "Nothing to do: a homeserver does not send to itself.",
        Fault.US,
    )

    # Blocked addresses.
    ADDRESS_IS_NAME = (
        "address_is_name",
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        "To federate with this address, remove it from the blacklist and restart "
        "Synapse. ip_range_whitelist does not apply to server names.",
        Fault.US,
    )
    SOME_ADDRESSES = (
        "some_addresses",
        "because of one in federation_ip_range_blacklist or ip_range_blacklist, "
        "Synapse uses none of the host",
    )
    LEADS_TO_BLOCKED = "leads_to_blocked", "it leads to a blocked IP address", _UNBLOCK

    # The well-known file, and other answers.
    BODY_TOO_LARGE = "body_too_large", "the response is too large"
    NOT_JSON = "not_json", "the response is not a JSON object"
    WRONG_CONTENT_TYPE = "wrong_content_type", "Content-Type is not application/json"
    CLOSED = "closed", "the server closed the connection without a response"
    M_SERVER_MISSING = "m_server_missing", "m.server is missing"
    M_SERVER_NOT_A_STRING = "m_server_not_a_string", "m.server is not a string"
    M_SERVER_INVALID = "m_server_invalid", "m.server is not a server name"
    REDIRECT_WITHOUT_TARGET = "redirect_without_target", "a redirect has no Location"
    REDIRECT_INVALID = "redirect_invalid", "a redirect does not lead to a web URL"
    TOO_MANY_REDIRECTS = "too_many_redirects", "there are too many redirects"
    CACHED_DELEGATION = (
        "cached_delegation",
        "Synapse still uses {said}",
        _CACHE_EXPIRES,
        Fault.US,
        "Outdated delegation in Synapse's cache",
    )
    CACHED_ABSENCE = (
        "cached_absence",
        "Synapse still takes it that the server does not delegate",
        _CACHE_EXPIRES,
        Fault.US,
        "Outdated delegation in Synapse's cache",
    )

    # Hosts and connections.
    NO_SUCH_HOST = "no_such_host", "{host} does not exist or has no address"
    NO_HOST_NAME = "no_host_name", "{host} is not a valid host name"
    DNS_NO_ANSWER = "dns_no_answer", "no answer in time"
    DNS_SERVER_FAILURE = "dns_server_failure", "the name servers return an error"
    NO_SERVICE = (
        "no_service",
        "their SRV record says that they do not offer it",
        "Ask their admin, or forget the destination.",
        Fault.THEM,
        "No federation service",
    )
    NO_IPV4 = "no_ipv4", "this host has no IPv4", None, Fault.US
    NO_IPV6 = "no_ipv6", "this host has no IPv6", None, Fault.US
    MAY_LACK_DELEGATION = (
        "may_lack_delegation",
        "the server is down, or its web server lacks /.well-known/matrix/server",
        "Tell their admin: the homeserver is down or its port is closed, or "
        "/.well-known/matrix/server is missing on their web server at port 443.",
        Fault.THEM,
    )
    PROXY = (
        "proxy",
        "this homeserver's own proxy (https_proxy) does not connect to the server",
        "Check https_proxy and no_proxy, and the log of the proxy. If it connects "
        "to other servers, tell their admin.",
        Fault.UNKNOWN,
    )
    ANOTHER_PROCESS = (
        "another_process",
        "another process of this homeserver gets no answer; whether the server "
        "accepts connections is not known here",
    )

    # TLS.
    OWN_CERTIFICATE = "own_certificate", "the server's own certificate {expired}"
    IN_CHAIN = (
        "in_chain",
        "a certificate in the server's chain {expired}",
        "Ask their admin to renew the chain of their certificate.",
    )
    SELF_SIGNED = "self_signed", "the certificate is self-signed"
    UNKNOWN_AUTHORITY = "unknown_authority", "this host does not know its issuer"
    MISSING_INTERMEDIATE = "missing_intermediate", "the chain is not complete"
    NOT_AN_AUTHORITY = (
        "not_an_authority",
        "its issuer is no authority",
        _ASK_FOR_ANOTHER,
    )
    WRONG_PURPOSE = "wrong_purpose", "it is not for TLS servers", _ASK_FOR_ANOTHER
    NAME_NOT_PERMITTED = (
        "name_not_permitted",
        "its authority may not issue it for this name",
        _ASK_FOR_ANOTHER,
    )
    WEAK_KEY = "weak_key", "its key is too weak", _ASK_FOR_ANOTHER
    WEAK_SIGNATURE = "weak_signature", "its signature is too weak", _ASK_FOR_ANOTHER
    NO_NAMES = "no_names", "it has no subjectAltName"
    CLOSED_IN_HANDSHAKE = "closed_in_handshake", "the server closes the connection"
    IN_HANDSHAKE = "in_handshake", "the server does not complete the TLS handshake"

    # Signed requests.
    UNSIGNED_TOO = (
        "unsigned_too",
        "the server does not accept even those that need no signature",
        "Tell their admin: a firewall or proxy in front of the homeserver blocks this "
        "host.",
        Fault.THEM,
    )
    SIGNED_ERROR = (
        "signed_error",
        _ONLY_OTHERS,
        "Tell their admin: the log of their homeserver has the reason.",
    )
    SIGNED_NOT_ROUTED = (
        "signed_not_routed",
        _ONLY_OTHERS,
        "Tell their admin: their reverse proxy may pass only a part of /_matrix on "
        "to the homeserver.",
    )
    SIGNED_UNANSWERED = "signed_unanswered", _ONLY_OTHERS, _CHECK_KEY, Fault.UNKNOWN
    UNKNOWN_REQUEST = (
        "unknown_request",
        "whether the server accepts the signature of this homeserver is not known",
        "Nothing to do. If messages do not arrive there, ask their admin.",
        None,
        "Unknown request",
    )
    CALLED_OFF = (
        "called_off",
        "this homeserver called it off",
        "Nothing to do.",
        Fault.US,
        "Request cancelled",
    )
    BACKING_OFF = (
        "backing_off",
        "Synapse backs off from the server",
        "Try again.",
        Fault.US,
        "Not contacted",
    )

    # Signing keys.
    KEYS_REQUEST = (
        "keys_request",
        "only /_matrix/key/v2/server does not answer well",
        _KEYS_UNVERIFIED,
    )
    NO_ED25519_KEY = "no_ed25519_key", "there is no ed25519 key"
    OTHER_SERVER_NAME = (
        "other_server_name",
        "they are for {said}",
        "The server there calls itself {said}: use that name if it is theirs, or "
        "tell their admin.",
    )
    NO_SERVER_NAME = "no_server_name", "server_name is missing"
    KEY_UNREADABLE = "key_unreadable", "Synapse cannot read {said}"
    OLD_KEYS_NOT_AN_OBJECT = (
        "old_keys_not_an_object",
        "old_verify_keys is not an object",
    )
    NOT_SIGNED = "not_signed", "they are signed by none of them"
    SIGNATURE_INVALID = "signature_invalid", "the signature by {said} is invalid"
    VALID_UNTIL_MISSING = "valid_until_missing", "valid_until_ts is not an integer"
    KEY_NOT_SIGNING = (
        "key_not_signing",
        "they are not signed by {said}; Synapse accepts them",
        _KEYS_WRONG,
        None,
        "Signing keys partly invalid",
    )
    ONE_SIGNATURE_INVALID = (
        "one_signature_invalid",
        "the signature by {said} is invalid; Synapse accepts them",
        _KEYS_WRONG,
        None,
        "Signing keys partly invalid",
    )
    OTHER_KEY_STORED = (
        "other_key_stored",
        "Synapse has stored another key as {said}",
        "Ask their admin: the server was set up anew with a new key under an old "
        "ID, or the domain has a new owner.",
        Fault.UNKNOWN,
        "Changed signing key",
    )

    OUT_OF_RESOURCES = (
        "out_of_resources",
        "this process has no file descriptor, thread or memory left; this tells "
        "nothing of the other server",
        "Raise the limit of open files of Synapse (LimitNOFILE in systemd), or the "
        "memory of this host, and see what uses them up.",
        Fault.US,
        "Out of resources",
    )
    CLOCK = (
        "clock",
        "their clock is {ahead} ours",
        f"{SET_CLOCK} If requests still fail then, ask their admin.",
        Fault.UNKNOWN,
    )


@attr.s(slots=True, frozen=True, auto_attribs=True, kw_only=True)
class Facts:
    """What is particular of a failure; of each that is not known, its default.

    Texts in which a remote server has a say are one bounded line of printable ASCII.

    Attributes:
        host: The host name that it is about.
        address: The IP address, or the host, to which a connection failed.
        port: The port there.
        more: How many other addresses fail in the same way.
        status: The HTTP status.
        errcode: The Matrix error in the answer.
        said: What the other side says of it, or OpenSSL.
        exception: The exception: for whoever reports a bug, and not for an operator.
        code: OpenSSL's verification error, one of its `X509_V_ERR_*`.
        issuer: Who issued that certificate; "" if that is unknown.
        names: Names: of a certificate, or blocked addresses; the first some of them.
        ago_ms: How long ago something expired.
        left_ms: How long it goes on by itself: for how long something is cached.
        ahead_ms: How much their clock is ahead of ours; negative if it is behind.
        also: What else is wrong with the same thing, or with other addresses.
        cause: What it comes from: of a well-known file, what the request met.
        is_relayed: Whether another process of this homeserver has met it, and tells.
    """

    host: str = ""
    address: str = ""
    port: int | None = None
    more: int = 0
    status: int | None = None
    errcode: str = ""
    said: str = ""
    exception: str = ""
    code: int | None = None
    issuer: str = ""
    names: tuple[str, ...] = ()
    ago_ms: int | None = None
    left_ms: int = 0
    ahead_ms: int = 0
    also: tuple[FailureKind, ...] = ()
    cause: "Failure | None" = None
    is_relayed: bool = False


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
