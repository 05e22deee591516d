# SPDX-License-Identifier: Apache-2.0
"""More of the catalogue of faults: TLS and HTTP by reason, and what works, but."""

import ssl
import time
import warnings
from email.utils import formatdate

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from faults import (
    BEGUN_LIST,
    DAY,
    NOW,
    Build,
    early,
    expired,
    fault,
    issue,
    issued,
    loaded,
    placed,
    presenting,
    redirect,
    serving,
    site,
    srv,
    up,
)
from laboratory import (
    HTML,
    UNRECOGNIZED,
    ZONE,
    Answer,
    Laboratory,
    as_json,
    homeserver,
    http,
    repeat,
)


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
    "by the clock of the server, 5 days behind ours, it is valid",
    certify=expired,
    version=version(BACK),
)
site(
    f"our-clock-behind failing tls_not_yet_valid/{BY_THEIRS}",
    "by the clock of the server, 47 h ahead of ours, it is valid",
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
    "expired 3 days ago",
    certify=expired,
    version=by_right_clock,
)
site(
    "ends-soon degraded other/expires_soon",
    "ends in 3 days",
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


def unknown_authorities(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context with a chain that leads to an authority nobody knows."""
    leaf = trustme.CA().create_child_ca().issue_cert(name)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    return loaded(lab.folder, name, chain, leaf.private_key_pem.bytes())


def by_nobody(subject: str, *names: str) -> Build:
    """Return what makes a server with a certificate of its own for another name."""

    def build(lab: Laboratory, name: str) -> None:
        key = rsa.generate_private_key(65537, 2048)
        own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
        certificate = issue(
            lab,
            subject,
            key,
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
            by=(_issuer(own, key), key),
        )
        made = presenting(lab, name, key, certificate)
        lab.serve(placed(lab, name), 8448, homeserver(name), context=made)

    return build


def staged(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context with a certificate of an authority for tests."""
    key = rsa.generate_private_key(65537, 2048)
    authority = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "(STAGING) Let's Encrypt")]
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    by = (_issuer(authority, key), key)
    return presenting(lab, name, key, issue(lab, name, key, names, by=by))


site(
    "staged failing tls_untrusted/not_for_the_public",
    "the authority (STAGING) Let's Encrypt issues none",
    certify=staged,
)


def _issuer(name: x509.Name, key: rsa.RSAPrivateKey) -> x509.Certificate:
    return x509.CertificateBuilder(
        name, name, key.public_key(), 1, NOW - DAY, NOW + DAY
    ).sign(key, hashes.SHA256())


site(
    "unknown-authorities failing tls_untrusted/unknown_authority",
    "does not know the authority Testing CA #",
    certify=unknown_authorities,
)
fault(
    "traefik failing tls_untrusted/default_certificate",
    "default certificate of Traefik, none for traefik.lab.example",
)(by_nobody("TRAEFIK DEFAULT CERT", "0a1b.2c3d.traefik.default"))
fault(
    "kubernetes failing tls_untrusted/default_certificate",
    "default certificate of Kubernetes",
)(by_nobody("Kubernetes Ingress Controller Fake Certificate", "ingress.local"))
site(
    "hosted failing tls_wrong_name/default_certificate",
    "default certificate of Plesk",
    certify=lambda lab, _: issued(lab, "plesk.hosting.example"),
)


