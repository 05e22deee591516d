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
    UNRECOGNIZED,
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

from synapse_federation_admin.homeserver.errors import has_route
from synapse_federation_admin.playground.events import Identity

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
BLOCKED = "127.9.0.1"

# Where the kernel has no route to, and says so at once.
NOWHERE = "224.0.0.1"
NOWHERE_6 = "ff0e::1"

# Of the documentation's network: no host has a way there, but for one with IPv6.
NO_IPV6 = "2001:db8::1"

BAD_GATEWAY = http("502 Bad Gateway", b"<html>", HTML)
NO_CONTENT = http("502 Bad Gateway", b"")
UNAUTHORIZED = as_json({"errcode": "M_UNAUTHORIZED"}, status="401 No")
PAGE = http("200 OK", b"<html>", HTML)
PAGE_NOT_FOUND = http("404 Not Found", b"<html>", HTML)

Build = Callable[[Laboratory, str], str | None]
Certify = Callable[[Laboratory, str], ssl.SSLContext]


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


def fault(line: str, says: str = "") -> Callable[[Build], Build]:
    """Add a fault to the catalogue: `label verdict`, and `kind` or `kind/reason`."""
    label, verdict, *kind = line.split()

    def add(build: Build) -> Build:
        CATALOGUE.append(Fault(label, verdict, kind[0] if kind else None, build, says))
        return build

    return add


def placed(lab: Laboratory, name: str, address: str = "") -> str:
    """Give a name an address more: a new one, or a given one."""
    address = address or lab.address()
    lab.dns.add(name, "A", address)
    return address


def up(lab: Laboratory, name: str, **answers: Answer) -> str:
    """Have a homeserver in order, but for some answers, at port 8448."""
    address = placed(lab, name)
    lab.serve(address, 8448, homeserver(name, **answers), name)
    return address


def serving(line: str, answer: Answer, *, plain: bool = False) -> None:
    """Add one that answers the same to everything at port 8448, with TLS or without."""

    @fault(line)
    def _(lab: Laboratory, name: str) -> None:
        lab.serve(placed(lab, name), 8448, answer, name, plain=plain)


def named(line: str, given: str) -> None:
    """Add a name to which nothing is sent."""
    fault(line)(lambda _, __: given)


def srv(lab: Laboratory, name: str, *hosts: Any, port: int = 8448) -> None:
    """Give a name SRV records; the first host is used first."""
    records = [(number, 0, port, host) for number, host in enumerate(hosts)]
    lab.dns.add(f"_matrix-fed._tcp.{name}", "SRV", *records)


def by_srv(line: str, *, service: str = "_matrix-fed", certified: str = "") -> None:
    """Add one to which SRV records lead, at another host."""

    @fault(line)
    def _(lab: Laboratory, name: str) -> None:
        host = f"target-{name}"
        lab.dns.add(f"{service}._tcp.{name}", "SRV", (0, 0, 10448, host))
        answers = homeserver(name)
        lab.serve(placed(lab, host), 10448, answers, certified or name)


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


def wants_certificate(lab: Laboratory, name: str) -> ssl.SSLContext:
    made = lab.certificates.valid(name)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(lab.certificates.path)
    return made


def reset(connection: ssl.SSLSocket) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def delegates(lab: Laboratory, name: str, file: Answer, address: str = "") -> str:
    """Serve a well-known file at port 443, of a given address or a new one."""
    address = address or placed(lab, name)
    lab.serve(address, 443, {WELL_KNOWN: file}, name)
    return address


def site(
    line: str,
    says: str = "",
    *,
    file: Answer | None = None,
    is_up: bool = True,
    certify: Certify | None = None,
    make_keys: Callable[[str], bytes] | None = None,
    **answers: Answer,
) -> None:
    """Add a server that is in order but for what is given.

    Args:
        line: As of `fault`.
        says: As of a fault.
        file: Its well-known file; by default nothing listens there.
        is_up: Whether a homeserver answers at port 8448.
        certify: Makes its certificate for its name.
        make_keys: Makes its keys for its name.
        answers: Other answers of it.
    """

    @fault(line, says)
    def _(lab: Laboratory, name: str) -> None:
        address = placed(lab, name)
        if is_up:
            made = certify(lab, name) if certify else None
            given = {**answers, **({"keys": make_keys(name)} if make_keys else {})}
            answering = homeserver(name, **given)
            lab.serve(address, 8448, answering, name, context=made)
        if file is not None:
            delegates(lab, name, file, address)


