# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: names, and the ways to a server."""

import socket
from ipaddress import ip_address

from dnslib import DNSLabel
from faults import (
    BAD_GATEWAY,
    BLOCKED,
    PAGE_NOT_FOUND,
    answering,
    at,
    delegates,
    fault,
    hole,
    m_server,
    nobody,
    placed,
    record,
    redirect,
    silent_web,
    site,
    srv,
    unanswered,
    up,
    way,
)
from faults_tls import expired
from laboratory import ZONE, Laboratory, homeserver

from synapse_federation_admin.homeserver.errors import has_route

# Where the kernel has no route to, and says so at once.
NOWHERE = "224.0.0.1"
NOWHERE_6 = "ff0e::1"

# Of the documentation's network: no host has a way there, but for one with IPv6.
NO_IPV6 = "2001:db8::1"

GONE = f"gone.{ZONE}"

# What is in order.

# Synapse has all of them as failing.
site("healthy ok", "Synapse still backs off from it")
# A web server without a well-known file.
site("not-found ok", file=PAGE_NOT_FOUND)
BY_SRV = at("target-{}", 10448, certified="{}")
way("srv ok", srv("target-{}", port=10448), BY_SRV)
way("old-srv ok", srv("target-{}", port=10448, service="_matrix"), BY_SRV)


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


OTHER = f"elsewhere.{ZONE}"
way("delegated ok", delegates(f"{OTHER}:10448"), at(OTHER, 10448))
OTHER = f"by-srv.{ZONE}"
way(
    "delegated-srv ok",
    delegates(OTHER),
    srv(f"t1.{ZONE}", port=10448, of=OTHER),
    at(f"t1.{ZONE}", 10448, certified=OTHER),
)
# Nobody knows whose fault it is that a name is not found in time.
OTHER = f"no-answer.{ZONE}"
way(
    "file-lookup degraded well_known_unreachable/web_lookup",
    up,
    delegates(redirect(f"https://{OTHER}/".encode())),
    unanswered("SERVFAIL", "A", "AAAA", of=OTHER),
    says="the DNS did not answer about no-answer",
)


@fault("redirected ok")
def _(lab: Laboratory, name: str) -> None:
    other = f"files.{ZONE}"
    up(lab, name)
    delegates(redirect(f"https://{other}/there".encode()))(lab, name)
    lab.serve(placed(lab, other), 443, {"/there": m_server(f"{name}:8448")}, other)


# Names to which nothing is sent.

for line, name in {
    "invalid failing invalid_name/name_malformed": "no server",
    "invalid-port failing invalid_name/port_invalid": f"invalid-port.{ZONE}:99999",
    "invalid-label failing invalid_name/label_empty": f"a..{ZONE}",
    "invalid-url failing invalid_name/name_is_url": f"https://{ZONE}",
    "blocked-literal failing ip_blocked/internal_name": f"{BLOCKED}:8448",
}.items():
    fault(line)(lambda _, __, name=name: name)

# DNS.

way("nxdomain failing dns_not_found/no_such_host")
way(
    "no-address failing dns_not_found/no_address",
    record("TXT", "there is something, but no address"),
    says="exists, but has no address",
)
ALIAS = "dns_not_found/dangling_alias"
way(
    f"dangling failing {ALIAS}",
    record("CNAME", GONE),
    says=f"an alias (CNAME) of {GONE}",
)
way(
    f"dangling-chain failing {ALIAS}",
    record("CNAME", f"between.{ZONE}"),
    record("CNAME", f"empty.{ZONE}", of=f"between.{ZONE}"),
    record("TXT", "no address", of=f"empty.{ZONE}"),
    says=f"an alias (CNAME) of empty.{ZONE}",
)
way(
    f"alias-circle failing {ALIAS}",
    record("CNAME", "between-{}"),
    record("CNAME", "{}", of="between-{}"),
    says=f"(CNAME) of between-alias-circle.{ZONE}",
)
way(
    f"srv-dangling failing {ALIAS}",
    srv("alias-{}"),
    record("CNAME", GONE, of="alias-{}"),
    says="Their SRV record names",
)
way("alias ok", record("CNAME", "target-{}"), at("target-{}", certified="{}"))
for label, reason, said in (
    ("servfail", "service_fails", "SERVFAIL"),
    ("silent-dns", "service_silent", "silence"),
):
    way(
        f"{label} failing dns_failed/name_servers_fail",
        unanswered(said, "A", "AAAA"),
        says="other names are answered",
    )
    # Synapse gives up then, although the address is there.
    way(
        f"srv-{label} failing dns_failed/{reason}",
        up,
        unanswered(said, "SRV", of="_matrix-fed._tcp.{}"),
        says="the host is found",
    )
NO_HOST = "failing dns_not_found/no_such_host"
way(
    f"srv-to-nowhere {NO_HOST}",
    srv(GONE),
    says=f"{GONE} does not exist. Their SRV record names {GONE} port 8448.",
)
way(
    f"file-to-nowhere {NO_HOST}",
    delegates(GONE),
    says=f"{GONE} does not exist. Their well-known file names {GONE} without",
)
LINK = f"by-links.{ZONE}"
way(
    f"links-to-nowhere {NO_HOST}",
    delegates(LINK),
    srv(GONE, of=LINK),
    says=f"file names {LINK}, and the SRV record of that names {GONE} port 8448.",
)

