# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail: the cause, the reason below it, and the facts."""

from enum import Enum

import attr


class FailureKind(Enum):
    """Why a request to another server fails: one cause each, the same everywhere.

    Recorded as the bit of its place here: a new one comes last, and none is removed.
    """

    INVALID_NAME = "invalid_name"
    NOT_ALLOWED = "not_allowed"
    IP_BLOCKED = "ip_blocked"
    WELL_KNOWN_INVALID = "well_known_invalid"
    WELL_KNOWN_UNREACHABLE = "well_known_unreachable"
    DNS_NOT_FOUND = "dns_not_found"
    DNS_FAILED = "dns_failed"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TIMEOUT = "connection_timeout"
    UNREACHABLE = "unreachable"
    TLS_EXPIRED = "tls_expired"
    TLS_NOT_YET_VALID = "tls_not_yet_valid"
    TLS_WRONG_NAME = "tls_wrong_name"
    TLS_UNTRUSTED = "tls_untrusted"
    TLS_FAILED = "tls_failed"
    REJECTED = "rejected"
    RATE_LIMITED = "rate_limited"
    GONE = "gone"
    HTTP_ERROR = "http_error"
    RESPONSE_TIMEOUT = "response_timeout"
    INVALID_RESPONSE = "invalid_response"
    KEYS_MISSING = "keys_missing"
    KEYS_INVALID = "keys_invalid"
    KEYS_EXPIRED = "keys_expired"
    OTHER = "other"
    TOO_LARGE = "too_large"

    # Not of the other server: an exception that is no error of the network or of the
    # protocol, so a bug on this side. It is never recorded as a failure of theirs.
    INTERNAL = "internal"


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


class Reason(Enum):
    """What exactly is wrong, below a kind, where that can be told."""

    # invalid_name
    NAME_IS_URL = "name_is_url"
    NAME_NOT_ASCII = "name_not_ascii"
    NAME_MALFORMED = "name_malformed"
    PORT_INVALID = "port_invalid"
    IPV6_INVALID = "ipv6_invalid"
    LABEL_EMPTY = "label_empty"
    LABEL_TOO_LONG = "label_too_long"
    NAME_REFUSED = "name_refused"
    OWN_NAME = "own_name"

    # ip_blocked: the address is the server name itself, for which `ip_range_whitelist`
    # does not count; only some addresses of the host are blocked.
    ADDRESS_IS_NAME = "address_is_name"
    SOME_ADDRESSES = "some_addresses"

    # well_known_invalid; those about JSON also below invalid_response and keys_invalid.
    BODY_TOO_LARGE = "body_too_large"
    NOT_JSON = "not_json"
    M_SERVER_MISSING = "m_server_missing"
    M_SERVER_NOT_A_STRING = "m_server_not_a_string"
    M_SERVER_INVALID = "m_server_invalid"

    # well_known_unreachable
    REDIRECT_WITHOUT_TARGET = "redirect_without_target"
    REDIRECT_INVALID = "redirect_invalid"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    LEADS_TO_BLOCKED = "leads_to_blocked"

    # dns_not_found, dns_failed
    NO_SUCH_HOST = "no_such_host"
    NO_HOST_NAME = "no_host_name"
    DNS_NO_ANSWER = "dns_no_answer"
    DNS_SERVER_FAILURE = "dns_server_failure"

    # unreachable
    NO_SERVICE = "no_service"
    NO_IPV4 = "no_ipv4"
    NO_IPV6 = "no_ipv6"

    # Any kind: only the request for keys fails.
    KEYS_REQUEST = "keys_request"

    # connection_refused, connection_timeout: there is a web server, which does not
    # delegate.
    MAY_LACK_DELEGATION = "may_lack_delegation"

    # connection_timeout, unreachable, other: this homeserver's own proxy is in between.
    PROXY = "proxy"

    # tls_expired, tls_not_yet_valid: the server's own certificate; one in its chain.
    OWN_CERTIFICATE = "own_certificate"
    IN_CHAIN = "in_chain"

    # tls_untrusted
    SELF_SIGNED = "self_signed"
    UNKNOWN_AUTHORITY = "unknown_authority"
    MISSING_INTERMEDIATE = "missing_intermediate"
    NOT_AN_AUTHORITY = "not_an_authority"
    WRONG_PURPOSE = "wrong_purpose"
    NAME_NOT_PERMITTED = "name_not_permitted"
    WEAK_KEY = "weak_key"
    WEAK_SIGNATURE = "weak_signature"

    # tls_wrong_name, tls_failed
    NO_NAMES = "no_names"
    CLOSED_IN_HANDSHAKE = "closed_in_handshake"

    # rejected: also requests that are not signed.
    UNSIGNED_TOO = "unsigned_too"

    # Only requests that we sign fail: with a Matrix error, or with none, as of a web
    # server, or in silence; or the server does not know such a request.
    SIGNED_ERROR = "signed_error"
    SIGNED_NOT_ROUTED = "signed_not_routed"
    SIGNED_UNANSWERED = "signed_unanswered"
    UNKNOWN_REQUEST = "unknown_request"

    # response_timeout: in the TLS handshake; where is not known here.
    IN_HANDSHAKE = "in_handshake"
    ANOTHER_PROCESS = "another_process"

    # invalid_response, keys_missing
    WRONG_CONTENT_TYPE = "wrong_content_type"
    CLOSED = "closed"

    # keys_missing, keys_invalid
    NO_ED25519_KEY = "no_ed25519_key"
    OTHER_SERVER_NAME = "other_server_name"
    NO_SERVER_NAME = "no_server_name"
    KEY_UNREADABLE = "key_unreadable"
    OLD_KEYS_NOT_AN_OBJECT = "old_keys_not_an_object"
    NOT_SIGNED = "not_signed"
    SIGNATURE_INVALID = "signature_invalid"
    VALID_UNTIL_MISSING = "valid_until_missing"
    KEY_NOT_SIGNING = "key_not_signing"
    ONE_SIGNATURE_INVALID = "one_signature_invalid"
    OTHER_KEY_STORED = "other_key_stored"

    # other
    CALLED_OFF = "called_off"
    BACKING_OFF = "backing_off"
    CACHED_DELEGATION = "cached_delegation"
    CACHED_ABSENCE = "cached_absence"

    # rejected, keys_expired, other
    CLOCK = "clock"


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
        depth: Of which certificate in the chain: 0 is the server's.
        issuer: Who issued that certificate; "" if that is unknown.
        names: Names: of a certificate, or blocked addresses; the first some of them.
        ago_ms: How long ago something expired.
        ahead_ms: How much their clock is ahead of ours; negative if it is behind.
        also: What else is wrong with the same thing.
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
    depth: int = 0
    issuer: str = ""
    names: tuple[str, ...] = ()
    ago_ms: int | None = None
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