def m_server(to: object) -> bytes:
    return as_json({"m.server": to})


def redirect(to: bytes) -> bytes:
    return http("302 Found", b"", b"Location: " + to + b"\r\n")


# What is in order.

# Synapse has all of them as failing.
site("healthy ok", "Synapse still backs off from it")
# A web server without a well-known file.
site("not-found ok", file=PAGE_NOT_FOUND)
by_srv("srv ok")
by_srv("old-srv ok", service="_matrix")


@fault("literal ok")
def _(lab: Laboratory, name: str) -> str:
    address = lab.address()
    name = f"{address}:18448"
    lab.serve(address, 18448, homeserver(name), address)
    return name


@fault("port ok")
def _(lab: Laboratory, name: str) -> str:
    lab.serve(placed(lab, name), 9448, homeserver(f"{name}:9448"), name)
    return f"{name}:9448"


@fault("delegated ok")
def _(lab: Laboratory, name: str) -> None:
    other = f"elsewhere.{ZONE}"
    delegates(lab, name, m_server(f"{other}:10448"))
    lab.serve(placed(lab, other), 10448, homeserver(name), other)


@fault("delegated-srv ok")
def _(lab: Laboratory, name: str) -> None:
    other, host = f"by-srv.{ZONE}", f"t1.{ZONE}"
    delegates(lab, name, m_server(other))
    srv(lab, other, host, port=10448)
    lab.serve(placed(lab, host), 10448, homeserver(name), other)


@fault(
    "file-lookup degraded well_known_unreachable/web_lookup",
    "the DNS did not answer about no-answer",
)
def _(lab: Laboratory, name: str) -> None:
    """Nobody knows whose fault it is that a name is not found in time."""
    other = f"no-answer.{ZONE}"
    delegates(lab, name, redirect(f"https://{other}/".encode()), up(lab, name))
    lab.dns.records.update({(other, k): "SERVFAIL" for k in ("A", "AAAA")})


@fault("redirected ok")
def _(lab: Laboratory, name: str) -> None:
    other = f"files.{ZONE}"
    delegates(lab, name, redirect(f"https://{other}/there".encode()), up(lab, name))
    lab.serve(placed(lab, other), 443, {"/there": m_server(f"{name}:8448")}, other)


# Names.

named("invalid failing invalid_name/name_malformed", "no server")
named("invalid-port failing invalid_name/port_invalid", f"invalid-port.{ZONE}:99999")
named("invalid-label failing invalid_name/label_empty", f"a..{ZONE}")
named("invalid-url failing invalid_name/name_is_url", f"https://{ZONE}")
named("blocked-literal failing ip_blocked/internal_name", f"{BLOCKED}:8448")


# DNS.

fault("nxdomain failing dns_not_found/no_such_host")(lambda _, __: None)


@fault("no-address failing dns_not_found/no_address", "exists, but has no address")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "TXT", "there is something, but no address")


ALIAS = "dns_not_found/dangling_alias"


@fault(f"dangling failing {ALIAS}", f"an alias (CNAME) of gone.{ZONE}")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "CNAME", f"gone.{ZONE}")


@fault(f"dangling-chain failing {ALIAS}", f"an alias (CNAME) of empty.{ZONE}")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "CNAME", f"between.{ZONE}")
    lab.dns.add(f"between.{ZONE}", "CNAME", f"empty.{ZONE}")
    lab.dns.add(f"empty.{ZONE}", "TXT", "no address")


@fault(f"alias-circle failing {ALIAS}", f"(CNAME) of between-alias-circle.{ZONE}")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "CNAME", f"between-{name}")
    lab.dns.add(f"between-{name}", "CNAME", name)


