# SPDX-License-Identifier: Apache-2.0
"""Says failures in words: a sentence, advice, and whose fault it is.

The words themselves are in `synapse_federation_admin.failures.wording`. Nothing may
look into what is made here: kind, reason and facts are there for that.
"""

from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.failures.wording import (
    KINDS,
    REASONS,
    REASONS_OF_KINDS,
    Fault,
    Wording,
)

# How long a sentence may be, and an advice.
MAX_SENTENCE = 160
MAX_ADVICE = 240

# How much is told in a sentence of a fact, and how much at least, to tell anything.
_MAX_FACT = 50
_LEAST_DETAIL = 12

# How many names are told.
_MAX_NAMES = 3


def message_of(failure: Failure) -> str:
    """Return what is wrong: one sentence without its full stop, printable ASCII."""
    headline, because = _headline(failure), _because(failure)
    sentence = _cut(f"{headline}: {because}" if because else headline)
    left = MAX_SENTENCE - len(sentence) - len(" ()")
    detail = _told(failure)
    if detail and left >= _LEAST_DETAIL:
        sentence = f"{sentence} ({_cut(detail, left)})"
    return sentence


def summary_of(failure: Failure) -> str:
    """Return what is wrong in a few words, as the end of a sentence."""
    detail = _told(failure)
    what = lowered(_headline(failure))
    return _cut(f"{what} ({detail})" if detail else what, MAX_SENTENCE // 2)


def detail_of(failure: Failure) -> str:
    """Return what is particular, in the words of others too; "" if nothing is."""
    facts = failure.facts
    code = f"OpenSSL verification error {facts.code}" if facts.code else ""
    cause = detail_of(facts.cause) if facts.cause else ""
    parts = (_told(failure), code, facts.exception, cause)
    return ", ".join(part for part in parts if part)


def advice_of(failure: Failure) -> str:
    """Return what to do: sentences."""
    of_reason = _of_reason(failure)
    advice = of_reason.advice if of_reason and of_reason.advice else None
    return _filled(advice or KINDS[failure.kind].advice or "", failure)


def fault_of(failure: Failure) -> Fault:
    """Return whose fault it is."""
    of_reason = _of_reason(failure)
    fault = of_reason.fault if of_reason and of_reason.fault else None
    return fault or KINDS[failure.kind].fault or Fault.UNKNOWN


def because_of(failure: Failure) -> str:
    """Return what is particular of a failure, as the end of a sentence."""
    said = failure.facts.said
    return said or (_because(failure) if failure.reason else _told(failure))


def lowered(text: str) -> str:
    """Return a text as the end of a sentence: not "tLS handshake failed"."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def shown_duration(duration_ms: int) -> str:
    """Return a duration as a person reads it: `3 days`, `31 h`, `5 min`, `12 s`."""
    seconds = duration_ms // 1000
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _of_reason(failure: Failure) -> Wording | None:
    if failure.reason is None:
        return None
    of_kind = REASONS_OF_KINDS.get((failure.kind, failure.reason))
    return of_kind or REASONS[failure.reason]


def _headline(failure: Failure) -> str:
    of_reason = _of_reason(failure)
    headline = of_reason.headline if of_reason else None
    return headline or KINDS[failure.kind].headline or ""


def _template(failure: Failure) -> str:
    return (_of_reason(failure) or KINDS[failure.kind]).because


def _because(failure: Failure) -> str:
    """Return what follows the headline; "" if nothing does."""
    facts = failure.facts
    parts = [_filled(_template(failure), failure)]
    if facts.cause is not None:
        because = _because(facts.cause) if facts.cause.reason else ""
        parts.append(because or lowered(_headline(facts.cause)))
    because = ": ".join(part for part in parts if part)
    also = [lowered(_headline(Failure(kind))) for kind in facts.also]
    return "; also: ".join([because, *also])


def _told(failure: Failure) -> str:
    """Return the facts for a person that the sentence itself does not tell."""
    facts, template = failure.facts, _template(failure)
    parts = []
    if facts.host and facts.port is not None:
        parts.append(f"{_cut(facts.host, _MAX_FACT)} port {facts.port}")
    if failure.kind is FailureKind.IP_BLOCKED:
        parts += facts.names[:_MAX_NAMES]
    status = f"HTTP {facts.status}" if facts.status is not None else ""
    said = "" if "{said}" in template else facts.said
    parts.append(" ".join(filter(None, (status, facts.errcode, said))))
    if facts.issuer:
        parts.append(f"issuer {facts.issuer}")
    if facts.is_relayed:
        parts.append("told by another process of this homeserver")
    return ", ".join(part for part in parts if part)


def _filled(template: str, failure: Failure) -> str:
    """Return a text with facts in place of their names."""
    facts = failure.facts
    host = _cut(facts.host, _MAX_FACT) or "the server name"
    ahead = shown_duration(abs(facts.ahead_ms))
    names = ", ".join(_cut(n, _MAX_FACT) for n in facts.names[:_MAX_NAMES])
    return template.format(
        host=host,
        said=_cut(facts.said, _MAX_FACT),
        expired="has expired"
        if facts.ago_ms is None
        else f"expired {shown_duration(facts.ago_ms)} ago",
        mismatch=f"for {_cut(names, _MAX_FACT)}, not for {host}"
        if names
        else f"not for {host}",
        ahead=f"{ahead} {'ahead of' if facts.ahead_ms > 0 else 'behind'}",
    )


def _cut(text: str, most: int = MAX_SENTENCE) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
