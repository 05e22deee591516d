# SPDX-License-Identifier: Apache-2.0
"""Measure what the module costs a homeserver that federates.

Real requests: 50 messages a second to 50 servers, half of which fail, to a stock
Synapse and to one with the module, in turn. Writes its section of the page.

    python bench/traffic.py
    python bench/traffic.py --database sqlite --seconds 40 --output /tmp/traffic.md

The second takes eleven minutes.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from attrs import frozen
from copies import say
from idle import CONFIGS
from probe import Health
from report import TRAFFIC, section_options, write_section

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fleet import Fleet, select

_TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}

_SERVERS = 50
_PER_SECOND = 50
# Until what Synapse and the module do after a start is over, and what they put off.
_WARM_UP_S = 10
_AFTER_S = 5
# Polled rarely enough that it takes no part of the CPU time.
_HEALTH_PAUSE_S = 0.05

# What fails is tried again by each message, and not once in ten minutes: the interval
# is well below the second between two of them. Else chance decides on how much is done.
_RETRY_MS = 200
_FEDERATION = {
    "federation": {
        "max_long_retries": 0,
        "max_long_retry_delay": _RETRY_MS,
        "destination_min_retry_interval": _RETRY_MS,
        "destination_max_retry_interval": _RETRY_MS,
    },
}


@frozen
class Run:
    """What came of the load on one homeserver."""

    cpu_s: float
    health_ms: list[float]
    failures: int
    """How many were recorded."""


def main() -> None:
    """Measure, print and write."""
    parser = section_options(__doc__, runs=(5, "of each"), seconds=(60, "of each run"))
    parser.add_argument("--database", action="append", choices=[*_TITLES])
    options = parser.parse_args()
    lines = [_INTRODUCTION.format(runs=options.runs, seconds=options.seconds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = CertificateAuthority(folder)
        for database in options.database or _TITLES:
            runs: dict[str, list[Run]] = {config: [] for config in CONFIGS}
            for number in range(options.runs):
                # The other one first each time: a machine gets warm.
                for config in sorted(CONFIGS, reverse=number % 2 == 0):
                    say(f"traffic: {_TITLES[database]}, {config}, run {number + 1}")
                    at = folder / f"{database}-{config}-{number}"
                    runs[config].append(
                        _run(at, certificates, config, database, options.seconds)
                    )
            lines += _table(_TITLES[database], runs)
    write_section(options.output, TRAFFIC, lines)


def _run(
    folder: Path,
    certificates: CertificateAuthority,
    config: str,
    database: str,
    seconds: int,
) -> Run:
    half = _SERVERS // 2
    with (
        Fleet(certificates, up=half, dropping=half // 2, refusing=half // 2 + 1) as f,
        SynapseServer(
            folder,
            certificates,
            postgres=database == "postgres",
            module_config=CONFIGS[config],
            extra_config=_FEDERATION,
        ) as synapse,
    ):
        client = synapse.client(synapse.create_user("admin", admin=True))
        process = psutil.Process(synapse.process("main").pid)
        _send(client, f.names, _WARM_UP_S)
        health = Health(synapse.layout.client_ports["main"], _HEALTH_PAUSE_S)
        begun, cpu_s = time.monotonic(), sum(process.cpu_times()[:2])
        _send(client, f.names, seconds)
        ended = time.monotonic()
        time.sleep(_AFTER_S)
        cpu_s = sum(process.cpu_times()[:2]) - cpu_s
        health.stop()
        failures = 0
        if CONFIGS[config] is not None:
            count = "SELECT COALESCE(SUM(count), 0) FROM federation_admin_failures"
            failures = int(select(synapse, count)[0][0])
    return Run(cpu_s, health.between(begun, ended), failures)


def _send(client: MatrixClient, names: list[str], seconds: int) -> None:
    """Send to-device messages at an even pace, to one server after the other."""
    begun = time.monotonic()
    for number in range(seconds * _PER_SECOND):
        time.sleep(max(0.0, begun + number / _PER_SECOND - time.monotonic()))
        client.send_to_device(f"@x:{names[number % len(names)]}", "x")


def _table(title: str, runs: dict[str, list[Run]]) -> list[str]:
    lines = []
    stock = statistics.median(run.cpu_s for run in runs["stock"])
    for config, of in runs.items():
        cpu_s = statistics.median(run.cpu_s for run in of)
        p99_ms = statistics.median(
            statistics.quantiles(run.health_ms, n=100)[-1] for run in of
        )
        failures = statistics.median(run.failures for run in of)
        spread = f"{min(run.cpu_s for run in of):.1f} to {max(r.cpu_s for r in of):.1f}"
        lines.append(
            f"| {title}, {config} | {cpu_s:.2f} s ({spread}) | {cpu_s / stock:.3f} "
            f"| {p99_ms:.1f} ms | {failures or '-'} |"
        )
    return lines


_INTRODUCTION = f"""\
{_PER_SECOND} messages a second to {_SERVERS} servers, half of which fail, for
{{seconds}} s: medians of {{runs}} runs in turn, one process each. What fails is tried
again by each message. CPU time is that of Synapse's process.

| | CPU | x stock | `/health`, 99th percentile | failures recorded |
|---|---:|---:|---:|---:|"""

if __name__ == "__main__":
    main()
