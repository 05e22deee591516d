# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: certificates, handshakes and clocks."""

import datetime
import ssl
import time
import warnings
from email.utils import formatdate
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from faults import Certify, at, placed, serving, site, srv, way
from laboratory import ZONE, Laboratory, as_json, close, hang, http
from listener import reset

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(made)
    return made


def issued(lab: Laboratory, *names: str, **kwargs: datetime.datetime) -> ssl.SSLContext:
    return context(lab.authority.issue_cert(*names, **kwargs))


def expired(lab: Laboratory, *names: str) -> ssl.SSLContext:
    return issued(lab, *names, not_before=NOW - 9 * DAY, not_after=NOW - 3.5 * DAY)


def early(lab: Laboratory, name: str) -> ssl.SSLContext:
    return issued(lab, name, not_before=NOW + DAY, not_after=NOW + 9 * DAY)


def issue(
    lab: Laboratory,
    subject: str,
    key: rsa.RSAPrivateKey,
    *extensions: x509.ExtensionType,
    days: int = 90,
    by: tuple[x509.Certificate, rsa.RSAPrivateKey] | None = None,
) -> x509.Certificate:
    """Return a certificate that trustme would not make, by its authority or another."""
    issuer, signing = by or (
        x509.load_pem_x509_certificate(lab.authority.cert_pem.bytes()),
        serialization.load_pem_private_key(lab.authority.private_key_pem.bytes(), None),
    )
    builder = x509.CertificateBuilder(
        issuer.subject,
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]),
        key.public_key(),
        x509.random_serial_number(),
        NOW - 90 * DAY,
        NOW + days * DAY,
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    return builder.sign(signing, hashes.SHA256())


def presenting(
    lab: Laboratory, name: str, key: rsa.RSAPrivateKey, *chain: x509.Certificate
) -> ssl.SSLContext:
    """Return a context with a chain of certificates, and the key of the first."""
    pem = serialization.Encoding.PEM
    return loaded(
        lab.folder,
        name,
        b"".join(certificate.public_bytes(pem) for certificate in chain),
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def with_key(bits: int, *, named: bool) -> Certify:
    """Return what makes a certificate with a key of so many bits, and names or none."""

    def certify(lab: Laboratory, name: str) -> ssl.SSLContext:
        key = rsa.generate_private_key(65537, bits)
        names = [x509.SubjectAlternativeName([x509.DNSName(name)])] if named else []
        return presenting(lab, name, key, issue(lab, name, key, *names))

    return certify


def expired_between(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context with an authority in its chain that has expired."""
    key, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    may_issue = x509.BasicConstraints(ca=True, path_length=None)
    between = issue(lab, "between", other, may_issue, days=-1)
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    own = issue(lab, name, key, names, by=(between, other))
    return presenting(lab, name, key, own, between)


def loaded(folder: Path, name: str, chain: bytes, key: bytes) -> ssl.SSLContext:
    """Return a context with a chain of certificates, and the key of the first."""
    folder = folder / f"loaded {name}"
    folder.mkdir()
    (folder / "c.pem").write_bytes(chain)
    (folder / "k.pem").write_bytes(key)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Also where the key is weak.
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.load_cert_chain(folder / "c.pem", folder / "k.pem")
    return made


def self_signed(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context whose certificate is its own authority."""
    own = trustme.CA()
    return loaded(lab.folder, name, own.cert_pem.bytes(), own.private_key_pem.bytes())


def incomplete(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context whose chain lacks the authority in between."""
    leaf = lab.authority.create_child_ca().issue_cert(name)
    chain = leaf.cert_chain_pems[0].bytes()
    return loaded(lab.folder, name, chain, leaf.private_key_pem.bytes())


def old_only(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_1
    return made


def wants_certificate(newest: ssl.TLSVersion) -> Certify:
    """Return what makes a context which demands one of the client, up to a version."""

    def certify(lab: Laboratory, name: str) -> ssl.SSLContext:
        made = lab.certificates.valid(name)
        made.maximum_version = newest
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    return certify


def other_cipher(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AES128-SHA256")
    return made


def unknown_authorities(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context with a chain that leads to an authority nobody knows."""
    leaf = trustme.CA().create_child_ca().issue_cert(name)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    return loaded(lab.folder, name, chain, leaf.private_key_pem.bytes())


def _issuer(name: x509.Name, key: rsa.RSAPrivateKey) -> x509.Certificate:
    return x509.CertificateBuilder(
        name, name, key.public_key(), 1, NOW - DAY, NOW + DAY
    ).sign(key, hashes.SHA256())


def by_nobody(authority: str, *names: str) -> Certify:
    """Return what makes a certificate of an authority that nobody knows.

    Args:
        authority: Who has issued it; for itself, if names are given.
        names: Other names that it is for.
    """

    def certify(lab: Laboratory, name: str) -> ssl.SSLContext:
        key = rsa.generate_private_key(65537, 2048)
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, authority)])
        hosts = x509.SubjectAlternativeName([x509.DNSName(n) for n in names or [name]])
        subject, by = authority if names else name, (_issuer(issuer, key), key)
        return presenting(lab, name, key, issue(lab, subject, key, hosts, by=by))

    return certify


# TLS.

