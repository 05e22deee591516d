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
from pathlib import Path
from typing import Any

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
    UNRECOGNIZED,
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

BAD_GATEWAY = http("502 Bad Gateway", b"<html>", HTML)
UNAUTHORIZED = as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No")
PAGE = http("200 OK", b"<html>", HTML)
PAGE_NOT_FOUND = http("404 Not Found", b"<html>", HTML)

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


def plain(label: str, kind: str, answer: Answer) -> None:
    """Add one that does not speak TLS at port 8448."""

    @fault(label, "failing", kind)
    def _(lab: Laboratory, name: str) -> None:
        address = lab.address()
        lab.name(label, address)
        lab.serve(address, 8448, answer, plain=True)


def named(label: str, kind: str, given: str) -> None:
    """Add a name to which nothing is sent."""

    @fault(label, "failing", kind)
    def _(_: Laboratory, __: str) -> str:
        return given


def by_srv(
    label: str,
    verdict: str,
    kind: str | None = None,
    *,
    service: str = "_matrix-fed",
    certified_for: str = "",
) -> None:
    """Add one to which SRV records lead, at another host."""

    @fault(label, verdict, kind)
    def _(lab: Laboratory, name: str) -> None:
        address, host = lab.address(), f"target-{label}.{ZONE}"
        lab.dns.add(f"{service}._tcp.{name}", "SRV", (0, 0, 10448, host))
        lab.dns.add(host, "A", address)
        lab.serve(address, 10448, homeserver(name), certified_for or name)


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


def early(lab: Laboratory, name: str) -> ssl.SSLContext:
    return issued(lab, name, not_before=NOW + DAY, not_after=NOW + 9 * DAY)


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
    pem = serialization.Encoding.PEM
    return loaded(
        lab.folder,
        name,
        b"".join(c.public_bytes(pem) for c in (certificate, *chain)),
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


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


def wants_certificate(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(lab.certificates.path)
    return made


def reset(connection: ssl.SSLSocket) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def delegates(lab: Laboratory, name: str, address: str, file: Answer) -> None:
    """Serve a well-known file at port 443."""
    lab.serve(address, 443, {WELL_KNOWN: file}, name)


def site(
    label: str,
    verdict: str,
    kind: str | None = None,
    says: str = "",
    *,
    file: Answer | None = None,
    is_up: bool = True,
    certify: Callable[[Laboratory, str], ssl.SSLContext] | None = None,
    make_keys: Callable[[str], bytes] | None = None,
    **answers: Answer,
) -> None:
    """Add a server that is in order but for what is given.

    Args:
        label: As of a fault, and so are `verdict`, `kind` and `says`.
        verdict: See there.
        kind: See there.
        says: See there.
        file: Its well-known file; by default nothing listens there.
        is_up: Whether a homeserver answers at port 8448.
        certify: Makes its certificate for its name.
        make_keys: Makes its keys for its name.
        answers: Other answers of it.
    """

    @fault(label, verdict, kind, says)
    def _(lab: Laboratory, name: str) -> None:
        address = lab.address()
        lab.name(label, address)
        if is_up:
            made = certify(lab, name) if certify else None
            given = {**answers, **({"keys": make_keys(name)} if make_keys else {})}
            answering = homeserver(name, **given)
            lab.serve(address, 8448, answering, name, context=made)
        if file is not None:
            delegates(lab, name, address, file)


def m_server(to: object) -> bytes:
    return as_json({"m.server": to})


# What is in order.


site("healthy", "ok")


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


by_srv("srv", "ok")
by_srv("old-srv", "ok", service="_matrix")


@fault("srv-beside-well-known", "ok")
def _(lab: Laboratory, name: str) -> None:
    """Delegation wins over SRV records, here of nothing."""
    address = up(lab, name)
    delegates(lab, name, address, m_server(f"{name}:8448"))
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 9, f"nothing.{ZONE}"))


# A web server without a well-known file.
site("not-found", "ok", file=PAGE_NOT_FOUND)


# Names.


