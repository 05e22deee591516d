# SPDX-License-Identifier: Apache-2.0
"""The table of texts about failures: what people are told of each kind and reason.

One table, however long. A text begins with the field's term, the one to search for, and
is about the other server ("the server", "their admin") or about this one ("this host",
"this homeserver").

In what follows the headline, and in advice, `{host}` and `{said}` stand for these
facts, `{expired}` for "expired 3 days ago", `{mismatch}` for "for a.example, not for
b.example", `{ahead}` for "2 h ahead of" or "2 h behind".
"""

from enum import Enum

import attr

from synapse_federation_admin.failures.kinds import FailureKind as Kind
from synapse_federation_admin.failures.kinds import Reason


class Fault(Enum):
    """Whose fault a failure is: who has to act."""

    US = "us"
    THEM = "them"

    # It may be either's.
    UNKNOWN = "unknown"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Wording:
    """What is told of a kind; of a reason, where it differs from that of its kind.

    Attributes:
        headline: The field's term; None: that of the kind.
        because: What follows it after a colon; "" if nothing does.
        advice: What to do; None: that of the kind.
        fault: Whose it is; None: that of the kind, and of that: theirs.
    """

    headline: str | None
    because: str
    advice: str | None = None
    fault: Fault | None = None


KINDS: dict[Kind, Wording] = {
    Kind.INVALID_NAME: Wording(
        "Invalid server name",
        "",
        "Check the spelling. If nobody uses the name any more, forget the destination.",
        Fault.UNKNOWN,
    ),
    Kind.NOT_ALLOWED: Wording(
        "Not allowed by federation_domain_whitelist",
        "",
        "To federate with this server, add it to federation_domain_whitelist and "
        "restart Synapse.",
        Fault.US,
    ),
    Kind.IP_BLOCKED: Wording(
        "IP address blocked",
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        "If the address is right, remove it from the blacklist or add it to "
        "ip_range_whitelist, and restart Synapse. If not, ask their admin to correct "
        "where the name leads.",
        Fault.UNKNOWN,
    ),
    Kind.WELL_KNOWN_INVALID: Wording(
        "Invalid /.well-known/matrix/server",
        "",
        "Ask their admin to correct the file. It has the form "
        '{{"m.server": "host:port"}}, with no scheme and no path.',
    ),
    Kind.WELL_KNOWN_UNREACHABLE: Wording(
        "Cannot fetch /.well-known/matrix/server",
        "",
        "Ask their admin to have the file served, or 404 if the server does not "
        "delegate.",
    ),
    Kind.DNS_NOT_FOUND: Wording(
        "Host name not found in DNS",
        "the domain may be gone, or the resolver of this host does not work",
        "If other servers fail in the same way, check the resolver of this host. If "
        "not, the domain may be gone: ask their admin, or forget the destination.",
        Fault.UNKNOWN,
    ),
    Kind.DNS_FAILED: Wording(
        "DNS lookup failed",
        "the name servers of the domain or the resolver of this host do not work",
        "If other servers fail in the same way, check the resolver of this host "
        "(/etc/resolv.conf). If not, their name servers are broken: tell their admin.",
        Fault.UNKNOWN,
    ),
    Kind.CONNECTION_REFUSED: Wording(
        "Connection refused",
        "the server is down or its port is closed",
        "Wait until the server is up again, or ask their admin.",
    ),
    Kind.CONNECTION_TIMEOUT: Wording(
        "Connection timed out",
        "the host is down, or a firewall drops the connection",
        "If other homeservers reach the server, check the firewall of this host. If "
        "not, tell their admin: the host is down, or their firewall drops connections.",
        Fault.UNKNOWN,
    ),
    Kind.UNREACHABLE: Wording(
        "No route to host",
        "the network has no route to the address of the server",
        "Check the routes and the firewall of this host. If other servers can be "
        "reached, tell their admin.",
        Fault.UNKNOWN,
    ),
    Kind.TLS_EXPIRED: Wording(
        "Expired TLS certificate",
        "the server's certificate, or one in its chain, has expired",
        "Ask their admin to renew the certificate.",
    ),
    Kind.TLS_NOT_YET_VALID: Wording(
        "TLS certificate not valid yet",
        "its start date is wrong, or the clock of this host",
        "Check the clock of this host. If it is right, tell their admin: the "
        "certificate was made with a wrong date.",
        Fault.UNKNOWN,
    ),
    Kind.TLS_WRONG_NAME: Wording(
        "TLS certificate for another host name",
        "it is {mismatch}",
        "Ask their admin for a certificate that includes {host}.",
    ),
    Kind.TLS_UNTRUSTED: Wording(
        "Untrusted certificate chain",
        "it does not lead to an authority that this homeserver trusts",
        "Ask their admin for the full chain of a trusted authority. If the authority "
        "is your own, add it to federation_custom_ca_list and restart Synapse.",
    ),
    Kind.TLS_FAILED: Wording(
        "TLS handshake failed",
        "the server does not speak TLS there, or none that this host accepts",
        "Tell their admin: the port does not speak TLS, has no TLS version in common "
        "with this host, or asks for a client certificate.",
    ),
    Kind.REJECTED: Wording(
        "Requests rejected",
        "the server is up, but does not accept them from this homeserver",
        "Check that they can fetch the key of this homeserver, that its clock is "
        "right, and that server_name and signing key are unchanged. If so, ask "
        "whether they block it.",
        Fault.UNKNOWN,
    ),
    Kind.RATE_LIMITED: Wording(
        "Rate-limited by the remote server",
        "",
        "Wait. If it goes on, ask their admin to raise the limit for this homeserver.",
    ),
    Kind.GONE: Wording(
        "Server permanently gone",
        "it answers HTTP 410",
        "If their admin confirms it, forget the destination.",
    ),
    Kind.TOO_LARGE: Wording(
        "Request too large",
        "the server or its reverse proxy does not accept requests of this size",
        "Ask their admin to raise the size limit for requests of their reverse proxy "
        "(client_max_body_size in nginx).",
    ),
    Kind.HTTP_ERROR: Wording(
        "HTTP error",
        "a web server answers, but no homeserver behind it",
        "Tell their admin: the homeserver is down, or the reverse proxy does not pass "
        "/_matrix on to it.",
    ),
    Kind.RESPONSE_TIMEOUT: Wording(
        "Response timed out",
        "the server accepts connections, but does not answer in time",
        "Wait, or tell their admin: the server is overloaded or stuck.",
    ),
    Kind.INVALID_RESPONSE: Wording(
        "Invalid response",
        "what answers is not a Matrix homeserver, or the response broke off",
        "Tell their admin: something other than a homeserver answers at their address.",
    ),
    Kind.KEYS_MISSING: Wording(
        "No signing keys",
        "/_matrix/key/v2/server returns none",
        "Tell their admin: until /_matrix/key/v2/server returns a key, nothing that "
        "they send can be verified.",
    ),
    Kind.KEYS_INVALID: Wording(
        "Invalid signing keys",
        "the response of /_matrix/key/v2/server is wrong",
        "Tell their admin what is wrong with /_matrix/key/v2/server. Until it is "
        "right, nothing that they send can be verified.",
    ),
    Kind.KEYS_EXPIRED: Wording(
        "Expired signing keys",
        "they {expired}, by the clock of this host",
        "Check the clock of this host. If it is right, tell their admin: the "
        "homeserver has to be restarted, or its clock set.",
        Fault.UNKNOWN,
    ),
    Kind.OTHER: Wording(
        "Unknown error",
        "",
        "See the stages of the diagnosis and the log of Synapse.",
        Fault.UNKNOWN,
    ),
    Kind.INTERNAL: Wording(
        "Internal error in synapse-federation-admin",
        "this tells nothing of the other server",
        "See the log of Synapse for the error, and report it.",
        Fault.US,
    ),
}

