# SPDX-License-Identifier: Apache-2.0
"""nginx, as `contrib/proxy/nginx.conf` has operators configure it."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import find_nginx

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import ChildProcess, tail, wait_until

_LOCATION = Path(__file__).parent.parent / "contrib" / "proxy" / "nginx.conf"

# What Synapse's own documentation has.
_CLIENT = """
location ~ ^(/_matrix|/_synapse/client) {
    proxy_pass UPSTREAM;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Host $host:$server_port;
}
"""

_HTTP = """
USER
daemon off;
worker_processes 1;
error_log error.log;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
SERVERS
}
"""


def listener(port: int) -> dict[str, Any]:
    """Return the listener of a Synapse that stands behind a proxy."""
    return {
        "type": "http",
        "port": port,
        "bind_addresses": ["127.0.0.1"],
        "x_forwarded": True,
        "resources": [{"names": ["client"]}],
    }


@contextmanager
def reverse_proxy(
    folder: Path,
    certificates: CertificateAuthority,
    address: str,
    upstreams: Mapping[int, tuple[str, str]],
) -> Iterator[None]:
    """Have nginx terminate TLS at some ports of an address.

    Args:
        folder: For its files; made.
        certificates: Who issues its certificate.
        address: Where it listens.
        upstreams: By port, where it passes requests on to, and more configuration.
    """
    program = find_nginx()
    assert program, "there is no nginx"
    folder.mkdir()
    files = certificates.files(address)
    location, count = re.subn("allow .*?;", "allow 127.0.0.0/8;", _LOCATION.read_text())
    assert count == 1
    servers = []
    for port, (upstream, more) in upstreams.items():
        inner, count = re.subn(r"proxy_pass \S+;", f"proxy_pass {upstream};", location)
        assert count == 1
        servers.append(
            f"server {{ listen {address}:{port} ssl; server_name {address};\n"
            f"ssl_certificate {files.certificate};\n"
            f"ssl_certificate_key {files.private_key};\n{more}\n"
            f"{inner}\n{_CLIENT.replace('UPSTREAM', upstream)} }}"
        )
    # Else root's nginx answers as somebody who may not read what is in the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    text = _HTTP.replace("USER", user).replace("SERVERS", "\n".join(servers))
    (folder / "nginx.conf").write_text(text)
    process = ChildProcess(
        "nginx",
        [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"],
        output=folder / "nginx.out",
        folder=folder,
    )
    process.start()

    def answers() -> bool:
        assert process.running, tail(folder / "nginx.out")
        with socket.socket() as probe:
            return probe.connect_ex((address, next(iter(upstreams)))) == 0

    try:
        wait_until(answers, "nginx to listen", 60)
        yield
    finally:
        process.stop()