# Where nobody listens, and how requests come there.

# A homeserver at port 443, which would have to be said.
way(
    "file-without-port failing connection_refused",
    delegates("matrix-{}"),
    at("matrix-{}", 443),
    says=f"names matrix-file-without-port.{ZONE} without a port, which means 8448.",
)


@fault(
    "file-twice failing connection_refused",
    "names once.lab.example, and that delegates on to twice.lab.example port 443",
)
def _(lab: Laboratory, name: str) -> None:
    """The name to which it delegates delegates on; nobody follows that."""
    delegates(f"once.{ZONE}")(lab, name)
    delegates(f"twice.{ZONE}:443")(lab, f"once.{ZONE}")
    at(f"twice.{ZONE}", 443)(lab, name)


way(
    "srv-wrong-port failing connection_refused",
    up,
    srv("{}", port=9000),
    says="Their SRV record names",
)


@fault("wrong-port failing connection_refused", "itself has port 9000")
def _(lab: Laboratory, name: str) -> str:
    up(lab, name)
    return f"{name}:9000"


# A host that has IPv6 would send something there.
if not has_route(socket.AF_INET6):
    # A server with IPv6, too, and without a web server.
    way("ipv6-without-web ok", up, record("AAAA", NO_IPV6))
    way(
        "ipv6-only failing unreachable/no_ipv6",
        record("AAAA", NO_IPV6),
        says="and this host has no IPv6",
    )

way("srv-refused failing unreachable/no_service", srv("."))
# The old record, which is not asked for then, still names a server.
way(
    "srv-refused-anew failing unreachable/no_service",
    srv("old-{}", service="_matrix"),
    at("old-{}", certified="{}"),
    srv("."),
    says="there is none. The last",
)
# Twisted does not connect to a host of such a name.
way(
    "srv-underscore failing dns_not_found/no_host_name",
    srv(f"my_host.{ZONE}"),
    at(f"my_host.{ZONE}", certified="{}"),
    says="my_host",
)
# A host name that would be a line of the log.
FORGED = DNSLabel([b"x\n2026-01-01 00:00:00,000 - root - 1 - CRITICAL - FAKE"])
way("srv-forged failing dns_not_found/no_host_name", srv(FORGED))
# Many servers that do not react: none is tried when the diagnosis is over.
HOLES = [f"hole{number}.{ZONE}" for number in range(30)]
way("srv-blackholes failing connection_timeout", srv(*HOLES), *map(hole, HOLES))
GOOD = at("good-{}", certified="{}")
TWO = (srv("good-{}", "bad-{}"), GOOD)
way("srv-one-bad degraded connection_refused", *TWO, nobody("bad-{}"))
way("srv-one-gone degraded dns_not_found/no_such_host", *TWO)
# Synapse goes to the first that accepts a connection, and stays with it.
way(
    "srv-first-expired failing tls_expired/own_certificate",
    srv("bad-{}", "good-{}"),
    at("bad-{}", certify=expired),
    GOOD,
    says="Another address of theirs works",
)

# Blocked addresses.

way(
    "blocked-by-delegation failing ip_blocked/internal_address",
    delegates(f"{BLOCKED}:8448"),
)
# Synapse then does not use the good one either.
way("blocked-one failing ip_blocked/some_internal", up, nobody("{}", BLOCKED))
way(
    "blocked-redirect failing well_known_unreachable/leads_to_internal",
    delegates(redirect(f"https://{BLOCKED}/there".encode())),
)

# Connections: addresses where nobody answers, alone and beside one in order.

way("refused failing connection_refused", placed)
way("dropped failing connection_timeout", hole())
# Whether this host has IPv4 at all is not the test's.
way("nowhere failing unreachable", nobody("{}", NOWHERE))
way("blocked failing ip_blocked", nobody("{}", BLOCKED))
way("one-refused degraded connection_refused", up, placed)
# An address that does not react, at port 443 either.
way("one-hole degraded connection_timeout", up, hole(), silent_web)
way("hole-first degraded connection_timeout", hole(), silent_web, up)
# One address where nothing is, and one to which this host has no way.
way("dual-stack-dead failing connection_refused", placed, record("AAAA", NOWHERE_6))
way("only-ipv6 failing unreachable", record("AAAA", NOWHERE_6))
way("ipv6-refused degraded connection_refused", up, record("AAAA", "::1"))

# Two addresses, of which one is in order, in both orders.
for line, bad in (
    ("expired degraded tls_expired/own_certificate", at(certify=expired)),
    ("web-server degraded http_error", answering(BAD_GATEWAY)),
):
    label, rest = line.split(" ", 1)
    way(f"one-{label} {rest}", up, bad)
    way(f"one-{label}-first {rest}", bad, up)
way(
    "srv-one-hole degraded connection_timeout",
    srv("hole-{}", "good-{}"),
    hole("hole-{}"),
    GOOD,
)
way("two-refused failing connection_refused", placed, placed, says="and 1 more")


@fault("many-addresses failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Ten thousand: ten hosts with a thousand addresses each, where nothing is."""
    hosts = [f"many{number}.{ZONE}" for number in range(10)]
    srv(*hosts)(lab, name)
    for number, host in enumerate(hosts):
        first = ip_address("127.90.0.1") + 1000 * number
        lab.dns.add(host, "A", *(str(first + n) for n in range(1000)))
        lab.dns.prepare(host, "A")