def old_only(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_1
    return made


def wants_certificate(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def other_cipher(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AES128-SHA256")
    return made


site("old-tls failing tls_failed/no_common_tls", certify=old_only)
site(
    "wants-certificate-before-13 failing tls_failed/handshake_refused",
    "or it demands a client certificate",
    certify=wants_certificate,
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

NGINX = HTML + b"Server: nginx/1.22.1\r\n"
CHALLENGE = b"<html><title>Just a moment...</title>"
LOGIN = b'<html><form><input type="password"></form>'
SETTINGS = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00\x03\x00\x00\x00\x80" * 3
GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00" * 7 + b"\x01"
for line, answer in {
    "proxy-502 http_error/backend_down": http("502 Bad Gateway", b"<html>", NGINX),
    "fails-500 http_error/web_server_fails": http("500 No", b"<html>", NGINX),
    "matrix-500 http_error/homeserver_fails": as_json(
        {"errcode": "M_UNKNOWN", "error": "Internal server error"}, status="500 No"
    ),
    "unrecognized http_error/federation_listener_missing": UNRECOGNIZED,
    "proxy-403 rejected/forbidden_by_proxy": http("403 No", b"<html>", NGINX),
    "denied rejected/denied_by_policy": as_json(
        {"errcode": "M_FORBIDDEN", "error": "Federation denied with lab"},
        status="403 No",
    ),
    "other-destination rejected/other_homeserver": as_json(
        {"errcode": "M_UNAUTHORIZED", "error": "Destination mismatch in auth header"},
        status="401 No",
    ),
    "basic-auth rejected/login_page": http("401 No", b"<html>", NGINX),
    "login-redirect http_error/login_page": redirect(b"https://sso.lab/login?rd=x"),
    "login-page invalid_response/login_page": http("200 OK", LOGIN, HTML),
    "challenge rejected/challenge_page": http("403 No", CHALLENGE, HTML),
    "moved http_error/redirect": redirect(b"https://www.lab.example/matrix"),
    "web-site invalid_response/web_site": http("200 OK", b"<html>", NGINX),
    "misdirected http_error/misdirected": http("421 No", b"<html>", NGINX),
    "firewall http_error/forbidden_by_proxy": http("406 No", b"<html>", HTML),
    "large-page http_error/not_routed": http("404 No", b"<html>" * 20_000, HTML),
    "empty invalid_response/body_empty": http("200 OK", b"", b"Server: Caddy\r\n"),
    "nginx-certificate http_error/client_certificate": http(
        "400 Bad Request", b"<html>No required SSL certificate was sent", NGINX
    ),
    "broken-off invalid_response/broke_off": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    ),
    "chunks-broken-off invalid_response/broke_off": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"
    ),
    "headers-broken-off invalid_response/broke_off": b"HTTP/1.1 200 OK\r\nContent-",
    "http2 invalid_response/http2_only": SETTINGS + GOAWAY,
    "ssh invalid_response/no_http": b"SSH-2.0-OpenSSH_9.2\r\n" * 50,
}.items():
    label, kind = line.split()
    serving(f"{label} failing {kind}", answer)

# Works, but.


def slowly(answer: bytes, seconds: float) -> Answer:
    """Return what gives an answer after a time."""

    def give(connection: ssl.SSLSocket) -> None:
        time.sleep(seconds)
        connection.sendall(answer)

    return give


@fault("slow-answers degraded other/slow", "took 5 s")
def _(lab: Laboratory, name: str) -> None:
    answers = {path: slowly(answer, 5.1) for path, answer in homeserver(name).items()}
    lab.serve(placed(lab, name), 8448, answers, name)


@fault("srv-one-hole degraded connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    srv(lab, name, f"hole-{name}", f"good-{name}")
    placed(lab, f"hole-{name}", lab.hole())
    lab.serve(placed(lab, f"good-{name}"), 8448, homeserver(name), name)


@fault("hole-first degraded connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    hole = placed(lab, name, lab.hole())
    lab.hole(hole, 443)
    up(lab, name)


# All is answered but what real traffic is made of.

BUSY = {"errcode": "M_UNKNOWN", "error": "Too many concurrent transactions"}
for line, answer in {
    "204 invalid_response/wrong_content_type": http("204 No", b"", b""),
    "304 http_error/odd_status": http("304 No", b"", b""),
    "403 rejected/forbidden_by_proxy": http("403 No", b"<html>", NGINX),
    "502 http_error/backend_down": http("502 No", b"<html>", NGINX),
    "broken invalid_response/not_json": http("200 OK", b"{"),
    "closes invalid_response/closed": b"",
    "page invalid_response/wrong_content_type": http("200 OK", b"<html>", NGINX),
    "redirect http_error/redirect": redirect(b"https://elsewhere.example/"),
}.items():
    site(f"send-{line.replace(' ', ' failing ')}", "only /_matrix", send=answer)
site("send-410 failing gone/signed_not_routed", send=http("410 Gone", b""))
site("send-413 failing too_large/empty_too_large", send=http("413 No", b"", HTML))
site(
    "send-headers-endless failing response_timeout/endless",
    "the response has no end",
    send=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
)
# Its answer of 200 begins.
site(
    "send-body-endless failing response_timeout/signed_unanswered",
    send=repeat(b" ", BEGUN_LIST, every_s=1),
)
# So others than Synapse reject what is signed, and Synapse where it gets no key.
for label, code, errcode, text in (
    (
        "signature_rejected",
        "403",
        "M_FORBIDDEN",
        "Failed to verify X-Matrix signatures.",
    ),
    ("other_homeserver", "403", "M_FORBIDDEN", "Invalid destination."),
    ("signature_removed", "401", "M_UNAUTHORIZED", "Missing Authorization headers"),
    ("our_key_not_fetched", "401", "M_UNAUTHORIZED", "Failed to find any key to sa"),
):
    site(
        f"{label.replace('_', '-')} failing rejected/{label}",
        f"HTTP {code} {errcode} {text}",
        send=as_json({"errcode": errcode, "error": text}, status=f"{code} No"),
    )
site("send-busy ok", "still busy", send=as_json(BUSY, status="429 No"))

# Others of the same kinds.

site(
    "wildcard-of-all failing tls_wrong_name/None",
    "it is for *.example, not for",
    certify=lambda lab, _: issued(lab, "*.example"),
)
site("wildcard ok", certify=lambda lab, _: issued(lab, f"*.{ZONE}"))
site("file-forbidden ok", file=http("403 Forbidden", b"<html>", HTML))
site(
    "file-204 degraded well_known_unreachable/no_file_in_it",
    "their web server answers HTTP 204",
    file=http("204 No", b"", b""),
)
site("keys-404 failing keys_missing", keys=http("404 Not Found", b"<html>", HTML))
site(
    "keys-and-send failing too_large",
    "No signing keys",
    keys=http("404 Not Found", b"<html>", HTML),
    send=http("413 No", b"", HTML),
)


@fault("two-refused failing connection_refused", "and 1 more")
def _(lab: Laboratory, name: str) -> None:
    placed(lab, name)
    placed(lab, name)
