# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis finds out about where requests to a server go.

As for `synapse_federation_admin.diagnosis.findings`.
"""

from enum import Enum
from typing import NamedTuple

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import Failure, How, Link
from synapse_federation_admin.homeserver.server_name import ServerName


class ResolutionOutcome(Enum):
    """What came of one step of the resolution of a server name."""

    # It led to where requests go.
    USED = "used"

    # There is nothing there for it: the next step is taken.
    NOTHING = "nothing"

    # It does not apply to a name of this form.
    NOT_APPLICABLE = "not_applicable"

    # It could not be taken, and so none is.
    FAILED = "failed"

    # A step before it was used, or failed.
    NOT_REACHED = "not_reached"


class WellKnownRequest(NamedTuple):
    """A request on the way to a well-known file.

    Attributes:
        url: What was asked for.
        duration_ms: How long it took.
        status: The HTTP status; None if there was no answer.
        content_type: As the server says it; None if it does not.
        size_bytes: The size of the body; None if it was not read.
        location: Where a redirect leads.
        error: Why there was no answer.
    """

    url: str
    duration_ms: int
    status: int | None = None
    content_type: str | None = None
    size_bytes: int | None = None
    location: str | None = None
    error: Failure | None = None


class CachedWellKnown(NamedTuple):
    """What this process of Synapse has cached of a well-known file.

    Attributes:
        m_server: The delegated name; None: that there is none.
        expires_ts: Until when.
        is_used: Whether Synapse goes by it unasked; else it asks anew, and keeps to it
            if that fails.
        differs: Whether it is not what the file says now.
    """

    m_server: str | None
    expires_ts: int
    is_used: bool
    differs: bool


class WellKnownFindings(NamedTuple):
    """What the well-known file says.

    Attributes:
        requests: The requests, each redirect one of its own.
        max_bytes: The size up to which Synapse reads the file.
        m_server: What the file gives as `m.server`, valid or not; None if nothing.
        is_valid: Whether that is a valid server name; None if there is none.
        delegated_to: To which name requests go by that; None: the server's own.
        suggests_delegation: Whether anything looks as if the server meant to delegate:
            not a web site that answers with a page, whatever it is asked for.
        lifetime_ms: How long Synapse would cache it.
        cached: What Synapse has cached; None if nothing.
    """

    requests: tuple[WellKnownRequest, ...]
    max_bytes: int
    m_server: str | None = None
    is_valid: bool | None = None
    delegated_to: str | None = None
    suggests_delegation: bool = False
    lifetime_ms: int | None = None
    cached: CachedWellKnown | None = None

    @property
    def is_outdated(self) -> bool:
        """Whether Synapse goes by another answer, which it has cached."""
        return bool(self.cached and self.cached.is_used and self.cached.differs)

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        if self.m_server is None:
            # A name that does not exist, or has no web server, has not said so.
            said = "Not to be had" if self.requests[-1].error else "No such file"
            return f"{said}: requests go by the server name itself"
        return f"Delegates to {self.m_server}"


class ResolutionStep(NamedTuple):
    """A step of https://spec.matrix.org/v1.11/server-server-api/#resolving-server-names.

    Attributes:
        number: Its number there: `3.2`.
        what: What it is about.
        outcome: What came of it.
        error: Why, if it failed.
    """

    number: str
    what: str
    outcome: ResolutionOutcome
    error: Failure | None = None


class ServiceRecord(NamedTuple):
    """An SRV record.

    Attributes:
        service: The name that has it.
        target: The host that it leads to.
        port: The port there.
        priority: The lowest is used first.
        weight: How often it is used, among those of one priority.
        ttl_s: How long it may be cached.
    """

    service: str
    target: str
    port: int
    priority: int
    weight: int
    ttl_s: int


class TargetAddress(NamedTuple):
    """An address of a host.

    Attributes:
        address: The IP address.
        blocked: Whether Synapse's IP blocklist has it.
    """

    address: str
    blocked: bool


class Target(NamedTuple):
    """A host to which requests may go.

    Attributes:
        host: Its name, or an IP address.
        port: The port there.
        addresses: What it resolves to, the first some of it.
        addresses_total: How many there are.
        via_proxy: Whether Synapse has its proxy connect to it, which then looks it up.
        error: Why nothing can be sent there.
    """

    host: str
    port: int
    addresses: tuple[TargetAddress, ...] = ()
    addresses_total: int = 0
    via_proxy: bool = False
    error: Failure | None = None


class AddressesFindings(NamedTuple):
    """Where requests to a server go.

    Attributes:
        resolved: The name that was resolved: the delegated one, if there is one.
        step: The number of the step that was used; None if it came to none.
        steps: Every step.
        services: The SRV records that were seen.
        services_total: How many there are.
        targets: The hosts, those first that are used first.
        targets_total: How many there are: not all of them are looked up.
    """

    resolved: str
    step: str | None
    steps: tuple[ResolutionStep, ...]
    services: tuple[ServiceRecord, ...] = ()
    services_total: int = 0
    targets: tuple[Target, ...] = ()
    targets_total: int = 0

    def links(self, host: str = "", port: int | None = None) -> tuple[Link, ...]:
        """Return how requests come from the server name to a target.

        Args:
            host: Its name; "" is what has SRV records, or none.
            port: The port there.
        """
        found = ServerName.parse(self.resolved)
        # Where the server delegates the number says so.
        is_delegated = any(step.number.startswith("3.") for step in self.steps)
        links = []
        if is_delegated:
            how = How.FILE_WITHOUT_PORT if found.port is None else How.FILE
            links.append(Link(how, found.host, found.port or 8448))
        elif found.port is not None and not found.is_literal:
            links.append(Link(How.PORT, found.host, found.port))
        for record in self.services:
            if (record.target, record.port) == (host, port):
                links.append(Link(How.SERVICE, record.target, record.port))
                break
        return tuple(links)

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        told = self.targets[: limits.TOLD_FINDINGS]
        hosts = ", ".join(f"{target.host} port {target.port}" for target in told)
        more = self.targets_total - len(told)
        return f"Requests go to {hosts}" + (f" and {more} more" if more > 0 else "")
