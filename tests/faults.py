# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: what a server does wrong, and what that is to be called."""

import datetime
import socket
import ssl
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from ipaddress import ip_address

import attr
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from dnslib import DNSLabel
from laboratory import (
    HTML,
    KEYS,
    QUERY,
    VERSION,
    WELL_KNOWN,
    ZONE,
    Answer,
    Laboratory,
    as_json,
    close,
    hang,
    homeserver,
    http,
    repeat,
)

from synapse_federation_admin.playground.events import Identity

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
BLOCKED = "127.9.0.1"

# Where the kernel has no route to, and says so at once.
NOWHERE = "224.0.0.1"

Build = Callable[[Laboratory, str], str | None]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Fault:
    """A fault.

    Attributes:
        label: The first label of its server name.
        verdict: What is to be found.
        kind: How it is to be called: `kind`, or `kind/reason` where that does not
            depend on how quick this machine is.
        build: Makes the server; returns its name if that is another one.
        says: A fact that the explanation has to tell.
    """

    label: str
    verdict: str
    kind: str | None
    build: Build
    says: str = ""

    def fits(self, kind: str | None, reason: str | None) -> bool:
        """Tell whether it is called as it is to be."""
        return self.kind in (kind, f"{kind}/{reason}")


CATALOGUE: list[Fault] = []


def fault(
    label: str, verdict: str, kind: str | None = None, says: str = ""
) -> Callable[[Build], Build]:
    """Add a fault to the catalogue."""

    def add(build: Build) -> Build:
        CATALOGUE.append(Fault(label, verdict, kind, build, says))
        return build

    return add


def up(
    lab: Laboratory, name: str, address: str | None = None, **answers: Answer
) -> str:
    """Have a homeserver in order, but for some answers, at port 8448."""
    address = address or lab.address()
    lab.name(name.partition(".")[0], address)
    lab.serve(address, 8448, homeserver(name, **answers), name)
    return address


def up_with(lab: Laboratory, name: str, context: ssl.SSLContext) -> str:
    """Have one with a certificate of its own."""
    address = lab.address()
    lab.name(name.partition(".")[0], address)
    lab.serve(address, 8448, homeserver(name), context=context)
    return address


def context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(made)
    return made


def issued(lab: Laboratory, *names: str, **kwargs: datetime.datetime) -> ssl.SSLContext:
    return context(lab.authority.issue_cert(*names, **kwargs))


def expired(lab: Laboratory, *names: str) -> ssl.SSLContext:
    return issued(lab, *names, not_before=NOW - 9 * DAY, not_after=NOW - 3.5 * DAY)


