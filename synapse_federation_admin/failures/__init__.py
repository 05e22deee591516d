# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail.

In the order in which to read:

    kinds, reasons: the causes, with what people are told of each
    classify: which cause an exception stands for; handshakes, responses and files know
        of TLS, of HTTP and of well-known files
    names, second_look: what is known before a request, and found out after it
    text, situation, together: words for a failure, for a server, and for all of them
    bounds: what comes from outside, as it may be told
"""
