# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails."""

from pydantic import Field

from synapse_federation_admin.api.schemas.model import Answer, Kind
from synapse_federation_admin.api.schemas.values import model_of, type_of
from synapse_federation_admin.diagnosis import findings as values
from synapse_federation_admin.diagnosis.findings import (
    StageName,
    StageOutcome,
)
from synapse_federation_admin.failures.kinds import Fault, Reason
from synapse_federation_admin.failures.text import Verdict


class Stage(Answer):
    """What came of one stage of a diagnosis."""

    name: StageName = Field(description="Which stage; they come in this order.")
    outcome: StageOutcome = Field(
        description="`ok`; `warning`: something is wrong, but does not always stop "
        "requests; `failed`: no request gets past here; `skipped`: not tried."
    )
    kind: Kind | None = Field(description="What is wrong; null if nothing is.")
    reason: Reason | None = Field(
        description="What exactly, below the kind; null where that cannot be told."
    )
    message: str = Field(description="The same for people.")
    duration_ms: int = Field(description="How long it took.")
    findings: type_of(values.Findings) | None = Field(  # type: ignore[valid-type]
        description="What was seen; null if it was not tried."
    )


class Diagnosis(Answer):
    """A diagnosis of the way to one server."""

    destination: str = Field(description="The server name.")
    checked_ts: int = Field(description="When it was begun.")
    duration_ms: int = Field(description="How long it took.")
    instance: str = Field(description="The process; the main process is `main`.")
    verdict: Verdict = Field(
        description="`ok`; `degraded`: it works, but not always, or something is not "
        "as it should be; `failing`; `unknown`: this module itself has failed."
    )
    kind: Kind | None = Field(description="The cause; null if nothing is wrong.")
    reason: Reason | None = Field(
        description="What exactly, below the kind; null where that cannot be told."
    )
    fault: Fault | None = Field(
        description="Whose fault it is; `unknown` if it may be either's; null if "
        "nothing is wrong."
    )
    explanation: str = Field(description="What is wrong, for people.")
    advice: str = Field(description="What to do next, for people.")
    stages: list[Stage] = Field(
        description="Every stage, always the same ones, in order."
    )
    stored: model_of(values.StoredFindings) | None = Field(  # type: ignore[valid-type]
        description="The findings of the stage `stored`."
    )