def made_by(
    lab: Laboratory,
    name: str,
    *,
    names: tuple[str, ...],
    bits: int = 2048,
    authority: tuple[x509.Certificate, rsa.RSAPrivateKey] | None = None,
) -> ssl.SSLContext:
    """Return a context with a certificate that trustme would not make."""
    key = rsa.generate_private_key(65537, bits)
    builder = (
        x509.CertificateBuilder()
        .subject_name(common(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 90 * DAY)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False
        )
    if authority is None:
        issuer = x509.load_pem_x509_certificate(lab.authority.cert_pem.bytes())
        signing = serialization.load_pem_private_key(
            lab.authority.private_key_pem.bytes(), None
        )
        chain = []
    else:
        issuer, signing = authority
        chain = [issuer]
    certificate = builder.issuer_name(issuer.subject).sign(signing, hashes.SHA256())
    folder = lab.folder / name
    folder.mkdir()
    pem = serialization.Encoding.PEM
    (folder / "c.pem").write_bytes(
        b"".join(c.public_bytes(pem) for c in (certificate, *chain))
    )
    (folder / "k.pem").write_bytes(
        key.private_bytes(
            pem,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.load_cert_chain(folder / "c.pem", folder / "k.pem")
    return made


def common(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def expired_between(lab: Laboratory, name: str) -> ssl.SSLContext:
    """Return a context with an authority in its chain that has expired."""
    root = x509.load_pem_x509_certificate(lab.authority.cert_pem.bytes())
    signing = serialization.load_pem_private_key(
        lab.authority.private_key_pem.bytes(), None
    )
    key = rsa.generate_private_key(65537, 2048)
    between = (
        x509.CertificateBuilder()
        .subject_name(common("between"))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 90 * DAY)
        .not_valid_after(NOW - DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(signing, hashes.SHA256())
    )
    return made_by(lab, name, names=(name,), authority=(between, key))


def reset(connection: ssl.SSLSocket) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def delegates(lab: Laboratory, name: str, address: str, file: Answer) -> None:
    """Serve a well-known file at port 443."""
    lab.serve(address, 443, {WELL_KNOWN: file}, name)


def m_server(to: object) -> bytes:
    return as_json({"m.server": to})


# What is in order.


@fault("healthy", "ok")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)


@fault("literal", "ok")
def _(lab: Laboratory, name: str) -> str:
    address = lab.address()
    name = f"{address}:18448"
    lab.serve(address, 18448, homeserver(name), address)
    return name


@fault("port", "ok")
def _(lab: Laboratory, name: str) -> str:
    address = lab.address()
    lab.name("port", address)
    lab.serve(address, 9448, homeserver(f"{name}:9448"), name)
    return f"{name}:9448"


@fault("delegated", "ok")
def _(lab: Laboratory, name: str) -> None:
    address, other = lab.address(), lab.address()
    lab.name("delegated", address)
    delegates(lab, name, address, m_server(f"elsewhere.{ZONE}:10448"))
    lab.name("elsewhere", other)
    lab.serve(other, 10448, homeserver(name), f"elsewhere.{ZONE}")


@fault("delegated-srv", "ok")
def _(lab: Laboratory, name: str) -> None:
    address, other = lab.address(), lab.address()
    lab.name("delegated-srv", address)
    delegates(lab, name, address, m_server(f"by-srv.{ZONE}"))
    lab.dns.add(f"_matrix-fed._tcp.by-srv.{ZONE}", "SRV", (0, 0, 10448, f"t1.{ZONE}"))
    lab.name("t1", other)
    lab.serve(other, 10448, homeserver(name), f"by-srv.{ZONE}")


@fault("delegated-literal", "ok")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("delegated-literal", address)
    delegates(lab, name, address, m_server(f"{address}:10448"))
    lab.serve(address, 10448, homeserver(name), address)


@fault("redirected", "ok")
def _(lab: Laboratory, name: str) -> None:
    address, other = up(lab, name), lab.address()
    location = b"Location: https://files.%s/there\r\n" % ZONE.encode()
    delegates(lab, name, address, http("302 Found", b"", location))
    lab.name("files", other)
    lab.serve(other, 443, {"/there": m_server(f"{name}:8448")}, f"files.{ZONE}")


@fault("srv", "ok")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 10448, f"t2.{ZONE}"))
    lab.name("t2", address)
    lab.serve(address, 10448, homeserver(name), name)


@fault("old-srv", "ok")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.dns.add(f"_matrix._tcp.{name}", "SRV", (0, 0, 10448, f"t3.{ZONE}"))
    lab.name("t3", address)
    lab.serve(address, 10448, homeserver(name), name)


@fault("srv-beside-well-known", "ok")
def _(lab: Laboratory, name: str) -> None:
    """Delegation wins over SRV records, here of nothing."""
    address = up(lab, name)
    delegates(lab, name, address, m_server(f"{name}:8448"))
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 9, f"nothing.{ZONE}"))


@fault("not-found", "ok")
def _(lab: Laboratory, name: str) -> None:
    """A web server without a well-known file."""
    address = up(lab, name)
    delegates(lab, name, address, http("404 Not Found", b"<html>", HTML))


@fault("known-alias", "ok")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=as_json({"room_id": "!a:b", "servers": []}))


# Names.


@fault("invalid", "failing", "invalid_name/name_malformed")
def _(lab: Laboratory, name: str) -> str:
    return "no server"


@fault("invalid-port", "failing", "invalid_name/port_invalid")
def _(lab: Laboratory, name: str) -> str:
    return f"{name}:99999"


@fault("invalid-label", "failing", "invalid_name/label_empty")
def _(lab: Laboratory, name: str) -> str:
    return f"a..{ZONE}"


@fault("invalid-url", "failing", "invalid_name/name_is_url")
def _(lab: Laboratory, name: str) -> str:
    return f"https://{ZONE}"


@fault("shut-out", "failing", "not_allowed")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)


# DNS.


@fault("nxdomain", "failing", "dns_not_found/no_such_host")
def _(lab: Laboratory, name: str) -> None:
    pass


