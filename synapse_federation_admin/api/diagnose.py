# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails, and what to do."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Answer, Kind, Nothing
from synapse_federation_admin.api.schemas.values import model_of, shown, type_of
from synapse_federation_admin.diagnosis import findings
from synapse_federation_admin.diagnosis import findings as values
from synapse_federation_admin.diagnosis.diagnose import TooManyDiagnosesError
from synapse_federation_admin.diagnosis.findings import (
    StageName,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.report import message_of_stage
from synapse_federation_admin.failures.kinds import Fault, Reason
from synapse_federation_admin.failures.text import (
    Verdict,
    advice_for,
    explanation_of,
    fault_of,
)
from synapse_federation_admin.homeserver.errors import LimitExceededError


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


@operation(
    Nothing,
    Diagnosis,
    errors={
        404: "The name is empty.",
        429: "Other diagnoses are under way, and no turn came within a quarter of the "
        "time; `retry_after_ms` says when to ask again.",
    },
)
async def diagnose(asked: Asked, _: Nothing, destination: str) -> JsonDict:
    """Go the way that a request to a server takes, and tell what is wrong.

    POST /_synapse/admin/v2/federation/destinations/<destination>/diagnose

    The name may be any, known or not. The body is empty or `{}`. Nothing is changed,
    and no retry timing.

    200 OK

        {
            "destination": "matrix.org",
            "checked_ts": 1557332397936,
            "duration_ms": 245,
            "instance": "main",
            "verdict": "failing",
            "kind": "tls_expired",
            "reason": "own_certificate",
            "fault": "them",
            "explanation": "Expired TLS certificate: the server's own certificate ...",
            "advice": "Ask their admin to renew the certificate. ...",
            "stages": [
                {
                    "name": "well_known",
                    "outcome": "ok",
                    "kind": null,
                    "reason": null,
                    "message": "Delegates to matrix-federation.matrix.org:443",
                    "duration_ms": 85,
                    "findings": {...}
                }
            ],
            "stored": {...}
        }

    It takes at most as long as `diagnosis.timeout` says. Who asks while the server is
    being diagnosed gets the same diagnosis.
    """
    diagnoses = asked.services.diagnoses
    if not destination:
        raise unknown_destination()
    try:
        return _shown(await diagnoses.diagnose(destination))
    except TooManyDiagnosesError:
        raise LimitExceededError(
            "federation_admin_diagnosis", retry_after_ms=diagnoses.timeout_ms
        ) from None


def _shown(diagnosis: findings.Diagnosis) -> JsonDict:
    situation = diagnosis.situation
    failure = situation.failure
    stored = diagnosis.stages[findings.StageName.STORED]
    return {
        "destination": diagnosis.destination,
        "checked_ts": diagnosis.checked_ts,
        "duration_ms": diagnosis.duration_ms,
        "instance": diagnosis.instance,
        "verdict": situation.verdict.value,
        "kind": shown(situation.kind),
        "reason": shown(failure.reason) if failure else None,
        "fault": shown(fault_of(failure)) if failure else None,
        "explanation": explanation_of(situation),
        "advice": advice_for(situation),
        "stages": [
            _shown_stage(stage, diagnosis) for stage in diagnosis.stages.values()
        ],
        "stored": shown(stored.findings),
    }


def _shown_stage(stage: findings.Stage, diagnosis: findings.Diagnosis) -> JsonDict:
    return {
        "name": stage.name.value,
        "outcome": stage.outcome.value,
        "kind": shown(stage.kind),
        "reason": shown(stage.failure.reason) if stage.failure else None,
        "message": message_of_stage(stage, diagnosis),
        "duration_ms": stage.duration_ms,
        "findings": shown(stage.findings),
    }
