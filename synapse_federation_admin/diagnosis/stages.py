# SPDX-License-Identifier: Apache-2.0
"""The stages of a diagnosis, with what was found in each."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias, TypeVar

import attr

from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    ClockFindings,
    ConnectionsFindings,
    KeysFindings,
    SenderFindings,
    StageOutcome,
    StoredFindings,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.resolution import (
    AddressesFindings,
    WellKnownFindings,
)
from synapse_federation_admin.failures.kinds import Failure, HasFailure
from synapse_federation_admin.failures.situation import Situation
from synapse_federation_admin.failures.text import message_of


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
    NO_DATE = "Not known: no response with a Date came from the server"
    SENDERS_OFF = "Not known: the feature `senders` is off"
    DATABASE_SLOW = "Not known: the database does not answer in time"
    DATABASE_FAILED = "Not known: the database cannot be read"


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
class Stage(HasFailure):
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
        stage = cls.failed(name, first.but(more=more, also=tuple(also)), findings)
        if stage.outcome is StageOutcome.SKIPPED or len(bad) == len(errors):
            return stage
        told = f"{len(bad)} of {len(errors)} fail: "
        return attr.evolve(stage, outcome=StageOutcome.WARNING, told=told)

    @classmethod
    def skip(cls, name: StageName, why: SkipReason, told: str = "") -> "Stage":
        """Return a stage that was not tried."""
        return cls(name, StageOutcome.SKIPPED, skipped=why, told=told)

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

    def status(self, name: StageName) -> int | None:
        """Return the HTTP status of the answer in a stage; None if there was none."""
        return getattr(self[name].findings, "status", None)

    @property
    def sent(self) -> AuthenticatedFindings:
        """What comes of a transaction, if one was sent."""
        return self.seen(AuthenticatedFindings) or AuthenticatedFindings("")

    @property
    def is_led_elsewhere(self) -> bool:
        """Whether the file, or the DNS, says where the server is."""
        file, addresses = self.seen(WellKnownFindings), self.seen(AddressesFindings)
        return bool(
            (file and file.delegated_to) or (addresses and addresses.services_total)
        )


class Diagnosis(NamedTuple):
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