@fault("no-address", "failing", "dns_not_found/no_such_host")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "TXT", "there is something, but no address")


@fault("servfail", "failing", "dns_failed/dns_server_failure")
def _(lab: Laboratory, name: str) -> None:
    for kind in ("A", "AAAA"):
        lab.dns.records[name, kind] = "SERVFAIL"


@fault("silent-dns", "failing", "dns_failed")
def _(lab: Laboratory, name: str) -> None:
    for kind in ("A", "AAAA"):
        lab.dns.records[name, kind] = "silence"


@fault("srv-servfail", "failing", "dns_failed/dns_server_failure")
def _(lab: Laboratory, name: str) -> None:
    """Synapse gives up then, although the address is there."""
    up(lab, name)
    lab.dns.records[f"_matrix-fed._tcp.{name}", "SRV"] = "SERVFAIL"


@fault("srv-silent", "failing", "dns_failed")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.dns.records[f"_matrix-fed._tcp.{name}", "SRV"] = "silence"


@fault("srv-to-nowhere", "failing", "dns_not_found/no_such_host", f"gone.{ZONE}")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, f"gone.{ZONE}"))


@fault("srv-refused", "failing", "unreachable/no_service")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 0, "."))


@fault("srv-underscore", "failing", "dns_not_found/no_host_name", "my_host")
def _(lab: Laboratory, name: str) -> None:
    """Twisted does not connect to a host of such a name."""
    address = lab.address()
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, f"my_host.{ZONE}"))
    lab.name("my_host", address)
    lab.serve(address, 8448, homeserver(name), name)


@fault("srv-forged", "failing", "dns_not_found/no_host_name")
def _(lab: Laboratory, name: str) -> None:
    """A host name that would be a line of the log."""
    target = DNSLabel([b"x\n2026-01-01 00:00:00,000 - root - 1 - CRITICAL - FAKE"])
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, target))


