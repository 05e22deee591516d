# SPDX-License-Identifier: Apache-2.0
"""What exactly is wrong with another server, below a kind, and what is told of it.

It is one table, and so one long file. How texts are written stands in
`synapse_federation_admin.failures.kinds`.
"""

from enum import Enum

from typing_extensions import Self


class Fault(Enum):
    """Whose fault a failure is: who has to act."""

    US = "us"
    THEM = "them"

    # It may be either's.
    UNKNOWN = "unknown"


class Worded(Enum):
    """An enum whose members stand with what people are told.

    The value of each is its name in small letters.
    """

    def __new__(cls, *_: object) -> Self:
        """Make a member: texts may be the same, and `__init__` is given them."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        return member

    @property
    def value(self) -> str:
        """What it is in the API, in tables and in metrics."""
        return self.name.lower()


UNBLOCK = (
    "If the address is right, remove it from the blacklist or add it to "
    "ip_range_whitelist, and restart Synapse. If not, tell their admin."
)
CHECK_KEY = (
    "Check that they can fetch the key of this homeserver, that its clock is right, "
    "and that server_name and signing key are unchanged. If so, ask whether they "
    "block it."
)
_KEYS_WRONG = "Tell their admin what is wrong with /_matrix/key/v2/server."
KEYS_UNVERIFIED = f"{_KEYS_WRONG} Until then nothing that they send can be verified."
_ONLY_OTHERS = (
    "other requests are answered, but not /_matrix/federation/v1/send, by which "
    "messages arrive"
)
_ASK_FOR_ANOTHER = "Ask their admin for another certificate."

# What to do where clocks differ and nothing fails.
SET_CLOCK = "Set the clock that is wrong, with NTP."


class Reason(Worded):
    """What exactly is wrong, below a kind, where that can be told."""

    def __init__(
        self,
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
    NAME_IS_URL = "a server name has no scheme and no path"
    NAME_NOT_ASCII = "it is not ASCII: use Punycode"
    NAME_MALFORMED = (
        "a server name has the form host or host:port, as after the colon of a user ID"
    )
    PORT_INVALID = "the port is not a number from 1 to 65535"
    IPV6_INVALID = "what is in brackets is not an IPv6 address"
    LABEL_EMPTY = "a dot is at an end, or two are in a row"
    LABEL_TOO_LONG = "a label has more than 63 characters"
    OWN_NAME = (
        "it is the name of this homeserver itself",
        "Nothing to do: a homeserver does not send to itself.",
        Fault.US,
    )

    # Our own federation senders.
    NOBODY_SENDS = (
        "no process of this homeserver sends to other servers",
        "Set send_federation: true, or start a federation sender and name it in "
        "federation_sender_instances; then restart Synapse.",
    )
    SENDER_GONE = (
        "{instance}, which sends to this server, was last seen {ago} ago",
        "Start {instance}, a process of this homeserver. If it runs, it hangs: restart "
        "it.",
    )
    SENDER_NOT_SEEN = (
        "{instance}, which sends to this server, has shown no sign of life for 30 s",
        "Look again in a minute. If {instance}, a process of this homeserver, still "
        "gives none, it hangs or is stopped: see its log, and restart it.",
        None,
        "Federation sender late",
    )
    SENDER_OVERLOADED = (
        "{instance}, which sends to this server, is overloaded: its work waits {took}",
        "Check the CPU, the log and the database of {instance}, a process of this "
        "homeserver. More federation senders share the work.",
        None,
        "Federation sender late",
    )
    SENDER_NEVER_SEEN = (
        "{instance}, which is to send to this server, was never seen",
        "Start {instance}, a process of this homeserver, or take it out of "
        "federation_sender_instances and restart Synapse.",
    )
    POSITION_AHEAD = (
        "the position of {instance} is beyond the newest event: it sends none",
        "Stop Synapse, UPDATE federation_stream_position SET stream_id = {position} "
        "WHERE type = 'events' AND instance_name = '{target}'; start it.",
        None,
        "Federation sender ahead",
    )
    POSITION_LOST = (
        "the position of {instance} is beyond the newest event: it sends none",
        "Stop Synapse, and set stream_id of {instance} in federation_stream_position "
        "(type 'events') back to an event that was sent for sure; then start it.",
        None,
        "Federation sender ahead",
    )

    # Names that lead to this homeserver itself.
    DELEGATED_TO_US = (
        "its /.well-known/matrix/server delegates to {host}, which is this homeserver",
        "Nothing can be sent to a name that leads back here. If the name is yours, "
        "correct the file or forget the destination. If not, tell their admin.",
    )
    SERVICE_IS_US = (
        "its SRV record names {host}, which answers with our own signing key",
        "Nothing can be sent to a name that leads back here. If the name is yours, "
        "correct the record or forget the destination. If not, tell their admin.",
    )
    ADDRESS_IS_OURS = "its address is ours, and answers with our own signing key"

    # Blocked addresses.
    ADDRESS_IS_NAME = (
        "it is in federation_ip_range_blacklist or ip_range_blacklist",
        "To federate with this address, remove it from the blacklist and restart "
        "Synapse. ip_range_whitelist does not apply to server names.",
        Fault.US,
    )
    INTERNAL_NAME = (
        "the server name is an internal address, which only its own network reaches",
        "Nobody has to act: no other server can reach this name. If it is not used "
        "here, forget the destination.",
    )
    SOME_ADDRESSES = (
        "one address of {host} is in federation_ip_range_blacklist or "
        "ip_range_blacklist; so Synapse uses none of them"
    )
    INTERNAL_ADDRESS = (
        "an internal address, which only their own network reaches",
        "Tell their admin: others cannot reach {host}; a host with a public address is "
        "needed.",
        Fault.THEM,
    )
    SOME_INTERNAL = (
        "one address of {host} is internal; so Synapse uses none of them",
        "Tell their admin: {host} must not have an internal address in the DNS.",
        Fault.THEM,
    )
    LEADS_TO_BLOCKED = ("{host} leads to a blocked IP address", UNBLOCK, Fault.UNKNOWN)
    LEADS_TO_INTERNAL = (
        "its address is internal, which only their own network reaches",
        "Tell their admin: others cannot reach {host}; the file has to be at a public "
        "address.",
    )

    # The well-known file, and other answers.
    BODY_TOO_LARGE = "the response is too large{most}: it is not read to its end"
    BODY_EMPTY = "the response is empty"
    ENDLESS = (
        "the server sends more than 256 KiB before any answer: it is not read on",
        "Tell their admin: what answers there sends headers, or certificates, that are "
        "far too long.",
    )
    NOT_JSON = "the response is not a valid JSON object{begins}"
    WEB_PAGE = (
        "a web page is there, not JSON",
        "Tell their admin: their web server has to serve the file at that path, or 404 "
        "if the server does not delegate.",
    )
    BYTE_ORDER_MARK = (
        "it begins with a byte order mark, which JSON does not allow",
        "Tell their admin: save the file as UTF-8 without a byte order mark (BOM).",
    )
    UTF_16 = (
        "it is in UTF-16, where JSON has to be in UTF-8",
        "Tell their admin: save the file as UTF-8 without a byte order mark (BOM).",
    )
    WRONG_CONTENT_TYPE = "Content-Type is not application/json"
    CLOSED = (
        "the server closed the connection without a response",
        "Wait, or tell their admin: their homeserver or proxy closes connections "
        "without a response.",
    )
    M_SERVER_MISSING = "m.server is missing{has}"
    M_SERVER_NOT_A_STRING = "m.server is {said}, and not a string"
    M_SERVER_EMPTY = "m.server is empty"
    M_SERVER_INVALID = (
        'm.server is "{said}"',
        'Tell their admin: m.server has to be "{right}", with no scheme and no path.',
    )
    EXPIRES_EMPTY = (
        "it comes with an empty Expires header, at which Synapse stops",
        "Tell their admin: their web server has to leave out the header Expires of the "
        "file, or give it a date.",
    )
    REDIRECT_WITHOUT_TARGET = (
        "a redirect does not say where to",
        "Tell their admin: the redirect of the file needs a Location.",
    )
    REDIRECT_INVALID = (
        "a redirect does not lead to a web URL",
        "Tell their admin: correct the redirect of the file on their web server.",
    )
    TOO_MANY_REDIRECTS = (
        "one redirect leads to the next, more than 20 times",
        "Tell their admin: the redirects of the file on their web server have no end.",
    )
    WEB_CERTIFICATE = (
        "TLS with the web server fails",
        "Tell their admin: correct the certificate of their web server ({host} port "
        "443), from which the file comes.",
    )
    WEB_STATUS = "their web server answers with an error"
    NO_FILE_IN_IT = (
        "their web server answers {status}, with which Synapse takes no file",
        "Tell their admin: the file has to come with status 200, or 404 if the server "
        "does not delegate.",
    )
    WEB_NO_ANSWER = "no answer from {host}"
    WEB_LOOKUP = (
        "the DNS did not answer about {host}",
        "If other servers show it, too, check the resolver of this host. If not, tell "
        "their admin that their name servers do not always answer.",
        Fault.UNKNOWN,
    )
    CACHED_DELEGATION = (
        "Synapse still uses {said}, for {left}, until {until}",
        "Wait until {until}, or restart Synapse and its workers, which then ask anew.",
        Fault.US,
        "Outdated delegation in Synapse's cache",
    )
    CACHED_ABSENCE = (
        "Synapse still finds no delegation there, for {left}, until {until}",
        "Wait until {until}, or restart Synapse and its workers, which then ask anew.",
        Fault.US,
        "Outdated delegation in Synapse's cache",
    )

    # Hosts and connections.
    NO_SUCH_HOST = "{host} does not exist"
    NO_ADDRESS = (
        "{host} exists, but has no address",
        "Tell their admin: {host} has no A and no AAAA record in the DNS.",
        Fault.THEM,
        "Host without an address in DNS",
    )
    DANGLING_ALIAS = (
        "{host} is an alias (CNAME) of {target}, which leads to no address",
        "Tell their admin: the CNAME record of {host} has to name a host that exists.",
        Fault.THEM,
    )
    NO_HOST_NAME = (
        "{host} is not a valid host name",
        "Tell their admin: server name, m.server and SRV record must be valid hosts.",
        Fault.THEM,
    )
    DNS_NO_ANSWER = "no answer about {host} in time"
    DNS_SERVER_FAILURE = "no answer, or an error, about {host}"
    NAME_SERVERS_FAIL = (
        "no answer, or an error, about {host}, while other names are answered",
        "Tell their admin: the name servers of {host}, or its DNSSEC, do not work.",
        Fault.THEM,
    )
    SERVICE_SILENT = (
        "no answer about the SRV record {host}, though the host is found",
        "Tell their admin: their name servers have to answer for SRV records, also "
        "where there are none.",
        Fault.THEM,
    )
    SERVICE_FAILS = (
        "an error (SERVFAIL) for the SRV record {host}, though the host is found",
        "Tell their admin: their name servers have to answer for SRV records, also "
        "where there are none.",
        Fault.THEM,
    )
    RESOLVER_DEAD = (
        "the resolver of this host does not work, for other names either",
        "Check the resolver of this host (/etc/resolv.conf): it finds no name at all. "
        "Their admin cannot help.",
        Fault.US,
    )
    NO_SERVICE = (
        'their SRV record has the target ".", which says that there is none',
        "Ask their admin whether they still federate. If not, forget the destination.",
        Fault.THEM,
        "No federation service",
    )
    NO_IPV4 = (
        "the server has IPv4 addresses only, and this host has no IPv4",
        "Give this host IPv4 (NAT64 is enough), or ask their admin for an IPv6 "
        "address as well.",
        Fault.US,
    )
    NO_IPV6 = (
        "the server has IPv6 addresses only, and this host has no IPv6",
        "Give this host IPv6, or ask their admin for an IPv4 address as well.",
        Fault.US,
    )
    MAY_LACK_DELEGATION = (
        "the server is down, or /.well-known/matrix/server is not served: {status}",
        "Tell their admin: the homeserver is down or its port is closed, or "
        "their web server at port 443 has to serve /.well-known/matrix/server.",
        Fault.THEM,
    )
    PROXY_REFUSES = (
        "it answers that it does not connect to the server",
        "See the log of the proxy. If it connects to other servers, tell their admin.",
        Fault.UNKNOWN,
    )
    PROXY_AUTHENTICATION = (
        "it wants other credentials",
        "Check the user name and the password in https_proxy, and restart Synapse.",
    )
    ANOTHER_PROCESS = (
        "another process of this homeserver gets no answer; whether the server "
        "accepts connections is not known here"
    )

    # TLS.
    OWN_CERTIFICATE = "the server's own certificate {expired}"
    IN_CHAIN = (
        "the certificate of the authority {subject}, in its chain, {expired}",
        "Tell their admin: their own certificate is valid, that of its authority is "
        "not. Renew the chain that is sent (fullchain.pem).",
    )
    STARTS_LATER = (
        "it becomes valid only in {left}, by the clock of the server, too",
        "Tell their admin: the certificate begins in the future. It was issued with a "
        "wrong date.",
        Fault.THEM,
    )
    VALID_BY_THEIR_CLOCK = (
        "by the clock of the server, {ahead} ours, it is valid",
        "Check the clock of this host (timedatectl), and set it with NTP. If it is "
        "right, tell their admin that theirs is wrong.",
        Fault.UNKNOWN,
    )
    EXPIRES_SOON = (
        "the server's certificate ends in {left}, and then nothing gets through",
        "Tell their admin to renew the certificate now: automatic renewal seems to "
        "fail.",
        Fault.THEM,
        "TLS certificate ends soon",
    )
    SELF_SIGNED = (
        "the certificate is self-signed",
        "Ask their admin for a certificate of a known authority, such as Let's "
        "Encrypt. If the server is your own, add it to federation_custom_ca_list and "
        "restart Synapse.",
    )
    UNKNOWN_AUTHORITY = (
        "this host does not know the authority {issuer}",
        "If several servers fail so, update ca-certificates on this host. If not, ask "
        "their admin for a certificate of a known authority. For your own: "
        "federation_custom_ca_list.",
    )
    AUTHORITY_UNKNOWN_HERE = (
        "this host does not know the authority {issuer}",
        "Update ca-certificates on this host and restart Synapse; check that nothing "
        "in between intercepts TLS. If the authority is private, ask their admin for a "
        "known one.",
        Fault.UNKNOWN,
    )
    MISSING_INTERMEDIATE = (
        "only their own certificate is sent, not that of the authority {issuer}",
        "Tell their admin to serve the full chain (fullchain.pem, not cert.pem); if "
        "that authority is a private one, to use a known one. For your own: "
        "federation_custom_ca_list.",
    )
    NOT_FOR_THE_PUBLIC = (
        "the authority {issuer} issues none that others are to trust",
        "Tell their admin: it is a test certificate, or one that only their CDN "
        "trusts. A certificate of a known authority is needed, such as Let's Encrypt.",
    )
    NOT_AN_AUTHORITY = ("the certificate's issuer is no authority", _ASK_FOR_ANOTHER)
    WRONG_PURPOSE = ("the certificate is not for TLS servers", _ASK_FOR_ANOTHER)
    NAME_NOT_PERMITTED = (
        "the certificate's authority may not issue it for this name",
        _ASK_FOR_ANOTHER,
    )
    WEAK_KEY = (
        "the key of the server is too short for this host",
        "Ask their admin for a certificate with a stronger key: RSA with 2048 bits or "
        "more, or ECDSA.",
        Fault.THEM,
        "Weak TLS key",
    )
    WEAK_SIGNATURE = (
        "the certificate is signed with an algorithm that is too weak for this host",
        "Ask their admin for a certificate that is signed with SHA-256.",
    )
    NO_NAMES = (
        "it has no valid subjectAltName, and its CN does not count",
        None,
        None,
        "TLS certificate without host names",
    )
    DEFAULT_CERTIFICATE = (
        "the server shows the default certificate of {said}, none for {host}",
        "Tell their admin: their web server or proxy has no site with a certificate "
        "for {host}, and shows its default one.",
        Fault.THEM,
        "Default TLS certificate",
    )
    NO_SUCH_SITE = (
        "their web server or proxy has no site with a certificate for {host}",
        "Tell their admin: add {host} as a site with a certificate to their web server "
        "or proxy, or let the name lead to the right one.",
    )
    PLAIN_HTTP = (
        "the server answers without TLS, as plain HTTP does",
        "Tell their admin: homeservers speak HTTPS only. The port needs TLS with a "
        "certificate, or a reverse proxy that has it.",
        Fault.THEM,
        "No TLS on this port",
    )
    NO_COMMON_TLS = (
        "the server and this host have no TLS version or cipher in common",
        "Tell their admin to allow TLS 1.2 or 1.3 with usual ciphers. If you have set "
        "federation_client_minimum_tls_version, check that, too.",
    )
    HANDSHAKE_REFUSED = (
        "the server refuses: no TLS version or cipher in common, no site of this name, "
        "or it demands a client certificate",
        "Tell their admin: allow TLS 1.2 or 1.3 with usual ciphers, have a certificate "
        "for {host}, and demand none from homeservers.",
        Fault.THEM,
    )
    CLIENT_CERTIFICATE = (
        "the server demands a client certificate, which homeservers do not have",
        "Tell their admin: do not demand client certificates for /_matrix/federation "
        "and /_matrix/key.",
        Fault.THEM,
    )
    CLOSED_IN_HANDSHAKE = "the server closes the connection"
    IN_HANDSHAKE = "the server does not complete the TLS handshake"

    # HTTP: what answers, and what it means.
    BACKEND_DOWN = (
        "their proxy{server} answers, but not the homeserver behind it",
        "Wait, or tell their admin: the homeserver behind their reverse proxy, or one "
        "of its workers, is down, or the proxy looks for it at the wrong port.",
    )
    HOMESERVER_FAILS = (
        "the homeserver itself answers with an error",
        "Wait, or tell their admin: the log of their homeserver has the reason.",
    )
    WEB_SERVER_FAILS = (
        "their web server or homeserver{server} answers with an internal error",
        "Tell their admin: their web server or homeserver fails, and its log has the "
        "reason.",
    )
    NOT_ROUTED = (
        "their web server{server} does not pass requests on to the homeserver",
        "Tell their admin: their reverse proxy has to pass /_matrix/federation and "
        "/_matrix/key on to the homeserver.",
    )
    MISDIRECTED = (
        "their web server{server} has no site of this name",
        "Tell their admin: their web server or proxy needs a site of this name that "
        "passes /_matrix on to the homeserver, or the name leads to the wrong one.",
    )
    FEDERATION_LISTENER_MISSING = (
        "a homeserver answers, but it does not serve federation there",
        "Tell their admin: the listener or worker that answers lacks the resource "
        '"federation", or their proxy leads /_matrix/federation to the wrong one.',
    )
    DENIED_BY_POLICY = (
        "the server is up, and does not want to federate with this homeserver",
        "Ask their admin whether they block this homeserver "
        "(federation_domain_whitelist, a ban list). There is nothing to mend here.",
        Fault.THEM,
    )
    FORBIDDEN_BY_PROXY = (
        "a web server or firewall{server} denies access, not the homeserver",
        "Ask their admin whether their reverse proxy or firewall blocks the address of "
        "this host, or /_matrix.",
        Fault.THEM,
    )
    SIGNATURE_REJECTED = (
        "the server does not accept the signature of this homeserver",
        CHECK_KEY,
        Fault.UNKNOWN,
    )
    SIGNATURE_REMOVED = (
        "the signature of this homeserver does not arrive there",
        "Tell their admin: their reverse proxy removes the header Authorization, and "
        "has to pass it on to the homeserver.",
        Fault.THEM,
    )
    OUR_KEY_NOT_FETCHED = (
        "the server cannot fetch the signing key of this homeserver",
        "Check from outside that /_matrix/key/v2/server of this homeserver is reached, "
        "by its name. If so, tell their admin: their server does not reach this one.",
        Fault.UNKNOWN,
    )
    OTHER_HOMESERVER = (
        "another homeserver than the one of this name answers there",
        "Tell their admin: the name, its DNS or its delegation leads to a homeserver "
        "with another server_name.",
        Fault.THEM,
    )
    LOGIN_PAGE = (
        "a login is demanded{server} in place of an answer of the homeserver",
        "Tell their admin: /_matrix/federation and /_matrix/key have to be open to "
        "other homeservers, without the login of their proxy.",
        Fault.THEM,
    )
    CHALLENGE_PAGE = (
        "a page that keeps robots out{server} answers in place of the homeserver",
        "Tell their admin: exempt /_matrix from their protection against robots. "
        "Homeservers are no browsers.",
        Fault.THEM,
    )
    REDIRECT = (
        "it redirects to {said}, which Synapse does not follow",
        "Tell their admin: /_matrix has to be answered at this address, without a "
        "redirect. To move the server, use /.well-known/matrix/server.",
    )
    ODD_STATUS = (
        "the server answers {status}, which is no answer to this request",
        "Tell their admin: their web server, or a cache before it, has to pass "
        "/_matrix on to the homeserver, and what that answers back as it is.",
    )
    WEB_SITE = (
        "a web page{server} answers in place of the homeserver",
        "Tell their admin: a web site answers where the homeserver is to be. Pass "
        "/_matrix on to the homeserver, or delegate to the right port.",
    )
    BROKE_OFF = (
        "the connection ends in the middle of the response",
        "Wait, or tell their admin: their homeserver or proxy breaks off its "
        "responses.",
    )
    NO_HTTP = (
        "what answers there speaks no HTTP",
        "Tell their admin: another service than a homeserver answers at this port.",
    )
    HTTP2_ONLY = (
        "the server speaks HTTP/2 only, and homeservers speak HTTP/1.1",
        "Tell their admin: allow HTTP/1.1 at this port.",
        Fault.THEM,
    )
    SLOW = (
        "a request took {took} to be answered",
        "If messages arrive late there, tell their admin: the server is overloaded.",
        Fault.THEM,
        "Slow responses",
    )

    # Signed requests.
    UNSIGNED_TOO = (
        "the server does not accept even those that need no signature",
        "Tell their admin: a firewall or proxy in front of the homeserver blocks this "
        "host.",
        Fault.THEM,
    )
    VERSION_ONLY = "only the request for the version is answered so"
    SIGNED_NOT_ROUTED = (
        _ONLY_OTHERS,
        "Tell their admin: their reverse proxy has to pass all of /_matrix/federation "
        "on to the homeserver, /send too, and to a worker that serves it.",
        Fault.THEM,
        "Transactions refused",
    )
    SIGNED_UNANSWERED = (_ONLY_OTHERS, CHECK_KEY, Fault.UNKNOWN)
    EMPTY_TOO_LARGE = (
        "the server or its reverse proxy does not accept even an empty transaction",
        "Tell their admin: at /_matrix/federation/v1/send their reverse proxy accepts "
        "no bodies, or much too small ones (client_max_body_size in nginx).",
        Fault.THEM,
    )
    NOT_YET_ANSWERED = (
        "a transaction that was sent {took} ago is not answered yet",
        "Wait: Synapse gives it a minute. If messages arrive late there, tell their "
        "admin: the server is overloaded.",
        Fault.THEM,
        "Slow responses",
    )
    SENT_AGAIN = (
        "a transaction of this homeserver was answered {status}, and is sent again",
        "Wait: Synapse sends it again for some minutes, and then backs off. Reconnect: "
        "that shows whether an empty transaction is accepted.",
        Fault.THEM,
        "Transactions refused",
    )
    CALLED_OFF = (
        "this homeserver called it off",
        "Nothing to do.",
        Fault.US,
        "Request cancelled",
    )
    BACKING_OFF = (
        "Synapse backs off from the server",
        "Try again.",
        Fault.US,
        "Not contacted",
    )

    # Signing keys.
    KEYS_REQUEST = ("only /_matrix/key/v2/server does not answer well", KEYS_UNVERIFIED)
    NO_ED25519_KEY = "there is no ed25519 key"
    OTHER_SERVER_NAME = (
        "they are for {said}",
        "The server there calls itself {said}: use that name if it is theirs, or "
        "tell their admin.",
    )
    NO_SERVER_NAME = "server_name is missing"
    KEY_UNREADABLE = "Synapse cannot read {said}"
    OLD_KEYS_NOT_AN_OBJECT = "old_verify_keys is not an object"
    NOT_SIGNED = "they are signed by none of them"
    SIGNATURE_INVALID = "the signature by {said} is invalid"
    VALID_UNTIL_MISSING = "valid_until_ts is not an integer"
    KEY_NOT_SIGNING = (
        "they are not signed by {said}; Synapse accepts them",
        _KEYS_WRONG,
        None,
        "Signing keys partly invalid",
    )
    ONE_SIGNATURE_INVALID = (
        "the signature by {said} is invalid; Synapse accepts them",
        _KEYS_WRONG,
        None,
        "Signing keys partly invalid",
    )
    OTHER_KEY_STORED = (
        "Synapse has stored another key as {said}",
        "Ask their admin: the server was set up anew with a new key under an old "
        "ID, or the domain has a new owner.",
        Fault.UNKNOWN,
        "Changed signing key",
    )

    OUT_OF_RESOURCES = (
        "this process has no file descriptor, thread or memory left; this tells "
        "nothing of the other server",
        "Raise the limit of open files or threads of Synapse (LimitNOFILE, TasksMax in "
        "systemd), or the memory of this host, and see what uses them up.",
        Fault.US,
        "Out of resources",
    )
    CLOCK = (
        "their clock is {ahead} ours",
        f"{SET_CLOCK} If requests still fail then, ask their admin.",
        Fault.UNKNOWN,
    )