EXPIRED = "tls_expired/own_certificate"
site(f"expired failing {EXPIRED}", "expired 3 d ago", certify=expired)
site(
    "early failing tls_not_yet_valid/own_certificate",
    "valid only in 23 h",
    certify=early,
)
site(
    "wrong-name failing tls_wrong_name",
    "for other.example",
    certify=lambda lab, _: issued(lab, "other.example"),
)
site(
    f"expired-wrong-name failing {EXPIRED}",
    certify=lambda lab, _: expired(lab, "other.example"),
)
site(
    "other-authority failing tls_untrusted/missing_intermediate",
    certify=lambda _, name: context(trustme.CA().issue_cert(name)),
)
site("incomplete-chain failing tls_untrusted/missing_intermediate", certify=incomplete)
site("self-signed failing tls_untrusted/self_signed", certify=self_signed)
# The server's own certificate is valid, and one in its chain has expired.
site("expired-between failing tls_expired/in_chain", certify=expired_between)
site("no-names failing tls_wrong_name/no_names", certify=with_key(2048, named=False))
site("weak-key failing tls_untrusted/weak_key", certify=with_key(1024, named=True))
site(
    "wants-certificate failing tls_failed/client_certificate",
    certify=wants_certificate(ssl.TLSVersion.TLSv1_3),
)
serving("resets failing tls_failed/closed_in_handshake", reset, plain=True)
serving("no-tls failing tls_failed", http("400 Bad Request"), plain=True)
serving("closes-handshake failing tls_failed/closed_in_handshake", close, plain=True)
# The alert close_notify.
serving(
    "ends-handshake failing tls_failed/closed_in_handshake",
    b"\x15\x03\x03\x00\x02\x01\x00",
    plain=True,
)
serving("hangs-handshake failing response_timeout/in_handshake", hang, plain=True)
# The certificate has to be for the server name, not for where SRV leads to.
way(
    "srv-target-name failing tls_wrong_name",
    srv("target-{}", port=10448),
    at("target-{}", 10448),
)
way("two-faults failing tls_expired/own_certificate", placed, at(certify=expired))
site(
    "staged failing tls_untrusted/not_for_the_public",
    "the authority (STAGING) Let's Encrypt issues none",
    certify=by_nobody("(STAGING) Let's Encrypt"),
)
site(
    "unknown-authorities failing tls_untrusted/unknown_authority",
    "does not know the authority Testing CA #",
    certify=unknown_authorities,
)
site(
    "traefik failing tls_untrusted/default_certificate",
    "default certificate of Traefik, none for traefik.lab.example",
    certify=by_nobody("TRAEFIK DEFAULT CERT", "0a1b.2c3d.traefik.default"),
)
site(
    "kubernetes failing tls_untrusted/default_certificate",
    "default certificate of Kubernetes",
    certify=by_nobody(
        "Kubernetes Ingress Controller Fake Certificate", "ingress.local"
    ),
)
site(
    "hosted failing tls_wrong_name/default_certificate",
    "default certificate of Plesk",
    certify=lambda lab, _: issued(lab, "plesk.hosting.example"),
)
site(
    "wildcard-of-all failing tls_wrong_name/None",
    "it is for *.example, not for",
    certify=lambda lab, _: issued(lab, "*.example"),
)
site("wildcard ok", certify=lambda lab, _: issued(lab, f"*.{ZONE}"))
site("old-tls failing tls_failed/no_common_tls", certify=old_only)
site(
    "wants-certificate-before-13 failing tls_failed/handshake_refused",
    "or it demands a client certificate",
    certify=wants_certificate(ssl.TLSVersion.TLSv1_2),
)
site(
    "other-cipher failing tls_failed/handshake_refused",
    "no TLS version or cipher in common",
    certify=other_cipher,
)


def alert(number: int) -> bytes:
    """Return a fatal alert of TLS."""
    return b"\x15\x03\x03\x00\x02\x02" + bytes([number])


for label, number, reason in (
    ("no-site", 112, "no_such_site"),
    ("caddy", 80, "no_such_site"),
    ("http2-alert", 120, "http2_only"),
    ("old-version", 70, "no_common_tls"),
    ("certificate-alert", 116, "client_certificate"),
):
    serving(f"{label} failing tls_failed/{reason}", alert(number), plain=True)


# HTTP.
def date(moment: float) -> bytes:
    return f"Date: {formatdate(moment, usegmt=True)}\r\n".encode()


def version(moment: float) -> bytes:
    """Return an answer of a server by whose clock it is a given time."""
    return as_json({"server": {"name": "lab"}}, date(moment))


def by_right_clock(connection: ssl.SSLSocket) -> None:
    """Answer with the time of the answer."""
    connection.sendall(version(time.time()))


# Clocks and certificates.

BACK = time.time() - 5 * 86_400
AHEAD = time.time() + 2 * 86_400
BY_THEIRS = "valid_by_their_clock"

site(
    f"our-clock-ahead failing tls_expired/{BY_THEIRS}",
    "by the clock of the server, 5 d behind ours, it is valid",
    certify=expired,
    version=version(BACK),
)
site(
    f"our-clock-behind failing tls_not_yet_valid/{BY_THEIRS}",
    "by the clock of the server, 1 d 23 h ahead of ours, it is valid",
    certify=early,
    version=version(AHEAD),
)
site(
    "starts-later failing tls_not_yet_valid/starts_later",
    "valid only in 23 h",
    certify=early,
    version=by_right_clock,
)
site(
    "expired-for-all failing tls_expired/own_certificate",
    "expired 3 d ago",
    certify=expired,
    version=by_right_clock,
)
site(
    "ends-soon degraded other/expires_soon",
    "ends in 3 d",
    certify=lambda lab, name: issued(
        lab, name, not_before=NOW - 60 * DAY, not_after=NOW + 3 * DAY
    ),
)
# One that lives for six days, and is to be renewed tomorrow.
site(
    "short-lived ok",
    certify=lambda lab, name: issued(
        lab, name, not_before=NOW - 3 * DAY, not_after=NOW + 3 * DAY
    ),
)
