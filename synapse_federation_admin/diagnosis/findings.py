# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis finds out about the way to another server.

Texts in which a remote server has a say are one line of printable ASCII, and bounded;
lists are bounded, too, and what was left out is counted.

The docstrings are what the API's schema says of each field: so this file is long, and
all of it is in one place.
"""

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias, TypeVar

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.failures.kinds import (
    Failure,
    FailureKind,
    How,
    Link,
    Reason,
)
from synapse_federation_admin.failures.text import (
    LastRequest,
    RealTraffic,
    Situation,
    message_of,
    shown_duration,
)
from synapse_federation_admin.homeserver.server_name import ServerName
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.sql import MOMENT_MS


class StageName(Enum):
    """The stages of a diagnosis, in the order of the way that a request takes."""

    NAME = "name"
    WELL_KNOWN = "well_known"
    ADDRESSES = "addresses"
    CONNECTIONS = "connections"
    VERSION = "version"
    KEYS = "keys"
    AUTHENTICATED = "authenticated"
    CLOCK = "clock"
    SENDER = "sender"
    STORED = "stored"


class StageOutcome(Enum):
    """What came of a stage."""

    OK = "ok"

    # Something is not as it should be, but does not always stop requests.
    WARNING = "warning"

    # No request gets past here.
    FAILED = "failed"

    # It was not tried, or this module has failed.
    SKIPPED = "skipped"


class SkipReason(Enum):
    """Why a stage was not tried, in words."""

    # Such a server cannot delegate.
    NAME_IS_ADDRESS = "Not asked: the name is an IP address"
    NAME_HAS_PORT = "Not asked: the name has a port"

    # A stage before it has failed.
    INVALID_NAME = "Not tried: nothing is sent to this name"
    INVALID_DELEGATION = "Not tried: m.server is not a server name"
    NO_ADDRESS = "Not tried: there is no address to connect to"
    NO_CONNECTION = "Not tried: there is no connection"
    NOT_REACHED = "Not told: the server was not reached, see before"

    ANOTHER_PROCESS = (
        "Not tried: outbound_federation_restricted_to has other processes go out: "
    )
    NO_DATE = "Not known: no response of the server has a Date"
    SENDERS_OFF = "Not known: the feature `senders` is off"
    DATABASE_SLOW = "Not known: the database does not answer in time"
    DATABASE_FAILED = "Not known: the database cannot be read"


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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class WellKnownRequest:
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class CachedWellKnown:
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class WellKnownFindings:
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
            return "No such file: the server does not delegate"
        return f"Delegates to {self.m_server}"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ResolutionStep:
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ServiceRecord:
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class CachedService:
    """What Synapse has cached of the SRV records of a name, where that differs.

    Attributes:
        service: The name.
        targets: `host:port`s.
        expires_ts: Until when.
        is_expired: Whether that has passed. Synapse goes by it all the same if it
            cannot look them up.
    """

    service: str
    targets: tuple[str, ...]
    expires_ts: int
    is_expired: bool


@attr.s(slots=True, frozen=True, auto_attribs=True)
class TargetAddress:
    """An address of a host.

    Attributes:
        address: The IP address.
        blocked: Whether Synapse's IP blocklist has it.
    """

    address: str
    blocked: bool


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Target:
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AddressesFindings:
    """Where requests to a server go.

    Attributes:
        resolved: The name that was resolved: the delegated one, if there is one.
        step: The number of the step that was used; None if it came to none.
        steps: Every step.
        services: The SRV records that were seen.
        services_total: How many there are.
        cached_services: What Synapse has cached of them, where it differs.
        targets: The hosts, those first that are used first.
        targets_total: How many there are: not all of them are looked up.
    """

    resolved: str
    step: str | None
    steps: tuple[ResolutionStep, ...]
    services: tuple[ServiceRecord, ...] = ()
    services_total: int = 0
    cached_services: tuple[CachedService, ...] = ()
    targets: tuple[Target, ...] = ()
    targets_total: int = 0

    def links(self, host: str = "", port: int | None = None) -> tuple[Link, ...]:
        """Return how requests come from the server name to a target.

        Args:
            host: Its name; "" is the first that an SRV record names.
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
            if not host or (record.target, record.port) == (host, port):
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Certificate:
    """A server's certificate.

    Attributes:
        subject: Who has it.
        issuer: Who has signed it.
        names: The host names and IP addresses that it is for, the first some of them.
        names_total: How many there are.
        not_before_ts: From when it is valid.
        not_after_ts: Until when.
        left_ms: How long that is from now; negative if it has expired.
        days_left: The same in days, rounded down.
        sha256: Its fingerprint, in hexadecimal.
        chain_length: How many certificates the server has sent.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    names_total: int
    not_before_ts: int
    not_after_ts: int
    left_ms: int
    days_left: int
    sha256: str
    chain_length: int


@attr.s(slots=True, frozen=True, auto_attribs=True)
class TlsFindings:
    """What a TLS handshake has shown.

    Attributes:
        handshake_ms: How long it took.
        version: `TLSv1.3`.
        cipher: The name of the cipher.
        certificate: The server's; None if it could not be read.
        is_trusted: Whether the chain leads to an authority that Synapse trusts, and all
            of it is valid now.
        name_matches: Whether the certificate is for the name that was asked for.
        is_verified: Whether Synapse cares: not if `federation_verify_certificates` or
            `federation_certificate_verification_whitelist` say so.
        problems: All that is wrong with it.
    """

    handshake_ms: int
    version: str
    cipher: str
    certificate: Certificate | None
    is_trusted: bool
    name_matches: bool
    is_verified: bool
    problems: tuple[Failure, ...] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class VersionFindings:
    """What a server answers to `GET /_matrix/federation/v1/version`.

    Attributes:
        duration_ms: How long the answer took, once connected.
        status: The HTTP status; None if there was no answer.
        content_type: As the server says it; None if it does not.
        size_bytes: The size of the body; None if it was not read to its end.
        server_name: What the server software calls itself.
        server_version: Its version.
        date_ts: The time by the server's clock, in the answer's `Date`.
        received_ts: The time here when the answer came.
        error: What is wrong with the answer.
    """

    duration_ms: int
    status: int | None = None
    content_type: str | None = None
    size_bytes: int | None = None
    server_name: str | None = None
    server_version: str | None = None
    date_ts: int | None = None
    received_ts: int | None = None
    error: Failure | None = None

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        software = " ".join(filter(None, (self.server_name, self.server_version)))
        return f"The server runs {software or 'software without a name'}"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Connection:
    """What came of a connection to one address, and of one request over it.

    Attributes:
        address: The IP address; None: Synapse's proxy was asked to connect.
        host: The host that has it.
        port: The port.
        host_header: The `Host` of the request.
        sni: The name that the TLS handshake gives; None for an IP address.
        outcome: Whether a TLS connection that Synapse accepts came about.
        connect_ms: How long it took to connect; None if it was not connected.
        tls: What the handshake has shown; None if it was not completed.
        version: What was answered; None if nothing was asked.
        error: Why there was no such connection; why it was not tried.
    """

    address: str | None
    host: str
    port: int
    host_header: str
    sni: str | None
    outcome: StageOutcome
    connect_ms: int | None = None
    tls: TlsFindings | None = None
    version: VersionFindings | None = None
    error: Failure | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ConnectionsFindings:
    """What came of a connection to each address.

    Attributes:
        connections: Those that were tried, and those that were not, and why.
        not_contacted: How many addresses more there are.
    """

    connections: tuple[Connection, ...]
    not_contacted: int = 0

    @property
    def tried(self) -> list[Connection]:
        """Those that were tried."""
        skipped = StageOutcome.SKIPPED
        return [c for c in self.connections if c.outcome is not skipped]

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        total = len(self.connections) + self.not_contacted
        of = f" of {total}" if self.not_contacted else ""
        return f"TLS connections work (addresses: {len(self.tried)}{of})"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ServerKey:
    """A key with which a server signs.

    Attributes:
        key_id: `ed25519:a`.
        is_self_signed: Whether the answer is signed with it, and rightly so.
        stored: Whether Synapse has the same key stored; None: it has none of that ID.
    """

    key_id: str
    is_self_signed: bool
    stored: bool | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class KeysFindings:
    """What a server answers to `GET /_matrix/key/v2/server`.

    Attributes:
        server_name: The name for which it gives keys.
        keys: Its keys, the first some of them.
        keys_total: How many there are.
        old_keys: How many keys it has that it signs with no more.
        valid_until_ts: Until when it says that they are valid.
        stored_total: How many of its keys Synapse has stored; None: not known.
        status: The HTTP status; None if there was no answer.
        date_ts: The time by the server's clock, in the answer's `Date`.
        received_ts: The time here when the answer came.
        error: Why there was no answer.
        is_us: Whether they are our own: our server name, and one of our keys.
    """

    server_name: str | None = None
    keys: tuple[ServerKey, ...] = ()
    keys_total: int = 0
    old_keys: int = 0
    valid_until_ts: int | None = None
    stored_total: int | None = None
    status: int | None = None
    date_ts: int | None = None
    received_ts: int | None = None
    error: Failure | None = None
    is_us: bool = False

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        return "The signing keys are valid"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class AuthenticatedFindings:
    """What a server answers to a request that we have signed.

    Attributes:
        path: The path of the request.
        status: The HTTP status; None if there was no answer.
        errcode: The Matrix error in it.
    """

    path: str
    status: int | None = None
    errcode: str | None = None

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        no_alias = ": it answers that there is no such alias" if self.errcode else ""
        return f"The server accepts the signature of this homeserver{no_alias}"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ClockFindings:
    """A server's clock against ours.

    Attributes:
        date_ts: The time by its clock, to the second.
        received_ts: The time by ours when that came.
        ahead_ms: How much its clock is ahead of ours; negative if it is behind.
    """

    date_ts: int
    received_ts: int
    ahead_ms: int

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        return "Their clock agrees with ours, to a minute"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class SenderFindings:
    """Which process of this homeserver sends to a server, and how far it has come.

    Attributes:
        sender: That process.
        queued_position: Where it is ahead, up to which event it is proven that it has
            queued all; None if that is not known.
    """

    sender: Sender
    queued_position: int | None = None

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        return f"{self.sender.instance} sends to this server, and keeps up"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class StoredFindings:
    """What Synapse holds of a server.

    Attributes:
        is_known: Whether it has a row for it.
        status: As in the list of destinations; None if it has no row.
        failing_since_ts: Since when it fails; None if it does not.
        next_retry_ts: When Synapse tries it again; None if it is not failing.
        backoff_left_ms: How long that is from now; 0 if it has passed.
        backlog: What waits for it.
        last_inbound_ts: When it last sent us a transaction; None if it has not within
            the last day, which is what Synapse remembers.
        reaches_us: Whether it has, and if it is failing, since it is.
        last_failure: The last failure of a real request of Synapse's to it; None if
            there was none since this module was installed.
        refused_bytes: How large a real request was that was too large for it, if none
            as large has been accepted since; None if there is none.
        last_success_ts: When a real request to it last succeeded, to within five
            minutes; exact after a failure. None if that is not known.
        last_request: What came of the last real request.
        last_failed_ago_ms: How long ago one last failed, by what is recorded and by
            Synapse's row; None if none has, as far as that is known.
        last_succeeded_ago_ms: How long ago one last succeeded; None: not known.
    """

    is_known: bool
    status: str | None = None
    failing_since_ts: int | None = None
    next_retry_ts: int | None = None
    backoff_left_ms: int = 0
    backlog: Backlog = attr.Factory(Backlog)
    last_inbound_ts: int | None = None
    reaches_us: bool = False
    last_failure: RecordedFailure | None = None
    last_success_ts: int | None = None
    last_request: LastRequest = LastRequest.NOT_KNOWN
    last_failed_ago_ms: int | None = None
    last_succeeded_ago_ms: int | None = None
    refused_bytes: int | None = None

    @property
    def last_kind(self) -> FailureKind | None:
        """Why the last real request failed; None if that is not known.

        What was recorded before it began to fail is not why.
        """
        last = self.last_failure
        since_ts = (self.failing_since_ts or 0) - MOMENT_MS
        if last is None or last.last_ts < since_ts:
            return None
        # A later version may have written another one.
        return next((kind for kind in FailureKind if kind.value == last.kind), None)

    @property
    def real(self) -> RealTraffic:
        """What real requests met."""
        return RealTraffic(
            self.last_request,
            self.last_failed_ago_ms,
            self.last_kind,
            self.last_succeeded_ago_ms,
        )

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        if not self.is_known:
            return "Synapse has never sent anything to the server"
        if self.next_retry_ts is None:
            return "Synapse does not back off from the server"
        retries = "when something is due"
        if self.backoff_left_ms:
            retries = f"in {shown_duration(self.backoff_left_ms)}"
        reached = "; the server reaches us meanwhile" if self.reaches_us else ""
        return f"Synapse backs off from the server, and retries {retries}{reached}"


Findings: TypeAlias = (
    WellKnownFindings
    | AddressesFindings
    | ConnectionsFindings
    | VersionFindings
    | KeysFindings
    | AuthenticatedFindings
    | ClockFindings
    | SenderFindings
    | StoredFindings
)

F = TypeVar("F", bound=Findings)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Stage:
    """What came of one stage of a diagnosis.

    Attributes:
        name: Which stage; they come in this order.
        outcome: `ok`; `warning`: something is wrong, but does not always stop requests;
            `failed`: no request gets past here; `skipped`: not tried.
        failure: What is wrong; None if nothing is.
        findings: What was seen; None if it was not tried.
        skipped: Why it was not tried, if it was not and nothing is wrong.
        duration_ms: How long it took.
        told: What goes before what is wrong, or after why it was not tried.
    """

    name: StageName
    outcome: StageOutcome
    failure: Failure | None = None
    findings: Findings | None = None
    skipped: SkipReason | None = None
    duration_ms: int = 0
    told: str = ""

    @classmethod
    def failed(
        cls,
        name: StageName,
        failure: Failure,
        findings: Findings | None = None,
        outcome: StageOutcome = StageOutcome.FAILED,
    ) -> "Stage":
        """Return a stage in which something is wrong.

        Args:
            name: Which.
            failure: What is wrong. If it is a bug on this side, the stage tells nothing
                of the server: it is skipped.
            findings: What was seen.
            outcome: What came of it.
        """
        outcome = StageOutcome.SKIPPED if failure.is_ours else outcome
        return cls(name, outcome, failure, findings)

    @classmethod
    def of_all(
        cls, name: StageName, errors: Sequence[Failure | None], findings: Findings
    ) -> "Stage":
        """Return a stage by what is wrong with each of what was tried in it.

        The first is told, how many others fail alike, and how else others fail.

        Args:
            name: Which.
            errors: What is wrong with each; None of one that is in order.
            findings: What was seen.
        """
        bad = [error for error in errors if error is not None]
        if not bad:
            return cls(name, StageOutcome.OK, findings=findings)
        first, *others = bad
        more = len([error for error in others if error.kind is first.kind])
        also = dict.fromkeys((*first.facts.also, *(error.kind for error in others)))
        also.pop(first.kind, None)
        facts = attr.evolve(first.facts, more=more, also=tuple(also))
        stage = cls.failed(name, attr.evolve(first, facts=facts), findings)
        if stage.outcome is StageOutcome.SKIPPED or len(bad) == len(errors):
            return stage
        told = f"{len(bad)} of {len(errors)} fail: "
        return attr.evolve(stage, outcome=StageOutcome.WARNING, told=told)

    @classmethod
    def skip(cls, name: StageName, why: SkipReason, told: str = "") -> "Stage":
        """Return a stage that was not tried."""
        return cls(name, StageOutcome.SKIPPED, skipped=why, told=told)

    @property
    def kind(self) -> FailureKind | None:
        """What is wrong; None if nothing is."""
        return self.failure.kind if self.failure else None

    @property
    def reason(self) -> Reason | None:
        """What exactly, below the kind; None where that cannot be told."""
        return self.failure.reason if self.failure else None

    @property
    def message(self) -> str:
        """The same for people."""
        if self.skipped is not None:
            return f"{self.skipped.value}{self.told}"
        if self.failure is not None:
            return self.told + message_of(self.failure)
        return self.findings.summary if self.findings else "The server name is valid"

    @property
    def is_ours(self) -> bool:
        """Whether this module has failed in it."""
        return self.failure is not None and self.failure.is_ours


class Stages(dict[StageName, Stage]):
    """Stages by their names."""

    def seen(self, kind: type[F]) -> F | None:
        """Return the findings of a kind; None if no stage has such."""
        found = (stage.findings for stage in self.values())
        return next((each for each in found if isinstance(each, kind)), None)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Diagnosis:
    """A diagnosis of the way to one server.

    Attributes:
        destination: The server name.
        checked_ts: When it was begun.
        duration_ms: How long it took.
        instance: The process; the main process is `main`.
        situation: What the stages mean.
        stages: Every stage, always the same ones, in order.
        stored: The findings of the stage `stored`.
    """

    destination: str
    checked_ts: int
    duration_ms: int
    instance: str
    situation: Situation
    stages: tuple[Stage, ...]
    stored: StoredFindings | None
