# SPDX-License-Identifier: Apache-2.0
"""What a TLS handshake that fails, and a certificate, tell of a server."""

from collections.abc import Iterable

from OpenSSL import SSL

from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.errors import UntrustedCertificateError

# OpenSSL's verification errors (`man openssl-verification-options`):
# X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED.
_TLS_KINDS = {9: FailureKind.TLS_NOT_YET_VALID, 10: FailureKind.TLS_EXPIRED}

_NO_ISSUER = 20

# Others of them, because of which a chain is not trusted.
_TLS_REASONS = {
    18: Reason.SELF_SIGNED,
    19: Reason.UNKNOWN_AUTHORITY,
    # That of the issuer is neither sent nor known here: of the server's own
    # certificate, or of another one in the chain.
    20: Reason.UNKNOWN_AUTHORITY,
    21: Reason.MISSING_INTERMEDIATE,
    24: Reason.NOT_AN_AUTHORITY,
    26: Reason.WRONG_PURPOSE,
    47: Reason.NAME_NOT_PERMITTED,
    48: Reason.NAME_NOT_PERMITTED,
    66: Reason.WEAK_KEY,
    67: Reason.WEAK_KEY,
    68: Reason.WEAK_SIGNATURE,
}

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
    "myfritz.net": "the router",
    "opnsense": "OPNsense",
    "pfsense": "pfSense",
    "proxmox": "Proxmox",
    "snakeoil": "the operating system",
    "cn=localhost": "the web server",
}

# What is in the names of authorities that are not for the public, in small letters:
# Cloudflare's, for what is behind it alone, and Let's Encrypt's for tests.
_NOT_FOR_THE_PUBLIC = ("cloudflare origin", "(staging)")


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


def untrusted(error: UntrustedCertificateError) -> Failure:
    """Tell what OpenSSL has against a certificate."""
    kind = _TLS_KINDS.get(error.code, FailureKind.TLS_UNTRUSTED)
    reason = _TLS_REASONS.get(error.code)
    product = "" if error.depth else default_of([error.subject])
    if kind in _TLS_KINDS.values():
        reason = Reason.IN_CHAIN if error.depth else Reason.OWN_CERTIFICATE
    elif error.code == _NO_ISSUER and not error.depth:
        reason = Reason.MISSING_INTERMEDIATE
    if any(part in error.issuer.lower() for part in _NOT_FOR_THE_PUBLIC):
        reason = Reason.NOT_FOR_THE_PUBLIC
    if product:
        reason = Reason.DEFAULT_CERTIFICATE
    facts = Facts(
        code=error.code,
        issuer=error.issuer,
        subject=error.subject if error.depth else "",
        ago_ms=error.ago_ms,
        left_ms=error.left_ms,
        said=product,
    )
    return Failure(kind, reason, facts)


def text_of_handshake(error: SSL.Error) -> str:
    """Return what OpenSSL says of a handshake, in its own words."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    texts = [str(reason[-1]) for reason in reasons if isinstance(reason, tuple)]
    return bounded(", ".join(filter(None, texts)) or type(error).__name__)


def expected_name(error: BaseException) -> str:
    """Return for which name a certificate is not; "" if it is for none at all."""
    for mismatch in getattr(error, "errors", ()):
        identity = getattr(mismatch, "mismatched_id", None)
        name = getattr(identity, "hostname", getattr(identity, "ip", None))
        if name is not None:
            return name.decode() if isinstance(name, bytes) else str(name)
    return ""
