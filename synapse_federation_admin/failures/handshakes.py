# SPDX-License-Identifier: Apache-2.0
"""What a TLS handshake that fails, and a certificate, tell of a server."""

from collections.abc import Iterable

from synapse_federation_admin.failures.reasons import Reason

# What OpenSSL says of a handshake, in any of its versions, and what it means: the first
# that is in its text. Alerts are what the server has said (RFC 8446, 6.2).
_BY_TEXT = (
    ("certificate required", Reason.CLIENT_CERTIFICATE),
    ("unrecognized name", Reason.NO_SUCH_SITE),
    # So says Caddy that it has no certificate for a name.
    ("alert internal error", Reason.NO_SUCH_SITE),
    ("no application protocol", Reason.HTTP2_ONLY),
    ("wrong version number", Reason.PLAIN_HTTP),
    ("packet length too long", Reason.PLAIN_HTTP),
    ("http request", Reason.PLAIN_HTTP),
    ("key too small", Reason.WEAK_KEY),
    ("protocol version", Reason.NO_COMMON_TLS),
    ("unsupported protocol", Reason.NO_COMMON_TLS),
    ("wrong ssl version", Reason.NO_COMMON_TLS),
    # Before TLS 1.3, also where a client certificate is wanted; and so says Cloudflare
    # that it has no certificate for a name.
    ("handshake failure", Reason.HANDSHAKE_REFUSED),
    ("insufficient security", Reason.NO_COMMON_TLS),
    ("no shared cipher", Reason.NO_COMMON_TLS),
    ("legacy renegotiation", Reason.NO_COMMON_TLS),
)

# What is in certificates with which web servers and proxies come, in small letters.
_DEFAULTS = {
    "traefik default cert": "Traefik",
    ".traefik.default": "Traefik",
    "kubernetes ingress controller fake certificate": "Kubernetes",
    "ingress.local": "Kubernetes",
    "plesk": "Plesk",
    "cpanel": "cPanel",
    "synology": "Synology",
    "qnap": "QNAP",
    "fritz.box": "the router",
    "opnsense": "OPNsense",
    "pfsense": "pfSense",
    "proxmox": "Proxmox",
    "snakeoil": "the operating system",
    "cn=localhost": "the web server",
}


def reason_of_handshake(text: str) -> Reason | None:
    """Return why a handshake failed, by what OpenSSL says; None if that is not known.

    Args:
        text: What OpenSSL says.
    """
    said = text.lower()
    return next((reason for part, reason in _BY_TEXT if part in said), None)


def default_of(told: Iterable[str]) -> str:
    """Return with what a certificate comes that is nobody's; "" if it is no such one.

    Args:
        told: Whom it is for: its names, and the parts of its subject.
    """
    for text in told:
        for part, product in _DEFAULTS.items():
            if part in text.lower():
                return product
    return ""
