# SPDX-License-Identifier: Apache-2.0
"""IP addresses, compared with many ranges of them."""

from bisect import bisect_right
from ipaddress import IPv4Address, IPv6Address
from operator import itemgetter

from netaddr import IPSet  # type: ignore[import-untyped]  # Synapse's


class AddressRanges:
    """The addresses of an IPSet, with which others are compared much faster."""

    def __init__(self, addresses: IPSet | None) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for found in addresses.iter_ipranges() if addresses else ():
            self._ranges[found.version].append((found.first, found.last))

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        """Tell whether an address is one of them."""
        ranges, number = self._ranges[address.version], int(address)
        # They are in order, and apart from each other.
        place = bisect_right(ranges, number, key=itemgetter(0))
        return place > 0 and number <= ranges[place - 1][1]
