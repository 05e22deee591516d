# SPDX-License-Identifier: Apache-2.0
"""Measure what the module costs a homeserver that federates.

Real requests: 50 messages a second to 50 servers, half of which fail. A stock Synapse
and one with the module run at the same time, and the load goes from one to the other
every few seconds: whatever else the machine does falls on both. Writes its section of
the page.

    python bench/traffic.py
    python bench/traffic.py --database sqlite --seconds 40 --output /tmp/traffic.md

The second takes twenty minutes.
"""

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen
from copies import say
from idle import CONFIGS
from probe import Health, cpu_s
from report import TRAFFIC, section_options, write_section

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fleet import Fleet, select

_TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}

_SERVERS = 50
_PER_SECOND = 50
# How long the load stays with one of the two.
_SLICE_S = 10
# Until what Synapse and the module do after a start is over, and what the module does
# once for servers that begin to fail; and what they put off, after each slice.
_WARM_UP_S = 10
_SETTLED_S = 75
_AFTER_S = 4
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
                say(f"traffic: {_TITLES[database]}, run {number + 1}")
                # The other one is first each time.
                order = sorted(CONFIGS, reverse=number % 2 == 0)
                at = folder / f"{database}-{number}"
                for config, run in _run(
                    at, certificates, order, database, options.seconds
                ).items():
                    runs[config].append(run)
            lines += _table(_TITLES[database], runs)
    write_section(options.output, TRAFFIC, lines)


def _run(
    folder: Path,
    certificates: CertificateAuthority,
    order: list[str],
    database: str,
    seconds: int,
) -> dict[str, Run]:
    half = _SERVERS // 2
    with (
        Fleet(certificates, up=half, dropping=half // 2, refusing=half // 2 + 1) as f,
        ExitStack() as stack,
    ):
        synapses = {
            config: stack.enter_context(
                SynapseServer(
                    folder / config,
                    certificates,
                    postgres=database == "postgres",
                    module_config=CONFIGS[config],
                    extra_config=_FEDERATION,
                )
            )
            for config in order
        }
        clients = {
            config: synapse.client(synapse.create_user("admin", admin=True))
            for config, synapse in synapses.items()
        }
        healths = {
            config: Health(synapse.layout.client_ports["main"], _HEALTH_PAUSE_S)
            for config, synapse in synapses.items()
        }
        for client in clients.values():
            _send(client, f.names, _WARM_UP_S)
        time.sleep(_SETTLED_S)
        pids = {config: one.process("main").pid for config, one in synapses.items()}
        spent_s = dict.fromkeys(order, 0.0)
        slices: dict[str, list[tuple[float, float]]] = {config: [] for config in order}
        for number in range(max(1, seconds // _SLICE_S)):
            for config in reversed(order) if number % 2 else order:
                begun, before_s = time.monotonic(), cpu_s(pids[config])
                _send(clients[config], f.names, _SLICE_S)
                slices[config].append((begun, time.monotonic()))
                time.sleep(_AFTER_S)
                spent_s[config] += cpu_s(pids[config]) - before_s
        for health in healths.values():
            health.stop()
        return {
            config: Run(
                spent_s[config],
                [
                    ms
                    for begun, ended in slices[config]
                    for ms in healths[config].between(begun, ended)
                ],
                _failures(synapse) if CONFIGS[config] is not None else 0,
            )
            for config, synapse in synapses.items()
        }


def _failures(synapse: SynapseServer) -> int:
    """Return how many failures the module has recorded."""
    count = "SELECT COALESCE(SUM(count), 0) FROM federation_admin_failures"
    return int(select(synapse, count)[0][0])


def _send(client: MatrixClient, names: list[str], seconds: int) -> None:
    """Send to-device messages at an even pace, to one server after the other.

    What is late is not made up for: several messages to a server would be one request.
    """
    next_s = time.monotonic()
    for number in range(seconds * _PER_SECOND):
        time.sleep(max(0.0, next_s - time.monotonic()))
        next_s = time.monotonic() + 1 / _PER_SECOND
        client.send_to_device(f"@x:{names[number % len(names)]}", "x")


def _table(title: str, runs: dict[str, list[Run]]) -> list[str]:
    lines = []
    for config, of in runs.items():
        cpu_s = statistics.median(run.cpu_s for run in of)
        # Of the two in the same run.
        ratios = sorted(
            run.cpu_s / stock.cpu_s
            for run, stock in zip(of, runs["stock"], strict=True)
        )
        p99_ms = statistics.median(
            statistics.quantiles(run.health_ms, n=100)[-1] for run in of
        )
        failures = statistics.median(run.failures for run in of)
        times = f"{statistics.median(ratios):.3f}"
        if CONFIGS[config] is not None:
            times += f" ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(
            f"| {title}, {config} | {cpu_s:.2f} s | {times} "
            f"| {p99_ms:.1f} ms | {failures or '-'} |"
        )
    return lines


_INTRODUCTION = f"""\
{_PER_SECOND} messages a second to {_SERVERS} servers, half of which fail, for
{{seconds}} s: medians of {{runs}} runs. Both run at the same time, one process each,
and the load goes from one to the other every {_SLICE_S} s. What fails is tried again by
each message. CPU time is that of Synapse's process while it has the load, and for
{_AFTER_S} s after; in brackets, the smallest and the largest ratio of a run.

| | CPU | x stock | `/health`, 99th percentile | failures recorded |
|---|---:|---:|---:|---:|"""

if __name__ == "__main__":
    main()
