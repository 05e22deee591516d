# SPDX-License-Identifier: Apache-2.0
"""What Synapse wants of TLS, and what handshakes have shown."""

import time
from datetime import datetime, timezone
from typing import Any, Protocol, cast

from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Name
from service_identity.exceptions import VerificationError
from synapse.config.homeserver import HomeServerConfig
from synapse.crypto.context_factory import (
    ConnectionVerifier,
    FederationPolicyForHTTPS,
    SSLClientConnectionCreator,
)
from synapse.http.proxyagent import parse_proxy
from twisted.python.failure import Failure

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.errors import UntrustedCertificateError

# The parts of the name that are told of who issued a certificate.
_TOLD_OF_ISSUERS = (b"CN", b"O", b"OU")

_HANDSHAKE = SSL.SSL_CB_HANDSHAKE_START | SSL.SSL_CB_HANDSHAKE_DONE


class TlsObserver(Protocol):
    """Is told what happens in a TLS handshake."""

    def begun(self) -> None:
        """It begins: the connection is there."""

    def failed(self, error: UntrustedCertificateError) -> None:
        """OpenSSL does not trust the chain; may be told more than once."""

    def completed(self, connection: SSL.Connection) -> Exception | None:
        """It is completed, but for what an error is returned for.

        Args:
            connection: Shows certificates, version and cipher.
        """


class _Verifier(ConnectionVerifier):
    """Synapse's verifier, for which a certificate without names is no surprise.

    Attributes:
        observer: Is told of the handshake, and has the last word, if there is one.
    """

    def __init__(
        self,
        host: bytes,
        verify_certs: bool,
        observer: TlsObserver | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        super().__init__(host, verify_certs)
        self.observer = observer
        self._attempt = attempt

    def verify_context_info_cb(
        self, ssl_connection: SSL.Connection, where: int
    ) -> None:
        """See Synapse's; this is called by OpenSSL."""
        error: Exception | None = None
        if self._attempt is not None and where & _HANDSHAKE:
            self._attempt.is_at_proxy = False
            self._attempt.is_shaking_hands = bool(where & SSL.SSL_CB_HANDSHAKE_START)
        try:
            super().verify_context_info_cb(ssl_connection, where)
        except Exception:
            # What is in it, and in the name, is up to the server.
            error = VerificationError(errors=[])
        if self.observer is not None and where & SSL.SSL_CB_HANDSHAKE_START:
            self.observer.begun()
        if self.observer is not None and where & SSL.SSL_CB_HANDSHAKE_DONE:
            error = self.observer.completed(ssl_connection)
        if error is not None:
            ssl_connection.get_app_data().failVerification(Failure(error))


class ContactPolicy(FederationPolicyForHTTPS):
    """Synapse's policy, and the reason if a certificate is not trusted.

    Attributes:
        attempt: Is told of handshakes.
    """

    def __init__(self, config: HomeServerConfig) -> None:
        super().__init__(config)
        self.attempt: Attempt | None = None
        proxies = config.server.proxy_config
        self._proxy = None
        if proxies and proxies.https_proxy:
            _, host, port, _ = parse_proxy(proxies.https_proxy.encode())
            self._proxy = host, port
        context = self._verify_ssl_context
        context.set_verify(context.get_verify_mode(), _verified)

    def get_options(self, host: bytes) -> SSLClientConnectionCreator:
        """Return what makes connections: see Synapse's."""
        creator = cast(SSLClientConnectionCreator, super().get_options(host))
        verifies = creator._verifier._verify_certs
        creator._verifier = _Verifier(host, verifies, attempt=self.attempt)
        return creator

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """Return what makes connections: see Synapse's."""
        creator = self.get_options(hostname)
        if (hostname, port) == self._proxy:
            # What is wrong with our own proxy is nothing of the server's.
            creator._verifier = _Verifier(hostname, creator._verifier._verify_certs)
        return creator

    def observed(self, host: str, observer: TlsObserver) -> SSLClientConnectionCreator:
        """Return what makes connections whose handshake is judged when it is over.

        Also where Synapse does not verify: to see what it would find.

        Args:
            host: The host name that the certificate has to be for.
            observer: Is told of the handshake, and has the last word.
        """
        creator = SSLClientConnectionCreator(
            host.encode(), self._verify_ssl_context, False
        )
        creator._verifier = _Verifier(host.encode(), False, observer, self.attempt)
        return creator


def _verified(
    connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int
) -> bool:
    """Say what OpenSSL has against a certificate: its verdict stands.

    Without this, all that is left of it is "certificate verify failed". An observer is
    told, if there is one, and the handshake goes on.

    Raises:
        UntrustedCertificateError: It does not trust it. pyOpenSSL ends the handshake
            and raises this in place of its own error.
    """
    if not ok:
        observer = connection.get_app_data()._synapse_tls_verifier.observer
        error = _untrusted(certificate, code, depth)
        if observer is None:
            raise error
        observer.failed(error)
    return True


def _untrusted(certificate: X509, code: int, depth: int) -> UntrustedCertificateError:
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