@fault("srv-blackholes", "failing", "connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    """Many servers that do not react: none is tried when the diagnosis is over."""
    service = f"_matrix-fed._tcp.{name}"
    for number in range(30):
        lab.dns.add(service, "SRV", (number, 0, 8448, f"hole{number}.{ZONE}"))
        lab.dns.add(f"hole{number}.{ZONE}", "A", lab.hole())


@fault("srv-one-bad", "degraded", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    good, bad = lab.address(), lab.address()
    service = f"_matrix-fed._tcp.{name}"
    lab.dns.add(service, "SRV", (0, 0, 8448, f"t4.{ZONE}"), (9, 0, 8448, f"t5.{ZONE}"))
    lab.name("t4", good)
    lab.name("t5", bad)
    lab.serve(good, 8448, homeserver(name), name)


@fault("srv-one-gone", "degraded", "dns_not_found/no_such_host")
def _(lab: Laboratory, name: str) -> None:
    good = lab.address()
    service = f"_matrix-fed._tcp.{name}"
    lab.dns.add(service, "SRV", (0, 0, 8448, f"t6.{ZONE}"), (9, 0, 8448, f"no.{ZONE}"))
    lab.name("t6", good)
    lab.serve(good, 8448, homeserver(name), name)


# Blocked addresses.


@fault("blocked", "failing", "ip_blocked")
def _(lab: Laboratory, name: str) -> None:
    lab.name("blocked", BLOCKED)


@fault("blocked-literal", "failing", "ip_blocked/address_is_name")
def _(lab: Laboratory, name: str) -> str:
    return f"{BLOCKED}:8448"


@fault("blocked-by-delegation", "failing", "ip_blocked")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("blocked-by-delegation", address)
    delegates(lab, name, address, m_server(f"{BLOCKED}:8448"))


@fault("blocked-one", "failing", "ip_blocked/some_addresses")
def _(lab: Laboratory, name: str) -> None:
    """Synapse then does not use the good one either."""
    up(lab, name)
    lab.name("blocked-one", BLOCKED)


@fault("blocked-redirect", "failing", "well_known_unreachable/leads_to_blocked")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("blocked-redirect", address)
    location = b"Location: https://%s/there\r\n" % BLOCKED.encode()
    delegates(lab, name, address, http("302 Found", b"", location))


# Connections.


@fault("refused", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    lab.name("refused", lab.address())


@fault("dropped", "failing", "connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    lab.name("dropped", lab.hole())


# Whether this host has IPv4 at all is not the test's.
@fault("nowhere", "failing", "unreachable")
def _(lab: Laboratory, name: str) -> None:
    lab.name("nowhere", NOWHERE)


@fault("one-refused", "degraded", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.name("one-refused", lab.address())


@fault("one-expired", "degraded", "tls_expired/own_certificate")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    up_with(lab, name, expired(lab, name))


@fault("one-expired-first", "degraded", "tls_expired/own_certificate")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, expired(lab, name))
    up(lab, name)


@fault("one-web-server-first", "degraded", "http_error")
def _(lab: Laboratory, name: str) -> None:
    other = lab.address()
    lab.name("one-web-server-first", other)
    lab.serve(other, 8448, http("502 Bad Gateway", b"<html>", HTML), name)
    up(lab, name)


@fault("one-hole", "degraded", "connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    """An address that does not react, at port 443 either."""
    up(lab, name)
    hole = lab.hole()
    lab.hole(hole, 443)
    lab.name("one-hole", hole)


@fault("one-web-server", "degraded", "http_error")
def _(lab: Laboratory, name: str) -> None:
    other = lab.address()
    up(lab, name)
    lab.name("one-web-server", other)
    lab.serve(other, 8448, http("404 Not Found", b"<html>", HTML), name)


@fault("ipv6-refused", "degraded", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.dns.add(name, "AAAA", "::1")


# TLS.


@fault("expired", "failing", "tls_expired/own_certificate", "expired 3 days ago")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, expired(lab, name))


@fault("early", "failing", "tls_not_yet_valid/own_certificate")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, issued(lab, name, not_before=NOW + DAY, not_after=NOW + 9 * DAY))


@fault("wrong-name", "failing", "tls_wrong_name", "for other.example")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, issued(lab, "other.example"))


@fault("expired-wrong-name", "failing", "tls_expired/own_certificate")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, expired(lab, "other.example"))


@fault("srv-target-name", "failing", "tls_wrong_name")
def _(lab: Laboratory, name: str) -> None:
    """The certificate has to be for the server name, not for where SRV leads to."""
    address = lab.address()
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, f"t7.{ZONE}"))
    lab.name("t7", address)
    lab.serve(address, 8448, homeserver(name), f"t7.{ZONE}")


@fault("self-signed", "failing", "tls_untrusted/self_signed")
def _(lab: Laboratory, name: str) -> None:
    own = trustme.CA()
    folder = lab.folder / "self"
    folder.mkdir()
    own.cert_pem.write_to_path(folder / "c.pem")
    own.private_key_pem.write_to_path(folder / "k.pem")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "c.pem", folder / "k.pem")
    up_with(lab, name, made)


@fault("other-authority", "failing", "tls_untrusted/unknown_authority")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, context(trustme.CA().issue_cert(name)))


@fault("incomplete-chain", "failing", "tls_untrusted/unknown_authority")
def _(lab: Laboratory, name: str) -> None:
    leaf = lab.authority.create_child_ca().issue_cert(name)
    folder = lab.folder / "incomplete"
    folder.mkdir()
    (folder / "c.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    leaf.private_key_pem.write_to_path(folder / "k.pem")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "c.pem", folder / "k.pem")
    up_with(lab, name, made)


@fault("two-faults", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    lab.name("two-faults", lab.address())
    up_with(lab, name, expired(lab, name))


@fault("expired-between", "failing", "tls_expired/in_chain")
def _(lab: Laboratory, name: str) -> None:
    """The server's own certificate is valid, and one in its chain has expired."""
    up_with(lab, name, expired_between(lab, name))


@fault("no-names", "failing", "tls_wrong_name/no_names")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, made_by(lab, name, names=()))


@fault("weak-key", "failing", "tls_untrusted/weak_key")
def _(lab: Laboratory, name: str) -> None:
    up_with(lab, name, made_by(lab, name, names=(name,), bits=1024))


@fault("wants-certificate", "failing", "tls_failed", "certificate required")
def _(lab: Laboratory, name: str) -> None:
    made = lab.certificates.valid(name)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(lab.certificates.path)
    up_with(lab, name, made)


@fault("resets", "failing", "tls_failed/closed_in_handshake")
def _(lab: Laboratory, name: str) -> None:
    """Takes a connection and resets it."""
    address = lab.address()
    lab.name("resets", address)
    lab.serve(address, 8448, reset, plain=True)