@fault(f"srv-dangling failing {ALIAS}", "Their SRV record names")
def _(lab: Laboratory, name: str) -> None:
    srv(lab, name, f"alias-{name}")
    lab.dns.add(f"alias-{name}", "CNAME", f"gone.{ZONE}")


@fault("alias ok")
def _(lab: Laboratory, name: str) -> None:
    host = f"target-{name}"
    lab.dns.add(name, "CNAME", host)
    lab.serve(placed(lab, host), 8448, homeserver(name), name)


for label, reason, said in (
    ("servfail", "service_fails", "SERVFAIL"),
    ("silent-dns", "service_silent", "silence"),
):

    @fault(f"{label} failing dns_failed/name_servers_fail", "other names are answered")
    def _(lab: Laboratory, name: str, said: str = said) -> None:
        lab.dns.records.update({(name, k): said for k in ("A", "AAAA")})

    @fault(f"srv-{label} failing dns_failed/{reason}", "the host is found")
    def _(lab: Laboratory, name: str, said: str = said) -> None:
        """Synapse gives up then, although the address is there."""
        up(lab, name)
        lab.dns.records[f"_matrix-fed._tcp.{name}", "SRV"] = said


@fault(
    "srv-to-nowhere failing dns_not_found/no_such_host",
    f"gone.{ZONE} does not exist. Their SRV record names gone.{ZONE} port 8448.",
)
def _(lab: Laboratory, name: str) -> None:
    srv(lab, name, f"gone.{ZONE}")


@fault(
    "file-to-nowhere failing dns_not_found/no_such_host",
    f"gone.{ZONE} does not exist. Their well-known file names gone.{ZONE} without",
)
def _(lab: Laboratory, name: str) -> None:
    delegates(lab, name, m_server(f"gone.{ZONE}"))


@fault(
    "links-to-nowhere failing dns_not_found/no_such_host",
    f"Their well-known file names by-links.{ZONE}, and the SRV record of that names "
    f"gone.{ZONE} port 8448.",
)
def _(lab: Laboratory, name: str) -> None:
    delegates(lab, name, m_server(f"by-links.{ZONE}"))
    srv(lab, f"by-links.{ZONE}", f"gone.{ZONE}")


# Where nobody listens, and how requests come there.


@fault(
    "file-without-port failing connection_refused",
    f"names matrix-file-without-port.{ZONE} without a port, which means 8448.",
)
def _(lab: Laboratory, name: str) -> None:
    """A homeserver at port 443, which would have to be said."""
    host = f"matrix-{name}"
    delegates(lab, name, m_server(host))
    lab.serve(placed(lab, host), 443, homeserver(name), host)


@fault(
    "file-twice failing connection_refused",
    "names once.lab.example, and that delegates on to twice.lab.example port 443",
)
def _(lab: Laboratory, name: str) -> None:
    """The name to which it delegates delegates on; nobody follows that."""
    delegates(lab, name, m_server(f"once.{ZONE}"))
    delegates(lab, f"once.{ZONE}", m_server(f"twice.{ZONE}:443"))
    lab.serve(placed(lab, f"twice.{ZONE}"), 443, homeserver(name), f"twice.{ZONE}")


@fault("srv-wrong-port failing connection_refused", "Their SRV record names")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    srv(lab, name, name, port=9000)


@fault("wrong-port failing connection_refused", "itself has port 9000")
def _(lab: Laboratory, name: str) -> str:
    up(lab, name)
    return f"{name}:9000"


# A host that has IPv6 would send something there.
if not has_route(socket.AF_INET6):

    @fault("ipv6-without-web ok")
    def _(lab: Laboratory, name: str) -> None:
        """A server with IPv6, too, and without a web server."""
        up(lab, name)
        lab.dns.add(name, "AAAA", NO_IPV6)

    @fault("ipv6-only failing unreachable/no_ipv6", "and this host has no IPv6")
    def _(lab: Laboratory, name: str) -> None:
        lab.dns.add(name, "AAAA", NO_IPV6)