named("invalid", "invalid_name/name_malformed", "no server")
named("invalid-port", "invalid_name/port_invalid", f"invalid-port.{ZONE}:99999")
named("invalid-label", "invalid_name/label_empty", f"a..{ZONE}")
named("invalid-url", "invalid_name/name_is_url", f"https://{ZONE}")
named("blocked-literal", "ip_blocked/address_is_name", f"{BLOCKED}:8448")


# DNS.


@fault("nxdomain", "failing", "dns_not_found/no_such_host")
def _(lab: Laboratory, name: str) -> None:
    pass


@fault("no-address", "failing", "dns_not_found/no_such_host")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "TXT", "there is something, but no address")


def unresolved(label: str, kind: str, record: str, said: str) -> None:
    """Add one of whose records, of some kinds, the DNS says what is wrong."""

    @fault(label, "failing", kind)
    def _(lab: Laboratory, name: str) -> None:
        if record:
            # Synapse gives up then, although the address is there.
            up(lab, name)
            lab.dns.records[f"{record}.{name}", "SRV"] = said
        else:
            lab.dns.records.update({(name, k): said for k in ("A", "AAAA")})


unresolved("servfail", "dns_failed/dns_server_failure", "", "SERVFAIL")
unresolved("silent-dns", "dns_failed", "", "silence")
unresolved(
    "srv-servfail", "dns_failed/dns_server_failure", "_matrix-fed._tcp", "SERVFAIL"
)
unresolved("srv-silent", "dns_failed", "_matrix-fed._tcp", "silence")


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


for label, kind in (
    ("srv-one-bad", "connection_refused"),
    ("srv-one-gone", "dns_not_found/no_such_host"),
):

    @fault(label, "degraded", kind)
    def _(lab: Laboratory, name: str, label: str = label) -> None:
        good, bad = f"good-{label}.{ZONE}", f"bad-{label}.{ZONE}"
        service, address = f"_matrix-fed._tcp.{name}", lab.address()
        lab.dns.add(service, "SRV", (0, 0, 8448, good), (9, 0, 8448, bad))
        lab.dns.add(good, "A", address)
        if label == "srv-one-bad":
            lab.dns.add(bad, "A", lab.address())
        lab.serve(address, 8448, homeserver(name), name)


# Blocked addresses.


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


def addressed(label: str, kind: str, find: Callable[[Laboratory], str]) -> None:
    """Add one at whose address nobody answers."""

    @fault(label, "failing", kind)
    def _(lab: Laboratory, name: str) -> None:
        lab.name(label, find(lab))


addressed("refused", "connection_refused", Laboratory.address)
addressed("dropped", "connection_timeout", Laboratory.hole)
# Whether this host has IPv4 at all is not the test's.
addressed("nowhere", "unreachable", lambda _: NOWHERE)
addressed("blocked", "ip_blocked", lambda _: BLOCKED)


