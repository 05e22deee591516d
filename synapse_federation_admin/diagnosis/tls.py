# SPDX-License-Identifier: Apache-2.0
"""What a TLS handshake shows of a server."""

from collections.abc import Iterable
from datetime import datetime, timezone

import attr
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL
from service_identity.exceptions import VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.findings import Certificate, TlsFindings
from synapse_federation_admin.diagnosis.way import Way
from synapse_federation_admin.failures.bounds import word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.handshakes import default_of
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.errors import UntrustedCertificateError
from synapse_federation_admin.homeserver.server_name import ServerName

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000

# With these it may be a clock that is wrong: theirs, or that of this host.
_BY_CLOCK = (FailureKind.TLS_EXPIRED, FailureKind.TLS_NOT_YET_VALID)

# Clocks that differ by less agree.
_AGREES_MS = 60_000


class Handshake:
    """Observes one TLS handshake: see `homeserver.TlsObserver`."""

    def __init__(self, way: Way, name: ServerName) -> None:
        """Describe what is expected.

        Args:
            way: The clocks, and what Synapse verifies.
            name: What the certificate has to be for.
        """
        self._way = way
        self._name = name
        self._untrusted: list[UntrustedCertificateError] = []
        self.begun_ms: float | None = None
        self.completed_ms: float | None = None
        self.findings: TlsFindings | None = None

    def begun(self) -> None:
        """The connection is there."""
        if self.begun_ms is None:
            self.begun_ms = self._way.now_ms

    def failed(self, error: UntrustedCertificateError) -> None:
        """OpenSSL does not trust the chain."""
        if len(self._untrusted) < limits.CERTIFICATE_ERRORS:
            self._untrusted.append(error)

    def completed(self, connection: SSL.Connection) -> Exception | None:
        """Take down what there is to see, and return what Synapse would not accept."""
        if self.findings is not None:
            # What TLS 1.3 has to say afterwards.
            return None
        self.completed_ms = self._way.now_ms
        errors: list[Exception] = [*self._untrusted]
        mismatch = self._mismatch(connection)
        if mismatch is not None:
            errors.append(mismatch)
        begun_ms = self._way.now_ms if self.begun_ms is None else self.begun_ms
        is_verified = self._way.outbound.verifies(self._name.host)
        certificate = _certificate(connection, self._way.homeserver.now_ms())
        self.findings = TlsFindings(
            handshake_ms=self._way.since(begun_ms),
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name() or "",
            certificate=certificate,
            is_trusted=not self._untrusted,
            name_matches=mismatch is None,
            is_verified=is_verified,
            problems=problems_of(errors, certificate),
        )
        # Who is only too late or too early is still asked for the time.
        fatal = [e for e in errors if failure_of(e).kind not in _BY_CLOCK]
        return fatal[0] if fatal and is_verified else None

    def _mismatch(self, connection: SSL.Connection) -> Exception | None:
        """Return why the certificate is not for the name, as Synapse sees it."""
        try:
            if self._name.is_literal:
                verify_ip_address(connection, self._name.host)
            else:
                verify_hostname(connection, self._name.host)
        except VerificationError as e:
            return e
        except Exception:
            # A certificate can be such that nobody can read names in it.
            return VerificationError(errors=[])
        return None


def problems_of(
    errors: Iterable[Exception], certificate: Certificate | None
) -> tuple[Failure, ...]:
    """Return what is wrong with a certificate.

    The first of each kind: an untrusted chain has many errors. The first of all names
    the others.

    Args:
        errors: What OpenSSL, and the comparison of names, have against it.
        certificate: What it says; None if nobody can read it.
    """
    found: dict[FailureKind, Failure] = {}
    for error in errors:
        failure = failure_of(error)
        found.setdefault(failure.kind, _with_facts(failure, certificate))
    if not found:
        return ()
    first, *others = found.values()
    is_default = first.reason is Reason.DEFAULT_CERTIFICATE
    also = tuple(
        failure.kind
        for failure in others
        # That is what it is to be a default one.
        if not (is_default and failure.kind is FailureKind.TLS_WRONG_NAME)
    )
    return (first.but(also=also), *others)


