# SPDX-License-Identifier: Apache-2.0
"""The stage `name`, and what a server name is made of.

https://spec.matrix.org/v1.11/appendices/#server-name
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import attr

from synapse_federation_admin.diagnosis.findings import Stage, StageName, StageOutcome
from synapse_federation_admin.failures.classify import bounded, describe
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.homeserver.homeserver import Homeserver

_NAME = re.compile(
    r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z.-]{1,255})"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_MAX_PORT = 65535
_MAX_LABEL = 63


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ServerName:
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
            ValueError: It is none, and why.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(_why_not(name))
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= _MAX_PORT:
            raise ValueError(f"its port is not from 1 to {_MAX_PORT}")
        if found["v6"]:
            try:
                IPv6Address(found["v6"])
            except AddressValueError:
                raise ValueError("what is in its brackets is no IPv6 address") from None
            return cls(found["v6"], port, True)
        host = found["host"]
        try:
            IPv4Address(host)
        except AddressValueError:
            labels = host.split(".")
            if not all(labels):
                raise ValueError("it has an empty label") from None
            if max(map(len, labels)) > _MAX_LABEL:
                raise ValueError(
                    f"it has a label of more than {_MAX_LABEL} characters"
                ) from None
            return cls(host, port, False)
        return cls(host, port, True)

    @property
    def netloc(self) -> str:
        """The name as it stands in a URL, and in `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _why_not(name: str) -> str:
    if "/" in name:
        return "it is a URL, or a part of one: a server name has no scheme and no path"
    host, _, port = name.rpartition(":")
    if host and not port.isdecimal() and "[" not in name and ":" not in host:
        return "what follows the colon is no port"
    if not name.isascii():
        return "it has characters outside ASCII: a domain has to be in Punycode"
    return "it is not of the form host or host:port"


def check_name(homeserver: Homeserver, name: str) -> Stage:
    """Tell whether requests may be sent to a server name at all."""

    def failed(kind: FailureKind, detail: str) -> Stage:
        return Stage.of(StageName.NAME, describe(kind, detail))

    try:
        parsed = ServerName.parse(name)
    except ValueError as e:
        return failed(FailureKind.INVALID_NAME, str(e))
    if not homeserver.is_server_name(name):
        return failed(FailureKind.INVALID_NAME, "Synapse refuses it")
    if not homeserver.federation.can_be_host(parsed.host):
        return failed(FailureKind.INVALID_NAME, "no host can have this name")
    if name == homeserver.server_name:
        return failed(
            FailureKind.INVALID_NAME,
            "it is the name of this homeserver itself, which does not federate with "
            "itself",
        )
    if not homeserver.is_allowed(name):
        return failed(FailureKind.NOT_ALLOWED, "")
    return Stage(
        StageName.NAME,
        StageOutcome.OK,
        f"{bounded(name)} is a valid server name, and may be sent to",
    )