_ASK_FOR_ANOTHER = "Ask their admin for another certificate."
_CHECK_SPELLING = KINDS[Kind.INVALID_NAME].advice

REASONS: dict[Reason, Wording] = {
    Reason.NAME_IS_URL: Wording(None, "a server name has no scheme and no path"),
    Reason.NAME_NOT_ASCII: Wording(
        None, "it has characters outside ASCII; domains are written in Punycode"
    ),
    Reason.NAME_MALFORMED: Wording(
        None, "a server name has the form host or host:port"
    ),
    Reason.PORT_INVALID: Wording(None, "the port is not a number from 1 to 65535"),
    Reason.IPV6_INVALID: Wording(None, "what is in brackets is not an IPv6 address"),
    Reason.LABEL_EMPTY: Wording(
        None, "it has an empty label: a dot at an end, or two in a row"
    ),
    Reason.LABEL_TOO_LONG: Wording(None, "a label has more than 63 characters"),
    Reason.NAME_REFUSED: Wording(None, "Synapse does not accept it"),
    Reason.OWN_NAME: Wording(
        None,
        "it is the name of this homeserver itself",
        "Nothing to do: a homeserver does not send to itself.",
        Fault.US,
    ),
    Reason.ADDRESS_IS_NAME: Wording(
        None,
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        "To federate with this address, remove it from the blacklist and restart "
        "Synapse. ip_range_whitelist does not apply to server names.",
        Fault.US,
    ),
    Reason.SOME_ADDRESSES: Wording(
        None,
        "because of one in federation_ip_range_blacklist or ip_range_blacklist, "
        "Synapse uses none of the host",
    ),
    Reason.BODY_TOO_LARGE: Wording(None, "the response is too large"),
    Reason.NOT_JSON: Wording(None, "the response is not a JSON object"),
    Reason.M_SERVER_MISSING: Wording(None, "m.server is missing"),
    Reason.M_SERVER_NOT_A_STRING: Wording(None, "m.server is not a string"),
    Reason.M_SERVER_INVALID: Wording(None, "m.server is not a server name"),
    Reason.REDIRECT_WITHOUT_TARGET: Wording(None, "a redirect has no Location"),
    Reason.REDIRECT_INVALID: Wording(None, "a redirect does not lead to a web URL"),
    Reason.TOO_MANY_REDIRECTS: Wording(None, "there are too many redirects"),
    Reason.LEADS_TO_BLOCKED: Wording(
        None, "it leads to a blocked IP address", KINDS[Kind.IP_BLOCKED].advice
    ),
    Reason.NO_SUCH_HOST: Wording(None, "{host} does not exist or has no address"),
    Reason.NO_HOST_NAME: Wording(None, "{host} is not a valid host name"),
    Reason.DNS_NO_ANSWER: Wording(None, "no answer in time"),
    Reason.DNS_SERVER_FAILURE: Wording(None, "the name servers return an error"),
    Reason.NO_SERVICE: Wording(
        "No federation service",
        "their SRV record says that they do not offer it",
        "Ask their admin, or forget the destination.",
        Fault.THEM,
    ),
    Reason.NO_IPV4: Wording(None, "this host has no IPv4", None, Fault.US),
    Reason.NO_IPV6: Wording(None, "this host has no IPv6", None, Fault.US),
    Reason.MAY_LACK_DELEGATION: Wording(
        None,
        "the server is down, or its web server lacks /.well-known/matrix/server",
        "Tell their admin: the homeserver is down or its port is closed, or "
        "/.well-known/matrix/server is missing on their web server at port 443.",
        Fault.THEM,
    ),
    Reason.PROXY: Wording(
        None,
        "this homeserver's own proxy (https_proxy) does not connect to the server",
        "Check https_proxy and no_proxy, and the log of the proxy. If it connects to "
        "other servers, tell their admin.",
        Fault.UNKNOWN,
    ),
    Reason.SELF_SIGNED: Wording(None, "the certificate is self-signed"),
    Reason.UNKNOWN_AUTHORITY: Wording(None, "this host does not know its issuer"),
    Reason.MISSING_INTERMEDIATE: Wording(None, "intermediate certificates are missing"),
    Reason.NOT_AN_AUTHORITY: Wording(
        None, "its issuer is not an authority", _ASK_FOR_ANOTHER
    ),
    Reason.WRONG_PURPOSE: Wording(None, "it is not for TLS servers", _ASK_FOR_ANOTHER),
    Reason.NAME_NOT_PERMITTED: Wording(
        None, "its authority may not issue it for this name", _ASK_FOR_ANOTHER
    ),
    Reason.WEAK_KEY: Wording(None, "its key is too weak", _ASK_FOR_ANOTHER),
    Reason.WEAK_SIGNATURE: Wording(
        None, "its signature algorithm is too weak", _ASK_FOR_ANOTHER
    ),
    Reason.OWN_CERTIFICATE: Wording(None, "the server's own certificate {expired}"),
    Reason.IN_CHAIN: Wording(
        None,
        "a certificate in the server's chain has expired",
        "Ask their admin to renew the chain of their certificate.",
    ),
    Reason.NO_NAMES: Wording(None, "it has no subjectAltName"),
    Reason.CLOSED_IN_HANDSHAKE: Wording(None, "the server closes the connection"),
    Reason.UNSIGNED_TOO: Wording(
        None,
        "the server does not accept even those that need no signature",
        "Ask their admin: a firewall or proxy in front of the homeserver blocks this "
        "host.",
        Fault.THEM,
    ),
    Reason.SIGNED_ERROR: Wording(
        None,
        "the server answers others, but not one that this homeserver signs",
        "Tell their admin: the log of their homeserver has the reason.",
    ),
    Reason.SIGNED_NOT_ROUTED: Wording(
        None,
        "the server answers others, but not one that this homeserver signs",
        "Tell their admin: their reverse proxy may pass only a part of /_matrix on to "
        "the homeserver.",
    ),
    Reason.SIGNED_UNANSWERED: Wording(
        None,
        "the server answers others, but not one that this homeserver signs",
        KINDS[Kind.REJECTED].advice,
        Fault.UNKNOWN,
    ),
    Reason.UNKNOWN_REQUEST: Wording(
        "Unknown request",
        "whether the server accepts the signature of this homeserver is not known",
        "Nothing to do. If messages do not arrive there, ask their admin.",
    ),
    Reason.IN_HANDSHAKE: Wording(
        None, "the server does not complete the TLS handshake in time"
    ),
    Reason.ANOTHER_PROCESS: Wording(
        None,
        "another process of this homeserver gets no answer; whether the server accepts "
        "connections is not known here",
    ),
    Reason.WRONG_CONTENT_TYPE: Wording(
        None, "the Content-Type is not application/json"
    ),
    Reason.CLOSED: Wording(None, "the server closed the connection without a response"),
    Reason.NO_ED25519_KEY: Wording(None, "there is no ed25519 key"),
    Reason.OTHER_SERVER_NAME: Wording(
        None,
        "they are for {said}",
        "The server there calls itself {said}: use that name if it is theirs, or tell "
        "their admin.",
    ),
    Reason.NO_SERVER_NAME: Wording(None, "server_name is missing"),
    Reason.KEY_UNREADABLE: Wording(None, "Synapse cannot read {said}"),
    Reason.OLD_KEYS_NOT_AN_OBJECT: Wording(None, "old_verify_keys is not an object"),
    Reason.NOT_SIGNED: Wording(None, "they are signed by none of them"),
    Reason.SIGNATURE_INVALID: Wording(None, "the signature by {said} is invalid"),
    Reason.VALID_UNTIL_MISSING: Wording(None, "valid_until_ts is not an integer"),
    Reason.KEY_NOT_SIGNING: Wording(
        "Signing keys partly invalid",
        "they are not signed by {said}; Synapse accepts them",
        "Tell their admin what is wrong with /_matrix/key/v2/server.",
    ),
    Reason.ONE_SIGNATURE_INVALID: Wording(
        "Signing keys partly invalid",
        "the signature by {said} is invalid; Synapse accepts them",
        "Tell their admin what is wrong with /_matrix/key/v2/server.",
    ),
    Reason.KEYS_REQUEST: Wording(
        None,
        "only /_matrix/key/v2/server does not answer well",
        KINDS[Kind.KEYS_MISSING].advice,
    ),
    Reason.OTHER_KEY_STORED: Wording(
        "Changed signing key",
        "Synapse has stored another key as {said}",
        "Ask their admin: the server was set up anew with a new key under an old ID, "
        "or the domain has a new owner.",
        Fault.UNKNOWN,
    ),
    Reason.CALLED_OFF: Wording(
        "Request cancelled",
        "this homeserver called it off",
        "Nothing to do.",
        Fault.US,
    ),
    Reason.BACKING_OFF: Wording(
        "Not contacted",
        "Synapse backs off from the server",
        "Try again.",
        Fault.US,
    ),
    Reason.CACHED_DELEGATION: Wording(
        "Outdated delegation in Synapse's cache",
        "Synapse still uses {said}",
        "Wait until the cached entry expires (cached.expires_ts), or restart Synapse "
        "with its workers.",
        Fault.US,
    ),
    Reason.CACHED_ABSENCE: Wording(
        "Outdated delegation in Synapse's cache",
        "Synapse still takes it that the server does not delegate",
        "Wait until the cached entry expires (cached.expires_ts), or restart Synapse "
        "with its workers.",
        Fault.US,
    ),
    Reason.CLOCK: Wording(
        None,
        "their clock is {ahead} ours",
        "Set the clock that is wrong, with NTP. If requests still fail then, ask their "
        "admin.",
        Fault.UNKNOWN,
    ),
}

# Where a reason is worded otherwise for one kind.
REASONS_OF_KINDS: dict[tuple[Kind, Reason], Wording] = {
    (Kind.TLS_NOT_YET_VALID, Reason.OWN_CERTIFICATE): KINDS[Kind.TLS_NOT_YET_VALID],
    (Kind.TLS_NOT_YET_VALID, Reason.IN_CHAIN): KINDS[Kind.TLS_NOT_YET_VALID],
    (Kind.OTHER, Reason.CLOCK): Wording(
        "Clocks differ",
        "their clock is {ahead} ours",
        "Set the clock that is wrong, with NTP.",
    ),
    (Kind.WELL_KNOWN_INVALID, Reason.NOT_JSON): Wording(
        None, "it is not a JSON object"
    ),
    (Kind.WELL_KNOWN_INVALID, Reason.BODY_TOO_LARGE): Wording(None, "it is too large"),
    (Kind.RATE_LIMITED, Reason.KEYS_REQUEST): Wording(
        None, "when asked for its keys", KINDS[Kind.RATE_LIMITED].advice
    ),
    (Kind.KEYS_MISSING, Reason.CLOSED): Wording(
        None, "the server closed the connection when asked for them"
    ),
}
