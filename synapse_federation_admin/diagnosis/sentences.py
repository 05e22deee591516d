# SPDX-License-Identifier: Apache-2.0
"""What a person is told of each kind of failure: what is the matter, and what to do."""

from synapse_federation_admin.failures.kinds import FailureKind

# What is the matter, for a person: who it is with, and what.
EXPLANATIONS = {
    FailureKind.INVALID_NAME: "Nothing can be sent to this name",
    FailureKind.NOT_ALLOWED: (
        "This homeserver's federation_domain_whitelist does not have this server"
    ),
    FailureKind.IP_BLOCKED: (
        "This homeserver's IP blocklist has an address of this server, so Synapse does "
        "not connect to it"
    ),
    FailureKind.WELL_KNOWN_INVALID: ("Their file /.well-known/matrix/server is wrong"),
    FailureKind.WELL_KNOWN_UNREACHABLE: (
        "Their file /.well-known/matrix/server cannot be fetched"
    ),
    FailureKind.DNS_NOT_FOUND: "The DNS has no address for this server",
    FailureKind.DNS_FAILED: "The DNS gives no answer about this server",
    FailureKind.CONNECTION_REFUSED: "Their server refuses connections",
    FailureKind.CONNECTION_TIMEOUT: "Their server does not react to connections",
    FailureKind.UNREACHABLE: "There is no way from this host to their server",
    FailureKind.TLS_EXPIRED: "Their certificate has expired",
    FailureKind.TLS_NOT_YET_VALID: "Their certificate is not valid yet",
    FailureKind.TLS_WRONG_NAME: "Their certificate is for another name",
    FailureKind.TLS_UNTRUSTED: (
        "Their certificate does not lead to an authority that this homeserver trusts"
    ),
    FailureKind.TLS_FAILED: "No TLS connection with their server comes about",
    FailureKind.REJECTED: "They are up, but they reject our requests",
    FailureKind.RATE_LIMITED: "They are up, but limit the rate of our requests",
    FailureKind.GONE: "Their server says that it is gone for good",
    FailureKind.HTTP_ERROR: ("A web server answers, but no homeserver does behind it"),
    FailureKind.RESPONSE_TIMEOUT: (
        "Their server takes connections, but does not answer in time"
    ),
    FailureKind.INVALID_RESPONSE: "What answers there is no Matrix homeserver",
    FailureKind.KEYS_MISSING: "Their server gives out no keys",
    FailureKind.KEYS_INVALID: "The keys that their server gives out are wrong",
    FailureKind.KEYS_EXPIRED: "The keys that their server gives out have expired",
    FailureKind.TOO_LARGE: "Their server does not accept requests of this size",
    FailureKind.INTERNAL: "This module has failed",
    FailureKind.OTHER: "Requests to this server fail for a reason that has no name",
}

ADVICE = {
    FailureKind.INVALID_NAME: (
        "Check how the name is written. If it is a leftover, have it forgotten."
    ),
    FailureKind.NOT_ALLOWED: (
        "If you want to federate with it, add it to federation_domain_whitelist and "
        "restart Synapse."
    ),
    FailureKind.IP_BLOCKED: (
        "If the address is right, take it out of federation_ip_range_blacklist or "
        "ip_range_blacklist, or add it to ip_range_whitelist, and restart Synapse; if "
        "not, tell them: requests to them lead to an address that is not theirs."
    ),
    FailureKind.WELL_KNOWN_INVALID: (
        "Tell them to correct the file: it has to be "
        '{"m.server": "<host>:<port>"}, with no scheme and no path.'
    ),
    FailureKind.WELL_KNOWN_UNREACHABLE: (
        "Tell them that their web server does not serve the file, or redirects to "
        "where it cannot be fetched."
    ),
    FailureKind.DNS_NOT_FOUND: (
        "If other servers fail like this one, look at the resolver of this host. If "
        "not, the domain may be gone: ask them, or have it forgotten."
    ),
    FailureKind.DNS_FAILED: (
        "If other servers fail like this one, look at the resolver of this host, in "
        "/etc/resolv.conf. If not, their name servers are broken: tell them."
    ),
    FailureKind.CONNECTION_REFUSED: (
        "Wait until their server is up again, or tell them: it is down, or their port "
        "is closed."
    ),
    FailureKind.CONNECTION_TIMEOUT: (
        "If others reach it, look at the firewall of this host; if not, tell them: "
        "their host is down, or their firewall drops connections."
    ),
    FailureKind.UNREACHABLE: (
        "Look at the routes and the firewall of this host; if other servers can be "
        "reached, tell them."
    ),
    FailureKind.TLS_EXPIRED: ("Tell them to renew it."),
    FailureKind.TLS_NOT_YET_VALID: (
        "Check the clock of this host. If it is right, tell them: theirs was wrong "
        "when the certificate was made."
    ),
    FailureKind.TLS_WRONG_NAME: ("Tell them for which name the certificate has to be."),
    FailureKind.TLS_UNTRUSTED: (
        "Tell them: it is self-signed, or they do not send the certificates between. "
        "If it is of an authority of your own, add that to federation_custom_ca_list "
        "and restart Synapse."
    ),
    FailureKind.TLS_FAILED: (
        "Tell them: something that is no TLS server listens at that port, or it has no "
        "TLS version in common with us, or wants more of us than Matrix has."
    ),
    FailureKind.REJECTED: (
        "Check that they can reach this homeserver and fetch its key, that the clock "
        "of this host is right, and that server_name and signing key are what they "
        "were. If so, ask them whether they have shut us out."
    ),
    FailureKind.RATE_LIMITED: (
        "Wait; if it goes on, ask them to allow this homeserver more."
    ),
    FailureKind.GONE: "Have it forgotten, if they confirm it.",
    FailureKind.HTTP_ERROR: (
        "Tell them: their homeserver is down, or their reverse proxy does not pass "
        "/_matrix on to it."
    ),
    FailureKind.RESPONSE_TIMEOUT: (
        "Wait, or tell them: their server is overloaded or stuck."
    ),
    FailureKind.INVALID_RESPONSE: (
        "Tell them that something else than a homeserver answers at their address."
    ),
    FailureKind.KEYS_MISSING: (
        "Tell them that /_matrix/key/v2/server gives no key: until it does, nothing "
        "that they send can be verified."
    ),
    FailureKind.KEYS_INVALID: (
        "Tell them what is wrong with the answer of /_matrix/key/v2/server: until it "
        "is right, nothing that they send can be verified."
    ),
    FailureKind.KEYS_EXPIRED: (
        "Check the clock of this host. If it is right, tell them: their homeserver has "
        "to be restarted, or its clock set."
    ),
    FailureKind.OTHER: "See the messages of the stages, and the log of Synapse.",
    FailureKind.TOO_LARGE: "Ask their admin to raise the limit.",
    FailureKind.INTERNAL: "See the log of Synapse.",
}
