# SPDX-License-Identifier: Apache-2.0
"""Why federation with a server fails: walks the way that a request takes.

In the order in which to read:

    diagnose: which stage waits for which. Each is in a file: well_known, addresses,
        connections, answers (version, clock), requests (keys, authenticated) and stored
        (sender, stored); tls is for connections
    way: what all of them need
    stages: what comes of one; findings, resolution: what was seen in it
    verdict, explained: what all of them mean together
    support, tell: whom to ask, and what to tell them
"""
