# SPDX-License-Identifier: Apache-2.0
"""The stage `name`, and what a server name is made of.

https://spec.matrix.org/v1.11/appendices/#server-name
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import attr

from synapse_federation_admin.diagnosis.findings import Stage, StageName, StageOutcome
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver

_NAME = re.compile(
    r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z.-]{1,255})"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_MAX_PORT = 65535
_MAX_LABEL = 63


class InvalidServerNameError(ValueError):
    """It is no server name.

    Attributes:
        reason: Why not.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason

    @property
    def failure(self) -> Failure:
        """The failure to send anything to it."""
        return Failure(FailureKind.INVALID_NAME, self.reason)


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
            InvalidServerNameError: It is none.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidServerNameError(_why_not(name))
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= _MAX_PORT:
            raise InvalidServerNameError(Reason.PORT_INVALID)
        if found["v6"]:
            try:
                IPv6Address(found["v6"])
            except AddressValueError:
                raise InvalidServerNameError(Reason.IPV6_INVALID) from None
            return cls(found["v6"], port, True)
        host = found["host"]
        try:
            IPv4Address(host)
        except AddressValueError:
            labels = host.split(".")
            if not all(labels):
                raise InvalidServerNameError(Reason.LABEL_EMPTY) from None
            if max(map(len, labels)) > _MAX_LABEL:
                raise InvalidServerNameError(Reason.LABEL_TOO_LONG) from None
            return cls(host, port, False)
        return cls(host, port, True)

    @property
    def netloc(self) -> str:
        """The name as it stands in a URL, and in `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def _why_not(name: str) -> Reason:
    if "/" in name:
        return Reason.NAME_IS_URL
    host, _, port = name.rpartition(":")
    if host and not port.isdecimal() and "[" not in name and ":" not in host:
        return Reason.PORT_INVALID
    return Reason.NAME_MALFORMED if name.isascii() else Reason.NAME_NOT_ASCII


def check_name(homeserver: Homeserver, name: str) -> Stage:
    """Tell whether requests may be sent to a server name at all."""
    try:
        host = ServerName.parse(name).host
    except InvalidServerNameError as e:
        return Stage.failed(StageName.NAME, e.failure)
    reason = None
    if not homeserver.is_server_name(name):
        reason = Reason.NAME_REFUSED
    elif not homeserver.federation.can_be_host(host):
        reason = Reason.NO_HOST_NAME
    elif name == homeserver.server_name:
        reason = Reason.OWN_NAME
    if reason is not None:
        return Stage.failed(StageName.NAME, InvalidServerNameError(reason).failure)
    if not homeserver.is_allowed(name):
        return Stage.failed(StageName.NAME, Failure(FailureKind.NOT_ALLOWED))
    return Stage(StageName.NAME, StageOutcome.OK)
