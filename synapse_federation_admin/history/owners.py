# SPDX-License-Identifier: Apache-2.0
"""Whose a server is, as well as its name and its addresses tell. Pure.

Who has one domain has any number of names below it, and who has one network any number
of addresses in it. Neither costs anything, so that all of them count as one.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
)

# Under a top-level domain of a country, those below which it is that names are
# registered: `example.co.uk`, `example.com.br`. There are more; what is below another
# counts as one owner's, which is the safe side. So are the names of a hoster or a
# dynamic DNS, `example.duckdns.org`: anybody can have more of them for nothing.
_SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "gob", "gouv", "gov", "go", "mil", "ne", "net", "nom")
) | {"or", "org"}
_COUNTRY = 2

# How much of an address is its network.
_IPV4_BITS = 24
_IPV6_BITS = 64


def owner_of(name: str) -> str:
    """Return whose a server is: the domain that was registered, or a network.

    Args:
        name: The server name. Its port does not matter.
    """
    try:
        server = ServerName.parse(name)
    except InvalidServerNameError:
        return name
    if server.is_literal:
        return network_of(server.host)
    labels = server.host.lower().split(".")
    is_deep = len(labels[-1]) == _COUNTRY and not _SECOND_LEVEL.isdisjoint(
        labels[-2:-1]
    )
    return ".".join(labels[-3 if is_deep else -2 :])


def network_of(address: str) -> str:
    """Return the network that an IP address is in: `192.0.2.0/24`, `2001:db8::/64`.

    What is no address stands for itself.
    """
    try:
        found: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    bits = _IPV4_BITS if found.version == 4 else _IPV6_BITS
    spare = found.max_prefixlen - bits
    return f"{type(found)(int(found) >> spare << spare)}/{bits}"
