# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail."""

from enum import Enum

import attr


class FailureKind(Enum):
    """Why a request to another server fails: one cause each, the same everywhere."""

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


# In place of a kind, where a destination fails and it is not known why: no request has
# failed since this module was installed, or the kind is that of another release.
UNKNOWN_KIND = "unknown"

# What may be asked for, and is counted: every kind, and UNKNOWN_KIND.
FAILURE_KINDS = (*(kind.value for kind in FailureKind), UNKNOWN_KIND)

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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Failure:
    """Why a request failed.

    Attributes:
        kind: The cause.
        message: What a person can act on: one line of printable ASCII, and not endless,
            whatever the remote server has sent.
        detail: Of that, what is particular; "" if that is nothing for a person.
    """

    kind: FailureKind
    message: str
    detail: str = attr.ib(default="", eq=False)
