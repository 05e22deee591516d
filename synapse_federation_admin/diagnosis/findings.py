# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis finds out about a server that requests have come to.

Where they go is in `synapse_federation_admin.diagnosis.resolution`.

The docstrings are what the API's schema says of each field. Texts in which a remote
server has a say are one line of printable ASCII, and bounded; lists are bounded, too,
and what was left out is counted.
"""

from enum import Enum
from http import HTTPStatus
from typing import NamedTuple

from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.failures.situation import LastRequest, RealTraffic
from synapse_federation_admin.failures.text import shown_duration
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.sql import MOMENT_MS


class StageOutcome(Enum):
    """What came of a stage."""

    OK = "ok"

    # Something is not as it should be, but does not always stop requests.
    WARNING = "warning"

    # No request gets past here.
    FAILED = "failed"

    # It was not tried, or this module has failed.
    SKIPPED = "skipped"


class Certificate(NamedTuple):
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


class TlsFindings(NamedTuple):
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


class VersionFindings(NamedTuple):
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


class Connection(NamedTuple):
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


class ConnectionsFindings(NamedTuple):
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


class ServerKey(NamedTuple):
    """A key with which a server signs.

    Attributes:
        key_id: `ed25519:a`.
        is_self_signed: Whether the answer is signed with it, and rightly so.
        stored: Whether Synapse has the same key stored; None: it has none of that ID.
    """

    key_id: str
    is_self_signed: bool
    stored: bool | None


class KeysFindings(NamedTuple):
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


class AuthenticatedFindings(NamedTuple):
    """What comes of a transaction: of the contact, or of a real one.

    Attributes:
        path: The path of the request, without the ID of the transaction.
        status: The HTTP status; None if there was no answer, or not yet.
        errcode: The Matrix error in it.
        is_real: Whether it was a real transaction, which was under way.
    """

    path: str
    status: int | None = None
    errcode: str | None = None
    is_real: bool = False

    @property
    def summary(self) -> str:
        """What there is to say if nothing is wrong."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "The server is busy with another transaction of this homeserver"
        which = "a real" if self.is_real else "an empty"
        return f"The server accepts {which} transaction of this homeserver"


class ClockFindings(NamedTuple):
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


class SenderFindings(NamedTuple):
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
        who = f"{self.sender.instance} sends to this server"
        if self.sender.position is None:
            return f"{who}; it has queued no event yet"
        return f"{who}, and keeps up"


class StoredFindings(NamedTuple):
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
    backlog: Backlog = Backlog()
    last_inbound_ts: int | None = None
    reaches_us: bool = False
    last_failure: RecordedFailure | None = None
    last_success_ts: int | None = None
    last_request: LastRequest = LastRequest.NOT_KNOWN
    last_failed_ago_ms: int | None = None
    last_succeeded_ago_ms: int | None = None
    refused_bytes: int | None = None

    @property
    def last_met(self) -> RecordedFailure | None:
        """What the last real request that failed met; None if that is not known.

        What was recorded before it began to fail is not why.
        """
        last = self.last_failure
        since_ts = (self.failing_since_ts or 0) - MOMENT_MS
        return None if last is None or last.last_ts < since_ts else last

    @property
    def last_kind(self) -> FailureKind | None:
        """Why the last real request failed; None if that is not known."""
        last = self.last_met
        if last is None:
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
            return "Synapse has no row for the server: it does not back off from it"
        if self.next_retry_ts is None:
            return "Synapse does not back off from the server"
        retries = "when something is due"
        if self.backoff_left_ms:
            retries = f"in {shown_duration(self.backoff_left_ms)}"
        reached = "; the server reaches us meanwhile" if self.reaches_us else ""
        return f"Synapse backs off from the server, and retries {retries}{reached}"
