# SPDX-License-Identifier: Apache-2.0
"""What a process has imported of which Synapse's processes are forks: see `forked`.

That is Synapse, and neither this module, of which some tests start other versions, nor
a reactor, which a fork cannot take over. In its place stands, until a fork has made
one of its own, what Synapse's own tests with Complement put there.
"""

import gc
import importlib
import sys
from pathlib import Path

import shifted_clock
from twisted.internet.main import installReactor

# Before anything imports `time.time` by this name.
shifted_clock.install()

PATH = [entry for entry in sys.path if Path(entry) != Path(__file__).parent]

_starter = importlib.import_module("synapse.app.complement_fork_starter")
_reactor = _starter.ProxiedReactor()
installReactor(_reactor)
for _name in ("synapse.app.homeserver", "synapse.app.generic_worker"):
    importlib.import_module(_name)
# What is there is there for good, and is not looked through in each fork.
gc.collect()
gc.freeze()


def make_reactor() -> None:
    from twisted.internet.epollreactor import EPollReactor

    _reactor._install_real_reactor(EPollReactor())