@fault("srv-refused failing unreachable/no_service")
def _(lab: Laboratory, name: str) -> None:
    srv(lab, name, ".")


@fault("srv-refused-anew failing unreachable/no_service", "there is none. The last")
def _(lab: Laboratory, name: str) -> None:
    """The old record, which is not asked for then, still names a server."""
    lab.dns.add(f"_matrix._tcp.{name}", "SRV", (0, 0, 8448, f"old-{name}"))
    lab.serve(placed(lab, f"old-{name}"), 8448, homeserver(name), name)
    srv(lab, name, ".")


@fault("srv-underscore failing dns_not_found/no_host_name", "my_host")
def _(lab: Laboratory, name: str) -> None:
    """Twisted does not connect to a host of such a name."""
    srv(lab, name, f"my_host.{ZONE}")
    lab.serve(placed(lab, f"my_host.{ZONE}"), 8448, homeserver(name), name)


@fault("srv-forged failing dns_not_found/no_host_name")
def _(lab: Laboratory, name: str) -> None:
    """A host name that would be a line of the log."""
    forged = b"x\n2026-01-01 00:00:00,000 - root - 1 - CRITICAL - FAKE"
    srv(lab, name, DNSLabel([forged]))


@fault("srv-blackholes failing connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    """Many servers that do not react: none is tried when the diagnosis is over."""
    hosts = [f"hole{number}.{ZONE}" for number in range(30)]
    srv(lab, name, *hosts)
    for host in hosts:
        placed(lab, host, lab.hole())


for line in (
    "srv-one-bad degraded connection_refused",
    "srv-one-gone degraded dns_not_found/no_such_host",
):

    @fault(line)
    def _(lab: Laboratory, name: str) -> None:
        good, bad = f"good-{name}", f"bad-{name}"
        srv(lab, name, good, bad)
        lab.serve(placed(lab, good), 8448, homeserver(name), name)
        if "gone" not in name:
            placed(lab, bad)


@fault(
    "srv-first-expired failing tls_expired/own_certificate",
    "Another address of theirs works",
)
def _(lab: Laboratory, name: str) -> None:
    """Synapse goes to the first that accepts a connection, and stays with it."""
    bad, good = f"bad-{name}", f"good-{name}"
    srv(lab, name, bad, good)
    lab.serve(placed(lab, bad), 8448, homeserver(name), context=expired(lab, name))
    lab.serve(placed(lab, good), 8448, homeserver(name), name)


# Blocked addresses.


@fault("blocked-by-delegation failing ip_blocked/internal_address")
def _(lab: Laboratory, name: str) -> None:
    delegates(lab, name, m_server(f"{BLOCKED}:8448"))


@fault("blocked-one failing ip_blocked/some_internal")
def _(lab: Laboratory, name: str) -> None:
    """Synapse then does not use the good one either."""
    up(lab, name)
    placed(lab, name, BLOCKED)


@fault("blocked-redirect failing well_known_unreachable/leads_to_internal")
def _(lab: Laboratory, name: str) -> None:
    delegates(lab, name, redirect(f"https://{BLOCKED}/there".encode()))


# Connections: addresses where nobody answers, alone and beside one in order.

for line, find in (
    ("refused failing connection_refused", Laboratory.address),
    ("dropped failing connection_timeout", Laboratory.hole),
    # Whether this host has IPv4 at all is not the test's.
    ("nowhere failing unreachable", lambda _: NOWHERE),
    ("blocked failing ip_blocked", lambda _: BLOCKED),
):

    @fault(line)
    def _(lab: Laboratory, name: str, find: Any = find) -> None:
        placed(lab, name, find(lab))


@fault("one-refused degraded connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    placed(lab, name)


@fault("one-hole degraded connection_timeout")
def _(lab: Laboratory, name: str) -> None:
    """An address that does not react, at port 443 either."""
    up(lab, name)
    hole = lab.hole()
    lab.hole(hole, 443)
    placed(lab, name, hole)


@fault("dual-stack-dead failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """One address where nothing is, and one to which this host has no way."""
    placed(lab, name)
    lab.dns.add(name, "AAAA", NOWHERE_6)


@fault("only-ipv6 failing unreachable")
def _(lab: Laboratory, name: str) -> None:
    lab.dns.add(name, "AAAA", NOWHERE_6)


@fault("ipv6-refused degraded connection_refused")
def _(lab: Laboratory, name: str) -> None:
    up(lab, name)
    lab.dns.add(name, "AAAA", "::1")


def bad_certificate(lab: Laboratory, name: str) -> None:
    made = expired(lab, name)
    lab.serve(placed(lab, name), 8448, homeserver(name), context=made)


def bad_web_server(lab: Laboratory, name: str) -> None:
    lab.serve(placed(lab, name), 8448, BAD_GATEWAY, name)


# Two addresses, of which one is in order, in both orders.
for line, builds in (
    ("one-expired degraded tls_expired/own_certificate", (up, bad_certificate)),
    ("one-expired-first degraded tls_expired/own_certificate", (bad_certificate, up)),
    ("one-web-server degraded http_error", (up, bad_web_server)),
    ("one-web-server-first degraded http_error", (bad_web_server, up)),
):

    @fault(line)
    def _(lab: Laboratory, name: str, builds: Any = builds) -> None:
        for build in builds:
            build(lab, name)


# TLS.

EXPIRED = "tls_expired/own_certificate"
site(f"expired failing {EXPIRED}", "expired 3 days ago", certify=expired)
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
    certify=wants_certificate,
)
serving("resets failing tls_failed/closed_in_handshake", reset, plain=True)
serving("no-tls failing tls_failed", http("400 Bad Request"), plain=True)
serving("closes-handshake failing tls_failed/closed_in_handshake", close, plain=True)
serving("hangs-handshake failing response_timeout/in_handshake", hang, plain=True)
# The certificate has to be for the server name, not for where SRV leads to.
by_srv(
    "srv-target-name failing tls_wrong_name",
    certified=f"target-srv-target-name.{ZONE}",
)


@fault("two-faults failing tls_expired/own_certificate")
def _(lab: Laboratory, name: str) -> None:
    placed(lab, name)
    bad_certificate(lab, name)


# The well-known file, with and without a homeserver where requests go without it.

INVALID, UNREACHABLE = "well_known_invalid", "well_known_unreachable"
FILES: dict[str, Answer] = {
    f"no-json {INVALID}/not_json": http("200 OK", b"{"),
    f"byte-order-mark {INVALID}/byte_order_mark": http(
        "200 OK", b'\xef\xbb\xbf{"m.server": "nosuch.example:8448"}'
    ),
    f"utf-16 {INVALID}/utf_16": http(
        "200 OK", '{"m.server": "nosuch.example:8448"}'.encode("utf-16")
    ),
    f"empty-file {INVALID}/body_empty": http("200 OK", b""),
    f"empty-name {INVALID}/m_server_empty": m_server(""),
    f"no-m-server {INVALID}/m_server_missing": as_json({"server": "a"}),
    f"number {INVALID}/m_server_not_a_string": m_server(8448),
    f"umlaut {INVALID}/m_server_invalid": m_server("m\u00fcller.example"),
    f"large-file {INVALID}/body_too_large": m_server("x" * 60_000),
    f"bad-gateway {UNREACHABLE}": NO_CONTENT,
    f"redirect-away {UNREACHABLE}": redirect(b"https://nosuch.example/"),
    f"redirect-loop {UNREACHABLE}": redirect(WELL_KNOWN.encode()),
    f"redirect-nowhere {UNREACHABLE}/redirect_without_target": http("302 Found", b""),
    f"file-closes {UNREACHABLE}/web_no_answer": close,
}
for line, file in FILES.items():
    label, kind = line.split()
    site(f"{label} failing {kind}", file=file, is_up=False)
    if label in ("no-json", "bad-gateway"):
        site(f"{label}-works degraded {kind}", file=file)

# These are used as they are, or waited for.
site(f"url failing {INVALID}", file=m_server("https://a.example"))
site(f"path failing {INVALID}", file=m_server("a.example/b"))
# Also if Synapse does not cache it.
UNCACHED = as_json({"m.server": "https://a.example/"}, b"Cache-Control: no-store\r\n")
site(f"url-uncached failing {INVALID}", file=UNCACHED)
site(f"hanging-file failing {UNREACHABLE}", file=hang)
# A web site that answers with a page, whatever it is asked for.
site("web-page ok", file=PAGE)
site(
    f"web-page-only failing {INVALID}/web_page",
    "(127.",
    file=PAGE,
    is_up=False,
)


@fault(f"web-expired failing {UNREACHABLE}/web_certificate", "expired 3 days ago")
def _(lab: Laboratory, name: str) -> None:
    """Two facts: the file cannot be fetched, and port 8448 is closed."""
    made = expired(lab, name)
    lab.serve(placed(lab, name), 443, {WELL_KNOWN: m_server("a")}, context=made)


for label, to in (("path", "{}/matrix"), ("url", "https://{}"), ("slash", "{}/")):

    @fault(f"{label}-of-another failing {INVALID}/m_server_invalid")
    def _(lab: Laboratory, name: str, to: str = to) -> None:
        """What it means is there."""
        host = f"other-{name}"
        delegates(lab, name, m_server(to.format(host)))
        lab.serve(placed(lab, host), 8448, homeserver(name), host)


@fault("web-certificate ok")
def _(lab: Laboratory, name: str) -> None:
    """A web site of the same name whose certificate is not for it."""
    lab.serve(up(lab, name), 443, {}, "other.example")


@fault("file-hole failing connection_refused", "no answer from file-hole.lab.example")
def _(lab: Laboratory, name: str) -> None:
    """Two facts again; it may be that the server is down."""
    lab.hole(placed(lab, name), 443)


@fault("web-page-and-srv failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Who has SRV records has no need of the file."""
    delegates(lab, name, PAGE)
    srv(lab, name, name)


@fault(
    "no-file failing connection_refused/may_lack_delegation",
    "is not served: HTTP 404",
)
def _(lab: Laboratory, name: str) -> None:
    """A homeserver at port 443 to which nothing leads."""
    lab.serve(placed(lab, name), 443, homeserver(name), name)


@fault(f"dropped-file degraded {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.hole(up(lab, name), 443)


@fault("slower-file ok")
def _(lab: Laboratory, name: str) -> None:
    """Synapse waits for it, and so does the diagnosis."""

    def answer(connection: ssl.SSLSocket) -> None:
        time.sleep(2)
        connection.sendall(m_server(f"{name}:8448"))

    delegates(lab, name, answer, up(lab, name))


@fault(f"expired-file failing {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.serve(placed(lab, name), 443, {}, context=expired(lab, name))


@fault("delegated-refused failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """SRV records, here of a server that is up, do not count beside delegation."""
    delegates(lab, name, m_server(f"{name}:9"), up(lab, name))
    srv(lab, name, name)


@fault("delegated-wrong-name failing tls_wrong_name")
def _(lab: Laboratory, name: str) -> None:
    """The certificate has to be for the delegated name."""
    other = f"other-name.{ZONE}"
    delegates(lab, name, m_server(f"{other}:8448"), up(lab, name))
    placed(lab, other, lab.dns.records[name, "A"][0])


# Answers, the same to everything.

FORBIDDEN = http("403 Forbidden")
LIMITED = http("429 Too Many Requests")
SERVER_ERROR = http("500 Internal Server Error")
FORBIDDEN_BY_MATRIX = as_json({"errcode": "M_FORBIDDEN"}, status="403 Forbidden")
BEGUN_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVERYWHERE: dict[str, Answer] = {
    "404 http_error": PAGE_NOT_FOUND,
    "410 gone": http("410 Gone", b""),
    "413 too_large": http("413 Payload Too Large"),
    "list invalid_response": as_json([1]),
    "no-type invalid_response": http("200 OK", b"{}", b""),
    "odd-redirect http_error": redirect(b"\x1b[3\xff"),
    "broken-json invalid_response": http("200 OK", b"{"),
    "closes invalid_response": close,
    "hangs response_timeout": hang,
}
for line, answer in EVERYWHERE.items():
    label, kind = line.split()
    serving(f"all-{label} failing {kind}", answer)


# Answers to one request.

BEGUN_LIST = BEGUN_JSON + b"\r\n["
ENDLESS_LIST = repeat(b'"x", ' * 1000, BEGUN_LIST)
DEEP_LIST = http("200 OK", b"[" * 50_000)
BEGUN = b"HTTP/1.1 200 OK\r\n"
ESC = b"\x1b[31m\xff\r\t"
TEXT = "\u001b[31m\n2026 forged\u2028" + "x" * 20_000
FOLDED = b"Content-Type: a" + b"\r\n \x1b[31m\x07b" * 5000 + b"\r\n"
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
NOT_ROUTED = "http_error/signed_not_routed"

site("send-odd ok", send=as_json({"errcode": "M_UNKNOWN", "error": "?"}))
site("shut-out failing not_allowed")
site("rejects failing rejected", send=UNAUTHORIZED)
site("shuts-us-out failing rejected", send=FORBIDDEN_BY_MATRIX)
# It may be waiting for our key.
site("send-hangs failing response_timeout/signed_unanswered", send=hang)
site("keys-limited failing rate_limited/keys_request", keys=LIMITED)
site("keys-close failing keys_missing/closed", keys=close)
site("send-500 failing http_error/web_server_fails", "only /_matrix", send=SERVER_ERROR)
site(f"send-html failing {NOT_ROUTED}", send=PAGE_NOT_FOUND)
site("send-limited failing rate_limited", send=LIMITED)
site(f"send-unknown failing {NOT_ROUTED}", send=UNRECOGNIZED)
site(
    "send-error failing http_error/homeserver_fails",
    "HTTP 500 M_UNKNOWN",
    send=as_json({"errcode": "M_UNKNOWN"}, status="500 No"),
)
site("no-version degraded http_error/version_only", version=http("404 Not Found"))
site("version-shut degraded rejected/forbidden_by_proxy", version=FORBIDDEN)
# Clocks.
site("fast-clock degraded other/clock", "ahead of ours", version=FAST)
site(
    "slow-clock-rejects failing rejected/clock",
    "behind ours",
    version=SLOW,
    send=UNAUTHORIZED,
)
# Hostile servers.
site("hostile-version ok", version=as_json({"server": {"name": TEXT, "version": TEXT}}))
site(
    "hostile-type degraded invalid_response/wrong_content_type",
    version=http("200 OK", b"{}", b"Content-Type: %s\r\n" % ESC),
)
site(
    "folded-type failing keys_invalid/wrong_content_type",
    keys=http("200 OK", b"{}", FOLDED),
)
site(
    "garbage-status failing invalid_response",
    send=b"\x1b[31m\x07" + b"g" * 20_000 + b"\r\n\r\n",
)
site(
    "hostile-errcode failing rejected",
    send=as_json({"errcode": TEXT, "error": TEXT}, status="401 " + "y" * 5000),
)
site(
    "hostile-status failing http_error",
    send=b"HTTP/1.1 500 %sz\r\nContent-Length: 0\r\n\r\n" % (ESC * 900),
)
site("hostile-keys failing keys_invalid/other_server_name", keys=as_json(HOSTILE_KEYS))
site("deep-keys failing keys_invalid/not_json", keys=DEEP_LIST)
site("deep-version degraded invalid_response/not_json", version=DEEP_LIST)
site("endless-body degraded invalid_response/body_too_large", version=ENDLESS_LIST)
site(
    "endless-headers degraded response_timeout/endless",
    version=repeat(b"X-A: " + b"x" * 4096 + b"\r\n", BEGUN),
)
site("endless-keys failing keys_invalid", keys=ENDLESS_LIST)
site(
    "slow-version degraded response_timeout",
    version=repeat(b"x", BEGUN_LIST, every_s=1),
)
site(
    "slow-send failing response_timeout",
    send=repeat(b"x", b"HTTP/1.1 404 N\r\nX: ", every_s=1),
)


@fault(f"late-hostile-file failing {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    """The file hangs at first, and then is hostile to whoever logs it."""
    asked: list[int] = []

    def answer(connection: ssl.SSLSocket) -> None:
        asked.append(1)
        if len(asked) == 1:
            hang(connection)
        else:
            connection.sendall(as_json({"m.server": "x" * 300, "x": TEXT, "\xfc": 1}))

    delegates(lab, name, answer, up(lab, name))


# Keys.


def keys(**changes: object) -> Callable[[str], bytes]:
    """Return what makes an answer whose signature is right, but for what is wrong."""

    def make(name: str) -> bytes:
        identity = Identity(str(changes.get("server_name", name)))
        content = identity.server_keys()
        del content["signatures"]
        return as_json(identity.signed({**content, **changes}))

    return make


def broken_signature(name: str) -> bytes:
    content = Identity(name).server_keys()
    content["valid_until_ts"] += 1
    return as_json(content)


def unsigned(name: str) -> bytes:
    content = Identity(name).server_keys()
    del content["signatures"]
    return as_json(content)


def second_unreadable(name: str) -> bytes:
    good = Identity(name).server_keys()["verify_keys"]
    return keys(verify_keys={**good, "ed25519:z": {"key": "AAAA"}})(name)


YESTERDAY = int(time.time() * 1000) - 86_400_000
MISSING, UNREADABLE = "keys_missing", "keys_invalid/key_unreadable"

# It is not us whom they reject.
site(f"keys-403 failing {MISSING}", "HTTP 403", keys=FORBIDDEN)
site(
    f"keys-odd failing {MISSING}/no_ed25519_key",
    make_keys=keys(verify_keys={"rsa:1": {}}),
)
site(
    "keys-signature failing keys_invalid/signature_invalid", make_keys=broken_signature
)
site("keys-unsigned failing keys_invalid/not_signed", make_keys=unsigned)
site(
    "keys-of-another failing keys_invalid/other_server_name",
    "other.example",
    make_keys=keys(server_name="other.example"),
)
site(
    "keys-no-date failing keys_invalid/valid_until_missing",
    make_keys=keys(valid_until_ts="soon"),
)
site("keys-a-list failing keys_invalid/not_json", keys=as_json([]))
site("keys-expired failing keys_expired", make_keys=keys(valid_until_ts=YESTERDAY))
# Of these Synapse takes none, for it cannot read one.
site(
    f"old-key-bad failing {UNREADABLE}",
    make_keys=keys(old_verify_keys={"ed25519:o": {"key": "A"}}),
)
site(
    "old-keys-a-list failing keys_invalid/old_keys_not_an_object",
    make_keys=keys(old_verify_keys=[1]),
)
site(f"second-key-bad failing {UNREADABLE}", make_keys=second_unreadable)


# Hostile files, and too many addresses.

site(
    f"hostile-file failing {INVALID}/m_server_invalid",
    file=m_server("\u001b[31mx" + "y" * 9000),
)
site(
    f"hostile-location degraded {UNREACHABLE}/redirect_invalid",
    file=redirect(ESC[:6] + b"z" * 9000),
)
site(
    f"endless-file degraded {INVALID}/body_too_large",
    file=repeat(b"x" * 1000, BEGUN + b"\r\n"),
)
site(
    f"slow-file failing {UNREACHABLE}",
    file=repeat(b"x", BEGUN + b"\r\n", every_s=1),
)


@fault(f"endless-redirects degraded {UNREACHABLE}")
def _(lab: Laboratory, name: str) -> None:
    lab.serve(up(lab, name), 443, redirect(b"/x" + b"x" * 2000), name)


@fault("many-addresses failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Ten thousand: ten hosts with a thousand addresses each, where nothing is."""
    hosts = [f"many{number}.{ZONE}" for number in range(10)]
    srv(lab, name, *hosts)
    for number, host in enumerate(hosts):
        first = ip_address("127.90.0.1") + 1000 * number
        lab.dns.add(host, "A", *(str(first + n) for n in range(1000)))
        lab.dns.prepare(host, "A")
