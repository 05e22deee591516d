# SPDX-License-Identifier: Apache-2.0
"""`why`: a diagnosis, for people, and as a check for scripts and monitoring."""

from collections.abc import Iterator

import click
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from synapse_federation_admin.cli.client import Json, segment
from synapse_federation_admin.cli.exits import Exit, FailedError
from synapse_federation_admin.cli.options import Asked, command, name_argument
from synapse_federation_admin.cli.output import STYLES, grid, line, plain
from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording.diagnosis import SIGNS, STAGES, told

_STYLES = {**STYLES, "fail": "red", "skipped": "dim"}

_EXITS = {
    "ok": Exit.FINE,
    "degraded": Exit.FINE,
    "failing": Exit.DESTINATION_FAILS,
}

# What plugins of monitoring systems exit with.
_NAGIOS = {"ok": (0, "OK"), "degraded": (1, "WARNING"), "failing": (2, "CRITICAL")}
_NAGIOS_UNKNOWN = (3, "UNKNOWN")


@command()
@name_argument
@click.option("-v", "--verbose", is_flag=True, help="Tell what each stage has seen.")
@click.option(
    "--format",
    "check",
    type=click.Choice(("tap", "nagios")),
    help="Write a check: `tap` (Test Anything Protocol), a line for each stage; or"
    " `nagios`, one line, and the exit status is that of a monitoring plugin: 0 OK, 1"
    " WARNING, 2 CRITICAL, 3 UNKNOWN.",
)
def why(asked: Asked, name: str, verbose: bool, check: str | None) -> int:
    """Diagnose a server: why federation with it fails, and what to do.

    The server gets an empty transaction; here nothing is changed. The exit status is 0
    if requests get through, if not well, and 3 if they do not.
    """
    try:
        with asked.out.waiting(f"Looking at the way to {name}"):
            found = asked.client.post(f"/destinations/{segment(name)}/diagnose")
    except FailedError as e:
        if check != "nagios":
            raise
        click.echo(f"FEDERATION UNKNOWN - {line(e.message)}")
        return _NAGIOS_UNKNOWN[0]
    verdict = str(found.get("verdict"))
    if check == "nagios":
        status, word = _NAGIOS.get(verdict, _NAGIOS_UNKNOWN)
        click.echo(_nagios(found, word))
        return status
    if check == "tap":
        click.echo("\n".join(_tap(found)))
    else:
        asked.out.answer(found, lambda: asked.out.show(*diagnosis(found, verbose)))
    return _EXITS.get(verdict, Exit.FAILED)


def diagnosis(found: Json, verbose: bool = False) -> Iterator[RenderableType]:
    """Write a diagnosis for people: the sentence, the advice, the stages."""
    sign, look = {
        "ok": ("✓", "good"),
        "degraded": ("!", "warn"),
        "failing": ("✗", "bad"),
    }.get(str(found.get("verdict")), ("?", "muted"))
    head = f"{found.get('destination')}: {found.get('verdict')}"
    if kind := found.get("kind"):
        reason = found.get("reason")
        head += f" ({kind}{f', {reason}' if reason else ''})"
    yield Text.assemble((f"{sign} ", STYLES[look]), (str(line(head)), "bold"))
    yield Padding(plain(found.get("explanation", "")), (0, 0, 0, 2))
    if advice := found.get("advice"):
        yield Padding(plain(f"→ {advice}"), (0, 0, 0, 2))
    yield Text()
    stages = found.get("stages", ())
    if not verbose:
        yield grid(map(_stage, stages))
        return
    for stage in stages:
        yield grid([_stage(stage)])
        if findings := stage.get("findings"):
            seen = "\n".join(told(findings))
            yield Padding(plain(seen, "dim"), (0, 0, 0, 4))


def _stage(stage: Json) -> tuple[RenderableType, ...]:
    outcome = str(stage.get("outcome"))
    sign, look, _ = SIGNS.get(outcome, (outcome, "", ""))
    style = "dim" if look == "skipped" else ""
    name = str(stage.get("name"))
    took = stage.get("duration_ms")
    width = max(map(len, STAGES.values()))
    return (
        line(sign, _STYLES.get(look, "")),
        line(f"{STAGES.get(name, name):<{width}}", style),
        line(stage.get("message", ""), style),
        Text(duration(took) if took else "", "dim"),
    )


def _nagios(found: Json, word: str) -> str:
    # A bar would begin performance data.
    text = f"{found.get('destination')}: {found.get('explanation')}".replace("|", "¦")
    advice = str(found.get("advice") or "").replace("|", "¦")
    took = found.get("duration_ms", 0)
    return str(line(f"FEDERATION {word} - {text} {advice}".rstrip())) + (
        f" | duration={took}ms"
    )


def _tap(found: Json) -> Iterator[str]:
    stages = found.get("stages", ())
    yield "TAP version 13"
    yield f"1..{len(stages)}"
    for number, stage in enumerate(stages, 1):
        is_ok = stage.get("outcome") != "failed"
        name = str(stage.get("name"))
        # A number sign would begin a directive.
        message = str(stage.get("message", "")).replace("#", "♯")
        said = str(line(f"{STAGES.get(name, name)}: {message}"))
        skip = " # SKIP" if stage.get("outcome") == "skipped" else ""
        yield f"{'ok' if is_ok else 'not ok'} {number} - {said}{skip}"
        if not is_ok and found.get("advice"):
            yield f"# {line(found['advice'])}"
