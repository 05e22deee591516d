# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults: names, and the ways to a server."""

import socket
from ipaddress import ip_address
from typing import Any

from dnslib import DNSLabel
from faults import (
    BAD_GATEWAY,
    BLOCKED,
    PAGE_NOT_FOUND,
    by_srv,
    delegates,
    fault,
    m_server,
    named,
    placed,
    redirect,
    site,
    srv,
    up,
)
from faults_tls import bad_certificate, expired
from laboratory import ZONE, Laboratory, homeserver

from synapse_federation_admin.homeserver.errors import has_route

# Where the kernel has no route to, and says so at once.
NOWHERE = "224.0.0.1"
NOWHERE_6 = "ff0e::1"

# Of the documentation's network: no host has a way there, but for one with IPv6.
NO_IPV6 = "2001:db8::1"

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


@fault("two-refused failing connection_refused", "and 1 more")
def _(lab: Laboratory, name: str) -> None:
    placed(lab, name)
    placed(lab, name)


@fault("many-addresses failing connection_refused")
def _(lab: Laboratory, name: str) -> None:
    """Ten thousand: ten hosts with a thousand addresses each, where nothing is."""
    hosts = [f"many{number}.{ZONE}" for number in range(10)]
    srv(lab, name, *hosts)
    for number, host in enumerate(hosts):
        first = ip_address("127.90.0.1") + 1000 * number
        lab.dns.add(host, "A", *(str(first + n) for n in range(1000)))
        lab.dns.prepare(host, "A")
