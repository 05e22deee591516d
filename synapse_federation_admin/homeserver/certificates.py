# SPDX-License-Identifier: Apache-2.0
"""Why OpenSSL does not trust a certificate."""

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
    """

    def __init__(self, code: int, depth: int = 0, issuer: str = "") -> None:
        # As OpenSSL's own error, which Twisted looks into.
        said = f"certificate verify failed: OpenSSL verification error {code}"
        super().__init__([("SSL routines", "", said)])
        self.code = code
        self.depth = depth
        self.issuer = issuer


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
        raise UntrustedCertificateError(code, depth, _name_of(certificate.get_issuer()))
    return True


def _name_of(name: X509Name) -> str:
    """Return the parts of a name that are told, on one line."""
    parts = [
        f"{key.decode('ascii', 'replace')}={value.decode('utf-8', 'replace')}"
        for key, value in name.get_components()
        if key in _TOLD_OF_ISSUERS
    ]
    return ascii(", ".join(parts))[1:-1][: limits.ISSUER]
