# SPDX-License-Identifier: Apache-2.0
"""Host names that only the playground's own Synapse knows.

Synapse runs in a mount namespace of its own, in which /etc/hosts is a file of ours and
nobody else is asked. Nothing outside of it changes.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# What the library that resolves names reads, but for /etc/hosts.
_FILES = {
    "nsswitch.conf": "hosts: files\n",
    # For what asks a resolver by itself: nobody is there.
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}

# A change of who a process is, as in a namespace of users, takes away the signal that
# ends it together with the process that started it.
_SCRIPT = """
folder=$1; shift
for name in hosts nsswitch.conf resolv.conf; do
    mount --bind "$folder/$name" "/etc/$name" || exit 1
done
exec setpriv --pdeathsig KILL "$@"
"""


class Names:
    """Host names, and the address of each."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        """Write the files.

        Args:
            folder: for the files; made if there is none.
            addresses: by host name.
        """
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._hosts = folder / "hosts"
        for name, text in _FILES.items():
            (folder / name).write_text(text)
        text = "127.0.0.1 localhost\n"
        self._positions: dict[str, int] = {}
        for name, address in addresses.items():
            self._positions[name] = len(text)
            text += f"{address} {name}\n"
        self._hosts.write_text(text)

    @property
    def wrapper(self) -> list[str]:
        """The command that starts the one behind it where the names are known."""
        own = [] if os.geteuid() == 0 else ["--map-root-user"]
        script = ["sh", "-c", _SCRIPT, "sh", str(self._folder)]
        return ["unshare", *own, "--mount", *script]

    def can_be_used(self) -> bool:
        """Tell whether this machine lets us do it: some containers do not."""
        try:
            done = subprocess.run(  # noqa: S603
                [*self.wrapper, "true"], check=False, capture_output=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def know(self, name: str, is_known: bool) -> None:
        """Have a name lead to its address from now on, or to none."""
        # One byte: nobody ever reads half of the file.
        with self._hosts.open("r+b", buffering=0) as file:
            file.seek(self._positions[name])
            file.write(b"1" if is_known else b"#")
