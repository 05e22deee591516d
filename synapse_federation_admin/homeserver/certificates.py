# SPDX-License-Identifier: Apache-2.0
"""Why OpenSSL does not trust a certificate."""

import time
from datetime import datetime, timezone

from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Name

from synapse_federation_admin import limits

# The parts of the name that are told of who issued a certificate.
_TOLD_OF_ISSUERS = (b"CN", b"O", b"OU")


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


def verified(
    _connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int
) -> bool:
    """Say what OpenSSL has against a certificate: its verdict stands.

    Without this, all that is left of it is "certificate verify failed".

    Raises:
        UntrustedCertificateError: It does not trust it. pyOpenSSL ends the handshake
            and raises this in place of its own error.
    """
    if not ok:
        raise untrusted(certificate, code, depth)
    return True


def untrusted(certificate: X509, code: int, depth: int) -> UntrustedCertificateError:
    """Return the error of a certificate, with what that tells.

    Args:
        certificate: The certificate.
        code: OpenSSL's verification error.
        depth: Where it is in the chain.
    """
    issuer, subject = certificate.get_issuer(), certificate.get_subject()
    expired_ms = _since_ms(certificate.get_notAfter())
    valid_ms = _since_ms(certificate.get_notBefore())
    return UntrustedCertificateError(
        code,
        depth,
        _name_of(issuer),
        _name_of(subject),
        expired_ms if expired_ms and expired_ms > 0 else None,
        max(0, -(valid_ms or 0)),
    )


def _since_ms(time_told: bytes | None) -> int | None:
    """Return how long ago a time in a certificate was; None if nobody can read it."""
    try:
        told = (time_told or b"").decode("ascii")
        moment = datetime.strptime(told, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        # It is up to the server.
        return None
    return int((time.time() - moment.timestamp()) * 1000)


def _name_of(name: X509Name) -> str:
    """Return the parts of a name that are told, on one line."""
    parts = [
        f"{key.decode('ascii', 'replace')}={value.decode('utf-8', 'replace')}"
        for key, value in name.get_components()
        if key in _TOLD_OF_ISSUERS
    ]
    return ascii(", ".join(parts))[1:-1][: limits.ISSUER]