def _with_facts(failure: Failure, certificate: Certificate | None) -> Failure:
    """Add what the certificate tells."""
    if certificate is None:
        return failure
    if failure.kind is FailureKind.TLS_EXPIRED and certificate.left_ms < 0:
        # Whatever else in the chain has.
        return failure.but(Reason.OWN_CERTIFICATE, ago_ms=-certificate.left_ms)
    if failure.kind is FailureKind.TLS_WRONG_NAME:
        product = default_of([*certificate.names, certificate.subject])
        # One with names that nobody accepts, such as "*.example", has some.
        reason = None if certificate.names else failure.reason
        reason = Reason.DEFAULT_CERTIFICATE if product else reason
        failure = attr.evolve(failure, reason=reason)
        return failure.but(names=certificate.names, said=product)
    return failure


def by_their_clock(
    failure: Failure, certificate: Certificate | None, date_ts: int | None, now_ms: int
) -> Failure:
    """Tell whose clock speaks against a certificate, if its server tells the time.

    Args:
        failure: What is wrong with it.
        certificate: What it says.
        date_ts: The time by the server's clock, in ms since the epoch.
        now_ms: The time by ours.
    """
    if failure.kind not in _BY_CLOCK or certificate is None or date_ts is None:
        return failure
    ahead_ms = date_ts - now_ms
    if failure.kind is FailureKind.TLS_EXPIRED:
        is_valid = ahead_ms < -(failure.facts.ago_ms or -certificate.left_ms)
    else:
        is_valid = ahead_ms > 0 and date_ts >= certificate.not_before_ts
    left_ms = certificate.not_before_ts - now_ms
    if is_valid:
        reason, facts = Reason.VALID_BY_THEIR_CLOCK, Facts(ahead_ms=ahead_ms)
    elif left_ms > 0 and abs(ahead_ms) < _AGREES_MS:
        reason, facts = Reason.STARTS_LATER, Facts(left_ms=left_ms)
    else:
        return failure
    facts = attr.evolve(facts, code=failure.facts.code, also=failure.facts.also)
    return attr.evolve(failure, reason=reason, facts=facts)


def ending_soon(certificate: Certificate | None) -> Failure | None:
    """Return that a certificate ends soon; None if it does not.

    One that lives for six days, as authorities issue them, is renewed later than
    others: of that it is so from the last third of its life on.
    """
    if certificate is None:
        return None
    soon_ms = limits.ENDS_SOON_MS
    lifetime_ms = certificate.not_after_ts - certificate.not_before_ts
    if limits.SHORT_LIVED_MS <= lifetime_ms < limits.ENDS_SOON_MS:
        soon_ms = lifetime_ms // 3
    if not 0 <= certificate.left_ms < soon_ms:
        return None
    # To the hour: one that ends in three days does so in a moment less.
    left_ms = certificate.left_ms + _HOUR_MS // 2
    return Failure(FailureKind.OTHER, Reason.EXPIRES_SOON, Facts(left_ms=left_ms))


def _certificate(connection: SSL.Connection, now_ms: int) -> Certificate | None:
    """Return what the server's certificate says; None if nobody can read it."""
    try:
        chain = connection.get_peer_cert_chain() or []
        shown = connection.get_peer_certificate()
        if shown is None:
            return None
        certificate = shown.to_cryptography()
        names = _names(certificate)
        not_after_ts = _ms(certificate, "not_valid_after")
        return Certificate(
            subject=word(certificate.subject.rfc4514_string(), limits.TEXT) or "",
            issuer=word(certificate.issuer.rfc4514_string(), limits.TEXT) or "",
            names=tuple(word(name) or "" for name in names[: limits.CERTIFICATE_NAMES]),
            names_total=len(names),
            not_before_ts=_ms(certificate, "not_valid_before"),
            not_after_ts=not_after_ts,
            left_ms=not_after_ts - now_ms,
            days_left=(not_after_ts - now_ms) // _DAY_MS,
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
            chain_length=len(chain),
        )
    except Exception:
        # What is in it is up to the server, and so is what that makes of a parser.
        return None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    return [
        str(name.value)
        for name in extension.value
        if isinstance(name, x509.DNSName | x509.IPAddress)
    ]


def _ms(certificate: x509.Certificate, which: str) -> int:
    # Before version 42 of cryptography there were only times without a zone: UTC.
    moment: datetime = getattr(certificate, f"{which}_utc", None) or getattr(
        certificate, which
    )
    return int(moment.replace(tzinfo=timezone.utc).timestamp() * 1000)
