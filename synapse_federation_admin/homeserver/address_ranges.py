# SPDX-License-Identifier: Apache-2.0
"""IP addresses, compared with many ranges of them."""

from bisect import bisect_right
from ipaddress import ip_address
from operator import itemgetter

from netaddr import IPSet  # type: ignore[import-untyped]  # Synapse's


class AddressRanges:
    """The addresses of an IPSet, with which others are compared many times faster.

    A hostile host name has thousands of addresses, and an IPSet holds the GIL for 0.2 s
    for a thousand of them.
    """

    def __init__(self, addresses: IPSet | None) -> None:
        """Take the addresses over: those of None are none."""
        self._ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for found in addresses.iter_ipranges() if addresses else ():
            self._ranges[found.version].append((found.first, found.last))

    def __contains__(self, address: str) -> bool:
        """Tell whether an address, of IPv6 with its zone or without, is one of them."""
        found = ip_address(address.partition("%")[0])
        ranges, number = self._ranges[found.version], int(found)
        # They are in order, and apart from each other.
        place = bisect_right(ranges, number, key=itemgetter(0))
        return place > 0 and number <= ranges[place - 1][1]


def is_internal(address: str) -> bool:
    """Tell whether an IP address is of no use to others: private, or loopback."""
    return not ip_address(address.partition("%")[0]).is_global