@fault("one-refused", "degraded", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.name("one-refused", lab.address())


def bad_certificate(lab: Laboratory, name: str) -> None:
    up_with(lab, name, expired(lab, name))


def bad_web_server(lab: Laboratory, name: str) -> None:
    address = lab.address()
    lab.name(name.partition(".")[0], address)
    lab.serve(address, 8448, BAD_GATEWAY, name)


# Two addresses, of which one is in order, in both orders.
for label, kind, bad in (
    ("one-expired", "tls_expired/own_certificate", bad_certificate),
    ("one-web-server", "http_error", bad_web_server),
):
    for end, builds in (("", (up, bad)), ("-first", (bad, up))):

        @fault(f"{label}{end}", "degraded", kind)
        def _(lab: Laboratory, name: str, builds: Any = builds) -> None:
            for build in builds:
                build(lab, name)


@fault("one-hole", "degraded", "connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    """An address that does not react, at port 443 either."""
    up(lab, name)
    hole = lab.hole()
    lab.hole(hole, 443)
    lab.name("one-hole", hole)


@fault("ipv6-refused", "degraded", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.dns.add(name, "AAAA", "::1")


# TLS.


site(
    "expired",
    "failing",
    "tls_expired/own_certificate",
    "expired 3 days ago",
    certify=expired,
)
site("early", "failing", "tls_not_yet_valid/own_certificate", certify=early)
site(
    "wrong-name",
    "failing",
    "tls_wrong_name",
    "for other.example",
    certify=lambda lab, _: issued(lab, "other.example"),
)
site(
    "expired-wrong-name",
    "failing",
    "tls_expired/own_certificate",
    certify=lambda lab, _: expired(lab, "other.example"),
)
site(
    "other-authority",
    "failing",
    "tls_untrusted/unknown_authority",
    certify=lambda _, name: context(trustme.CA().issue_cert(name)),
)
site(
    "incomplete-chain",
    "failing",
    "tls_untrusted/unknown_authority",
    certify=incomplete,
)
site("self-signed", "failing", "tls_untrusted/self_signed", certify=self_signed)
# The server's own certificate is valid, and one in its chain has expired.
site("expired-between", "failing", "tls_expired/in_chain", certify=expired_between)
site(
    "no-names",
    "failing",
    "tls_wrong_name/no_names",
    certify=lambda lab, name: made_by(lab, name, names=()),
)
site(
    "weak-key",
    "failing",
    "tls_untrusted/weak_key",
    certify=lambda lab, name: made_by(lab, name, names=(name,), bits=1024),
)
site(
    "wants-certificate",
    "failing",
    "tls_failed",
    "certificate required",
    certify=wants_certificate,
)


plain("resets", "tls_failed/closed_in_handshake", reset)
plain("no-tls", "tls_failed", http("400 Bad Request"))
plain("closes-handshake", "tls_failed/closed_in_handshake", close)
plain("hangs-handshake", "response_timeout/in_handshake", hang)


# The certificate has to be for the server name, not for where SRV leads to.
by_srv(
    "srv-target-name",
    "failing",
    "tls_wrong_name",
    certified_for=f"target-srv-target-name.{ZONE}",
)


@fault("two-faults", "failing", "connection_refused")
def _(lab: Laboratory, name: str) -> None:
    lab.name("two-faults", lab.address())
    up_with(lab, name, expired(lab, name))


# The well-known file.


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
        site(f"{label}{end}", verdict, kind, file=file, is_up=works)


# These are used as they are, or waited for.
site("url", "failing", "well_known_invalid", file=m_server("https://a.example"))
site("path", "failing", "well_known_invalid", file=m_server("a.example/b"))
site("hanging-file", "failing", "well_known_unreachable", file=hang)
# A web site that answers with a page, whatever it is asked for.
site("web-page", "ok", file=PAGE)
site("web-page-only", "failing", "well_known_invalid/not_json", file=PAGE, is_up=False)


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
    delegates(lab, name, address, PAGE)
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", (0, 0, 8448, name))


@fault("no-file", "failing", "connection_refused/may_lack_delegation")
def _(lab: Laboratory, name: str) -> None:
    """A homeserver at port 443 to which nothing leads."""
    address = lab.address()
    lab.name("no-file", address)
    lab.serve(address, 443, homeserver(name), name)


@fault("dropped-file", "degraded", "well_known_unreachable")
def _(lab: Laboratory, name: str) -> None:
    lab.hole(up(lab, name), 443)


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
    ("404", "http_error", PAGE_NOT_FOUND),
    ("410", "gone", http("410 Gone", b"")),
    ("413", "too_large", http("413 Payload Too Large")),
    ("429", "rate_limited", http("429 Too Many Requests")),
    ("500", "http_error", http("500 Internal Server Error")),
    ("502", "http_error", BAD_GATEWAY),
    ("redirect", "http_error", http("301 Moved", b"", b"Location: https://a.b/\r\n")),
    ("list", "invalid_response", as_json([1])),
    ("no-type", "invalid_response", http("200 OK", b"{}", b"")),
    ("odd-redirect", "http_error", http("302 Found", b"", b"Location: \x1b[3\xff\r\n")),
    ("html", "invalid_response", PAGE),
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


BEGUN_LIST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n["
ENDLESS_LIST = repeat(b'"x", ' * 1000, BEGUN_LIST)
DEEP_LIST = http("200 OK", b"[" * 50_000)
ESC = b"\x1b[31m\xff\r\t"
TEXT = "\u001b[31m\n2026 forged\u2028" + "x" * 20_000
FOLDED = b"Content-Type: a" + b"\r\n \x1b[31m\x07b" * 5000 + b"\r\n"
FORBIDDEN = http("403 Forbidden")
LIMITED = http("429 Too Many Requests")
HOSTILE_KEYS = {
    "server_name": TEXT,
    "verify_keys": {"ed25519:" + TEXT: {"key": TEXT}},
    "signatures": TEXT,
    "valid_until_ts": 10**400,
}
FAST, SLOW = (
    as_json({"server": {}}, f"Date: {formatdate(at, usegmt=True)}\r\n".encode())
    for at in (time.time() + 7200, time.time() - 7200)
)

site("known-alias", "ok", query=as_json({"room_id": "!a:b"}))
site("shut-out", "failing", "not_allowed")
site("rejects", "failing", "rejected", query=UNAUTHORIZED)
# One that does not tell its version, and rejects us.
site(
    "rejects-and-hides",
    "failing",
    "rejected",
    version=PAGE_NOT_FOUND,
    query=UNAUTHORIZED,
)
# It may be waiting for our key.
site("query-hangs", "failing", "response_timeout/signed_unanswered", query=hang)
site("keys-limited", "failing", "rate_limited/keys_request", keys=LIMITED)
site("keys-close", "failing", "keys_missing/closed", keys=close)
site(
    "shuts-us-out",
    "failing",
    "rejected",
    query=as_json({"errcode": "M_FORBIDDEN"}, status="403 No"),
)
site(
    "query-500",
    "failing",
    "http_error/signed_not_routed",
    query=http("500 Internal Server Error"),
)
site("query-limited", "failing", "rate_limited", query=LIMITED)
site("query-unknown", "degraded", "http_error/unknown_request", query=UNRECOGNIZED)
site("query-html", "failing", "http_error/signed_not_routed", query=PAGE_NOT_FOUND)
site(
    "query-error",
    "failing",
    "http_error/signed_error",
    "HTTP 500 M_UNKNOWN",
    query=as_json({"errcode": "M_UNKNOWN"}, status="500 No"),
)
site("no-version", "degraded", "http_error", version=http("404 Not Found"))
site("version-shut", "degraded", "rejected/unsigned_too", version=FORBIDDEN)
# Clocks.
site("fast-clock", "degraded", "other/clock", "ahead of ours", version=FAST)
site(
    "slow-clock-rejects",
    "failing",
    "rejected/clock",
    "behind ours",
    version=SLOW,
    query=UNAUTHORIZED,
)
# Hostile servers.
site(
    "hostile-version",
    "ok",
    version=as_json({"server": {"name": TEXT, "version": TEXT}}),
)
site(
    "hostile-type",
    "degraded",
    "invalid_response/wrong_content_type",
    version=http("200 OK", b"{}", b"Content-Type: %s\r\n" % ESC),
)
site(
    "folded-type",
    "failing",
    "keys_invalid/wrong_content_type",
    keys=http("200 OK", b"{}", FOLDED),
)
site(
    "garbage-status",
    "failing",
    "invalid_response",
    query=b"\x1b[31m\x07" + b"g" * 20_000 + b"\r\n\r\n",
)
site(
    "hostile-errcode",
    "failing",
    "rejected",
    query=as_json({"errcode": TEXT, "error": TEXT}, status="401 " + "y" * 5000),
)
site(
    "hostile-status",
    "failing",
    "http_error",
    query=b"HTTP/1.1 500 %sz\r\nContent-Length: 0\r\n\r\n" % (ESC * 900),
)
site(
    "hostile-keys",
    "failing",
    "keys_invalid/other_server_name",
    keys=as_json(HOSTILE_KEYS),
)
site("deep-keys", "failing", "keys_invalid/not_json", keys=DEEP_LIST)
site("deep-version", "degraded", "invalid_response/not_json", version=DEEP_LIST)
site(
    "endless-body",
    "degraded",
    "invalid_response/body_too_large",
    version=ENDLESS_LIST,
)
site(
    "endless-headers",
    "degraded",
    "invalid_response",
    version=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", b"HTTP/1.1 200 OK\r\n"),
)
site("endless-keys", "failing", "keys_invalid", keys=ENDLESS_LIST)
site(
    "slow-version",
    "degraded",
    "response_timeout",
    version=repeat(b"x", BEGUN_LIST, every_s=1),
)
site(
    "slow-query",
    "failing",
    "response_timeout",
    query=repeat(b"x", b"HTTP/1.1 404 N\r\nX: ", every_s=1),
)


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


def unsigned(name: str) -> bytes:
    content = Identity(name).server_keys()
    del content["signatures"]
    return as_json(content)


def with_old(old: object) -> Callable[[str], bytes]:
    return lambda name: keys(name, old_verify_keys=old)


def with_second(key: object) -> Callable[[str], bytes]:
    """Return what makes keys of which the second cannot be read."""

    def make(name: str) -> bytes:
        good = Identity(name).server_keys()["verify_keys"]
        return keys(name, verify_keys={**good, "ed25519:z": key})

    return make


YESTERDAY = int(time.time() * 1000) - 86_400_000

site("keys-404", "failing", "keys_missing", make_keys=lambda _: http("404 Not Found"))
site(
    "keys-500",
    "failing",
    "keys_missing",
    make_keys=lambda _: http("500 Internal Server Error"),
)
# It is not us whom they reject.
site("keys-403", "failing", "keys_missing", "HTTP 403", make_keys=lambda _: FORBIDDEN)
site(
    "keys-410",
    "failing",
    "keys_missing",
    "HTTP 410",
    make_keys=lambda _: http("410 Gone"),
)
site(
    "keys-none",
    "failing",
    "keys_missing/no_ed25519_key",
    make_keys=lambda name: keys(name, verify_keys={}),
)
site(
    "keys-odd",
    "failing",
    "keys_missing/no_ed25519_key",
    make_keys=lambda name: keys(name, verify_keys={"rsa:1": {}}),
)
site(
    "keys-signature",
    "failing",
    "keys_invalid/signature_invalid",
    make_keys=broken_signature,
)
site("keys-unsigned", "failing", "keys_invalid/not_signed", make_keys=unsigned)
site(
    "keys-of-another",
    "failing",
    "keys_invalid/other_server_name",
    "other.example",
    make_keys=lambda _: keys("other.example"),
)
site(
    "keys-no-date",
    "failing",
    "keys_invalid/valid_until_missing",
    make_keys=lambda name: keys(name, valid_until_ts="soon"),
)
site("keys-a-list", "failing", "keys_invalid/not_json", make_keys=lambda _: as_json([]))
site(
    "keys-expired",
    "failing",
    "keys_expired",
    make_keys=lambda name: keys(name, valid_until_ts=YESTERDAY),
)
# Of these Synapse takes none, for it cannot read one.
site(
    "old-key-bad",
    "failing",
    "keys_invalid/key_unreadable",
    make_keys=with_old({"ed25519:o": {"key": "A"}}),
)
site(
    "old-keys-a-list",
    "failing",
    "keys_invalid/old_keys_not_an_object",
    make_keys=with_old([1]),
)
site(
    "second-key-bad",
    "failing",
    "keys_invalid/key_unreadable",
    make_keys=with_second({"key": "AAAA"}),
)
site(
    "second-key-empty",
    "failing",
    "keys_invalid/key_unreadable",
    make_keys=with_second({}),
)


# Hostile files, and too many addresses.

site(
    "hostile-file",
    "failing",
    "well_known_invalid/m_server_invalid",
    file=m_server("\u001b[31mx" + "y" * 9000),
)
site(
    "hostile-location",
    "degraded",
    "well_known_unreachable/redirect_invalid",
    file=http("302 Found", b"", b"Location: " + ESC[:6] + b"z" * 9000 + b"\r\n"),
)
site(
    "endless-file",
    "degraded",
    "well_known_invalid/body_too_large",
    file=repeat(b"x" * 1000, b"HTTP/1.1 200 OK\r\n\r\n"),
)
site(
    "slow-file",
    "failing",
    "well_known_unreachable",
    file=repeat(b"x", b"HTTP/1.1 200 OK\r\n\r\n", every_s=1),
)


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