@fault("no-tls", "failing", "tls_failed")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("no-tls", address)
    lab.serve(address, 8448, http("400 Bad Request"), plain=True)


@fault("closes-handshake", "failing", "tls_failed/closed_in_handshake")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("closes-handshake", address)
    lab.serve(address, 8448, close, plain=True)


@fault("hangs-handshake", "failing", "response_timeout/in_handshake")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("hangs-handshake", address)
    lab.serve(address, 8448, hang, plain=True)


# The well-known file.


def well_known(
    label: str,
    verdict: str,
    kind: str,
    file: Answer,
    *,
    works: bool,
) -> None:
    """Add a fault of the file, of a server that can be found without it or not."""

    @fault(label, verdict, kind)
    def _(lab: Laboratory, name: str) -> None:
        address = lab.address()
        if works:
            up(lab, name, address)
        else:
            lab.name(label, address)
        delegates(lab, name, address, file)


for works in (False, True):
    end, verdict = ("-works", "degraded") if works else ("", "failing")
    for label, kind, file in (
        ("no-json", "well_known_invalid/not_json", http("200 OK", b"{")),
        ("text-file", "well_known_invalid/not_json", http("200 OK", b"hello")),
        (
            "no-m-server",
            "well_known_invalid/m_server_missing",
            as_json({"server": "a"}),
        ),
        ("number", "well_known_invalid/m_server_not_a_string", m_server(8448)),
        ("list", "well_known_invalid/not_json", as_json(["m.server"])),
        (
            "umlaut",
            "well_known_invalid/m_server_invalid",
            m_server("m\u00fcller.example"),
        ),
        ("large-file", "well_known_invalid/body_too_large", m_server("x" * 60_000)),
        ("bad-gateway", "well_known_unreachable", http("502 Bad Gateway", b"")),
        (
            "redirect-away",
            "well_known_unreachable",
            http("302 Found", b"", b"Location: https://nosuch.example/\r\n"),
        ),
        (
            "redirect-loop",
            "well_known_unreachable",
            http("302 Found", b"", b"Location: /.well-known/matrix/server\r\n"),
        ),
        (
            "redirect-nowhere",
            "well_known_unreachable/redirect_without_target",
            http("302 Found", b"", b""),
        ),
        ("file-closes", "well_known_unreachable", close),
    ):
        well_known(f"{label}{end}", verdict, kind, file, works=works)


well_known(
    "url", "failing", "well_known_invalid", m_server("https://a.example"), works=True
)
well_known("path", "failing", "well_known_invalid", m_server("a.example/b"), works=True)
well_known("hanging-file", "failing", "well_known_unreachable", hang, works=True)


@fault("web-page", "ok")
def _(lab: Laboratory, name: str) -> None:
    """A web site that answers with a page, whatever it is asked for."""
    address = up(lab, name)
    delegates(lab, name, address, http("200 OK", b"<html>", HTML))


@fault("web-page-only", "failing", "well_known_invalid/not_json")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("web-page-only", address)
    delegates(lab, name, address, http("200 OK", b"<html>", HTML))


@fault("web-certificate", "ok")
def _(lab: Laboratory, name: str) -> None:
    """A web site of the same name whose certificate is not for it."""
    address = up(lab, name)
    lab.serve(address, 443, {}, "other.example")


