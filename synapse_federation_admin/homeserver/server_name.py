# SPDX-License-Identifier: Apache-2.0
"""What a server name is made of.

https://spec.matrix.org/v1.11/appendices/#server-name
"""

import re
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

_NAME = re.compile(
    r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z.-]{1,255})"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
# What most names are.
_PLAIN = re.compile(
    r"(?:[0-9A-Za-z-]{1,63}\.)*[0-9A-Za-z-]{1,63}"
    r"(?::(?:[1-5][0-9]{4}|[1-9][0-9]{0,3}))?"
)
_MAX_HOST = 255
_MAX_PORT = 65535
_MAX_LABEL = 63


class NameFault(Enum):
    """Why a name is no server name."""

    NAME_IS_URL = "name_is_url"
    NAME_NOT_ASCII = "name_not_ascii"
    NAME_MALFORMED = "name_malformed"
    PORT_INVALID = "port_invalid"
    IPV6_INVALID = "ipv6_invalid"
    LABEL_EMPTY = "label_empty"
    LABEL_TOO_LONG = "label_too_long"


class InvalidServerNameError(ValueError):
    """It is no server name.

    Attributes:
        fault: Why not.
    """

    def __init__(self, fault: NameFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class ServerName(NamedTuple):
    """A server name.

    Attributes:
        host: A host name, or an IP address; without brackets.
        port: The port, if there is one.
        is_literal: Whether the host is an IP address.
    """

    host: str
    port: int | None
    is_literal: bool

    @classmethod
    def parse(cls, name: str) -> "ServerName":
        """Parse a server name.

        Raises:
            InvalidServerNameError: It is none.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidServerNameError(_why_not(name))
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= _MAX_PORT:
            raise InvalidServerNameError(NameFault.PORT_INVALID)
        if found["v6"]:
            try:
                IPv6Address(found["v6"])
            except AddressValueError:
                raise InvalidServerNameError(NameFault.IPV6_INVALID) from None
            return cls(found["v6"], port, True)
        host = found["host"]
        try:
            IPv4Address(host)
        except AddressValueError:
            labels = host.split(".")
            if not all(labels):
                raise InvalidServerNameError(NameFault.LABEL_EMPTY) from None
            if max(map(len, labels)) > _MAX_LABEL:
                raise InvalidServerNameError(NameFault.LABEL_TOO_LONG) from None
            return cls(host, port, False)
        return cls(host, port, True)

    @property
    def netloc(self) -> str:
        """The name as it stands in a URL, and in `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _why_not(name: str) -> NameFault:
    if "/" in name:
        return NameFault.NAME_IS_URL
    host, _, port = name.rpartition(":")
    if host and not port.isdecimal() and ":" not in host and is_server_name(host):
        return NameFault.PORT_INVALID
    return NameFault.NAME_MALFORMED if name.isascii() else NameFault.NAME_NOT_ASCII


def is_internal(address: str) -> bool:
    """Tell whether an IP address is of no use to others: private, or loopback."""
    return not ip_address(address.partition("%")[0]).is_global


def is_server_name(name: str) -> bool:
    """Tell whether a name is a server name."""
    if len(name) <= _MAX_HOST and _PLAIN.fullmatch(name):
        # Long lists ask this of every row.
        return True
    try:
        ServerName.parse(name)
    except InvalidServerNameError:
        return False
    return True
