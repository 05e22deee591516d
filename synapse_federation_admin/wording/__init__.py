# SPDX-License-Identifier: Apache-2.0
"""Words that the console and the command line share.

Nothing here needs Synapse: the command line runs where it is not installed, too.

    amounts: numbers, and texts that are too long
    causes, diagnosis: why servers fail
    servers, verdict: how one of them is, our senders, and whether it is us
    outcomes: what was done, and what came of it
"""