@fault("web-page-and-srv", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Who has SRV records has no need of the file."""
    address = lab.address()
    lab.name("web-page-and-srv", address)
    delegates(lab, name, address, http("200 OK", b"<html>", HTML))
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, name))


@fault("no-file", "failing", "connection_refused/may_lack_delegation")
def _(lab: Laboratory, name: str) -> None:
    """A homeserver at port 443 to which nothing leads."""
    address = lab.address()
    lab.name("no-file", address)
    lab.serve(address, 443, homeserver(name), name)


@fault("dropped-file", "degraded", "well_known_unreachable")
def _(lab: Laboratory, name: str) -> None:
    address = up(lab, name)
    full = lab.enter(socket.create_server((address, 443), backlog=0))
    lab.enter(socket.create_connection(full.getsockname()))


@fault("slower-file", "ok")
def _(lab: Laboratory, name: str) -> None:
    """Synapse waits for it, and so does the diagnosis."""
    address = up(lab, name)

    def answer(connection: ssl.SSLSocket) -> None:
        time.sleep(2)
        connection.sendall(m_server(f"{name}:8448"))

    delegates(lab, name, address, answer)


@fault("expired-file", "failing", "well_known_unreachable")
def _(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name("expired-file", address)
    lab.serve(address, 443, {}, context=expired(lab, name))


@fault("delegated-refused", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """SRV records, here of a server that is up, do not count beside delegation."""
    address = up(lab, name)
    delegates(lab, name, address, m_server(f"{name}:9"))
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, name))


@fault("delegated-wrong-name", "failing", "tls_wrong_name")
def _(lab: Laboratory, name: str) -> None:
    """The certificate has to be for the delegated name."""
    address = up(lab, name)
    lab.name("other-name", address)
    delegates(lab, name, address, m_server(f"other-name.{ZONE}:8448"))


# Answers.

EVERYWHERE = (
    ("401", "rejected", http("401 Unauthorized")),
    ("403", "rejected", as_json({"errcode": "M_FORBIDDEN"}, status="403 Forbidden")),
    ("404", "http_error", http("404 Not Found", b"<html>", HTML)),
    ("410", "gone", http("410 Gone", b"")),
    ("413", "too_large", http("413 Payload Too Large")),
    ("429", "rate_limited", http("429 Too Many Requests")),
    ("500", "http_error", http("500 Internal Server Error")),
    ("502", "http_error", http("502 Bad Gateway", b"<html>", HTML)),
    ("redirect", "http_error", http("301 Moved", b"", b"Location: https://a.b/\r\n")),
    ("html", "invalid_response", http("200 OK", b"<html>", HTML)),
    ("broken-json", "invalid_response", http("200 OK", b"{")),
    ("no-http", "invalid_response", b"SSH-2.0-OpenSSH_9.2\r\n" * 50),
    ("closes", "invalid_response", close),
    ("hangs", "response_timeout", hang),
    (
        "cut",
        "invalid_response",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
    ),
)

for label, kind, answer in EVERYWHERE:

    @fault(f"all-{label}", "failing", kind)
    def _(lab: Laboratory, name: str, answer: Answer = answer) -> None:
        address = lab.address()
        lab.name(name.partition(".")[0], address)
        lab.serve(address, 8448, answer, name)


@fault("rejects", "failing", "rejected")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No"))


@fault("rejects-and-hides", "failing", "rejected")
def _(lab: Laboratory, name: str) -> None:
    """One that does not tell its version, and rejects us."""
    up(
        lab,
        name,
        version=http("404 Not Found", b"<html>", HTML),
        query=as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No"),
    )


@fault("query-hangs", "failing", "response_timeout/signed_unanswered")
def _(lab: Laboratory, name: str) -> None:
    """It may be waiting for our key."""
    up(lab, name, query=hang)


@fault("keys-limited", "failing", "rate_limited/keys_request")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, keys=http("429 Too Many Requests"))


@fault("late-hostile-file", "failing", "well_known_unreachable")
def _(lab: Laboratory, name: str) -> None:
    """The file hangs at first, and then is hostile to whoever logs it."""
    address = up(lab, name)
    asked: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        asked.append(1)
        if len(asked) == 1:
            hang(connection)
        else:
            connection.sendall(as_json({"m.server": "x" * 300, "x": TEXT, "\xfc": 1}))

    delegates(lab, name, address, answer)


@fault("shuts-us-out", "failing", "rejected")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=as_json({"errcode": "M_FORBIDDEN"}, status="403 No"))


@fault("query-500", "failing", "http_error/signed_not_routed")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=http("500 Internal Server Error"))


@fault("query-limited", "failing", "rate_limited")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=http("429 Too Many Requests"))


@fault("query-unknown", "degraded", "http_error/unknown_request")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=as_json({"errcode": "M_UNRECOGNIZED"}, status="404 No"))


@fault("no-version", "degraded", "http_error")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, version=http("404 Not Found"))


# Keys.


def keys(name: str, **changes: object) -> bytes:
    """Return an answer whose signature is right, but for what is wrong."""
    identity = Identity(name)
    content = identity.server_keys()
    content.pop("signatures")
    content.update(changes)
    return as_json(identity._signed(content))


def broken_signature(name: str) -> bytes:
    content = Identity(name).server_keys()
    content["valid_until_ts"] += 1
    return as_json(content)


BAD_KEYS: tuple[tuple[str, str, Callable[[str], bytes]], ...] = (
    ("keys-404", "keys_missing", lambda _: http("404 Not Found")),
    (
        "keys-none",
        "keys_missing/no_ed25519_key",
        lambda name: keys(name, verify_keys={}),
    ),
    (
        "keys-odd",
        "keys_missing/no_ed25519_key",
        lambda name: keys(name, verify_keys={"rsa:1": {}}),
    ),
    ("keys-signature", "keys_invalid/signature_invalid", broken_signature),
    (
        "keys-unsigned",
        "keys_invalid",
        lambda name: as_json(
            {k: v for k, v in Identity(name).server_keys().items() if k[0] != "s"}
        ),
    ),
    (
        "keys-of-another",
        "keys_invalid/other_server_name",
        lambda _: keys("other.example"),
    ),
    (
        "keys-no-date",
        "keys_invalid/valid_until_missing",
        lambda name: keys(name, valid_until_ts="soon"),
    ),
    ("keys-a-list", "keys_invalid/not_json", lambda _: as_json([])),
    (
        "keys-expired",
        "keys_expired",
        lambda name: keys(name, valid_until_ts=int(time.time() * 1000) - 86_400_000),
    ),
    ("keys-500", "keys_missing", lambda _: http("500 Internal Server Error")),
)

for label, kind, make in BAD_KEYS:

    @fault(label, "failing", kind)
    def _(lab: Laboratory, name: str, make: Callable[[str], bytes] = make) -> None:
        up(lab, name, keys=make(name))


@fault(
    "keys-of-this-name", "failing", "keys_invalid/other_server_name", "other.example"
)
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, keys=keys("other.example"))


@fault("keys-shut", "failing", "keys_missing", "HTTP 403")
def _(lab: Laboratory, name: str) -> None:
    """It is not us whom they reject."""
    up(lab, name, keys=http("403 Forbidden", b"<html>", HTML))


@fault("keys-gone", "failing", "keys_missing", "HTTP 410")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, keys=http("410 Gone"))


def with_old(name: str, old: object) -> bytes:
    return keys(name, old_verify_keys=old)


def with_second(name: str, key: object) -> bytes:
    """Return keys of which the second cannot be read."""
    good = Identity(name).server_keys()["verify_keys"]
    content = {**good, "ed25519:z": key}
    return keys(name, verify_keys=content)


def unreadable(label: str, make: Callable[[str], bytes]) -> None:
    """Add keys of which Synapse takes none, for it cannot read one."""

    @fault(label, "failing", "keys_invalid")
    def _(lab: Laboratory, name: str) -> None:
        up(lab, name, keys=make(name))


unreadable("old-key-bad", lambda name: with_old(name, {"ed25519:o": {"key": "A"}}))
unreadable("old-keys-a-list", lambda name: with_old(name, [1]))
unreadable("second-key-bad", lambda name: with_second(name, {"key": "AAAA"}))
unreadable("second-key-empty", lambda name: with_second(name, {}))


@fault("query-html", "failing", "http_error/signed_not_routed")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=http("404 Not Found", b"<html>", HTML))


@fault("query-error", "failing", "http_error/signed_error", "HTTP 500 M_UNKNOWN")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, query=as_json({"errcode": "M_UNKNOWN"}, status="500 No"))


@fault("version-shut", "degraded", "rejected/unsigned_too")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name, version=http("403 Forbidden"))


# Clocks.


@fault("fast-clock", "degraded", "other/clock", "ahead of ours")
def _(lab: Laboratory, name: str) -> None:
    date = f"Date: {formatdate(time.time() + 7200, usegmt=True)}\r\n".encode()
    up(lab, name, version=as_json({"server": {}}, date))


@fault("slow-clock-rejects", "failing", "rejected/clock", "behind ours")
def _(lab: Laboratory, name: str) -> None:
    date = f"Date: {formatdate(time.time() - 7200, usegmt=True)}\r\n".encode()
    up(
        lab,
        name,
        version=as_json({"server": {}}, date),
        query=as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No"),
    )


# Hostile servers.

ESC = b"\x1b[31m\xff\r\t"
TEXT = "\u001b[31m\n2026 forged\u2028" + "x" * 20_000


def hostile(label: str, verdict: str, kind: str | None, **answers: Answer) -> None:
    @fault(label, verdict, kind)
    def _(lab: Laboratory, name: str) -> None:
        up(lab, name, **answers)


hostile(
    "hostile-version",
    "ok",
    None,
    version=as_json({"server": {"name": TEXT, "version": TEXT}}),
)
hostile(
    "hostile-type",
    "degraded",
    "invalid_response/wrong_content_type",
    version=http("200 OK", b"{}", b"Content-Type: " + ESC + b"\r\n"),
)
hostile(
    "folded-type",
    "failing",
    "keys_invalid/wrong_content_type",
    keys=http(
        "200 OK", b"{}", b"Content-Type: a" + b"\r\n \x1b[31m\x07b" * 5000 + b"\r\n"
    ),
)
hostile(
    "garbage-status",
    "failing",
    "invalid_response",
    query=b"\x1b[31m\x07" + b"g" * 20_000 + b"\r\n\r\n",
)
hostile(
    "hostile-errcode",
    "failing",
    "rejected",
    query=as_json({"errcode": TEXT, "error": TEXT}, status="401 " + "y" * 5000),
)
hostile(
    "hostile-status",
    "failing",
    "http_error",
    query=b"HTTP/1.1 500 " + ESC + b"z" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
)
hostile(
    "hostile-keys",
    "failing",
    "keys_invalid/other_server_name",
    keys=as_json(
        {
            "server_name": TEXT,
            "verify_keys": {"ed25519:" + TEXT: {"key": TEXT}},
            "signatures": TEXT,
            "valid_until_ts": 10**400,
        }
    ),
)
hostile(
    "deep-keys", "failing", "keys_invalid/not_json", keys=http("200 OK", b"[" * 50_000)
)
hostile(
    "deep-version",
    "degraded",
    "invalid_response/not_json",
    version=http("200 OK", b"[" * 50_000),
)
hostile(
    "endless-body",
    "degraded",
    "invalid_response/body_too_large",
    version=repeat(
        b'"x", ' * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[",
    ),
)
hostile(
    "endless-headers",
    "degraded",
    "invalid_response",
    version=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
)
hostile(
    "endless-keys",
    "failing",
    "keys_invalid",
    keys=repeat(
        b'"x", ' * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[",
    ),
)
hostile(
    "slow-version",
    "degraded",
    "response_timeout",
    version=repeat(
        b"x",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[",
        every_s=1,
    ),
)
hostile(
    "slow-query",
    "failing",
    "response_timeout",
    query=repeat(b"x", b"HTTP/1.1 404 N\r\nX: ", every_s=1),
)

for label, verdict, kind, file in (
    (
        "hostile-file",
        "failing",
        "well_known_invalid/m_server_invalid",
        m_server("\u001b[31mx" + "y" * 9000),
    ),
    (
        "hostile-location",
        "degraded",
        "well_known_unreachable/redirect_invalid",
        http("302 Found", b"", b"Location: " + ESC[:6] + b"z" * 9000 + b"\r\n"),
    ),
    (
        "endless-file",
        "degraded",
        "well_known_invalid/body_too_large",
        repeat(b"x" * 1000, b"HTTP/1.1 200 OK\r\n\r\n"),
    ),
    (
        "slow-file",
        "failing",
        "well_known_unreachable",
        repeat(b"x", b"HTTP/1.1 200 OK\r\n\r\n", every_s=1),
    ),
):
    well_known(label, verdict, kind, file, works=True)


@fault("endless-redirects", "degraded", "well_known_unreachable")
def _(lab: Laboratory, name: str) -> None:
    address = up(lab, name)
    location = b"Location: /x%s\r\n" % (b"x" * 2000)
    lab.serve(address, 443, http("302 Found", b"", location), name)


@fault("many-addresses", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Ten thousand: ten hosts with a thousand addresses each, where nothing is."""
    first = int(ip_address("127.90.0.1"))
    for number in range(10):
        host = f"many{number}.{ZONE}"
        lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, host))
        base = first + 1000 * number
        lab.dns.add(host, "A", *(str(ip_address(base + n)) for n in range(1000)))
        lab.dns.prepare(host, "A")


__all__ = ["CATALOGUE", "KEYS", "QUERY", "VERSION", "Fault"]
