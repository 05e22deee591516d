# SPDX-License-Identifier: Apache-2.0
"""Every limit on what the module takes, holds, asks and tells, in one list."""

# -- under way at once, in one process -------------------------------------------------

# Contacts after resets, and as many for reconnects; the others wait for their turn.
# Somebody who resets ten thousand destinations in a loop must not open ten thousand
# connections.
CONTACTS = 50

# Contacts of a run. One that hangs does not hold the others up; so many that hang do.
CONTACTS_OF_A_RUN = 400

# Diagnoses. Who waits for a turn for too long is told to come again.
DIAGNOSES = 4

# Servers whose addresses alone are looked for, for the correlation of failures.
ADDRESS_SEARCHES = 5

# Servers of which it is looked up in one round where they lead, for the same.
CORRELATED_SERVERS = 50

# Servers that fail with a certificate that is not trusted of which it is read who has
# issued it.
UNTRUSTED_SERVERS = 2000

# Owners of failing servers, and kinds of their failures, that the correlation reads.
CORRELATED_OWNERS = 20_000

# Look-ups of host names, each of which takes a thread and a descriptor: for contacts,
# and as many for diagnoses. While the DNS is silent a thread hangs for as long as the
# system's resolver waits, and so a run goes on no faster.
DNS_LOOKUPS = 64

# Requests that cost a pass over the table of destinations.
TABLE_PASSES = 2

# -- held in memory --------------------------------------------------------------------

# Contacts after resets that wait for their turn, and destinations that were woken of
# which it is not known yet what comes of it.
WAITING_CONTACTS = 10_000
WOKEN = 10_000

# Ends of what was cleared, for who waits for one.
KEPT_ENDS = 1000

# Failures and successes of real traffic that wait to be written.
WAITING_RECORDS = 20_000

# Destinations of which it is known when it was written that they answer. Of those
# beyond, that is written more often.
ANSWERING_DESTINATIONS = 50_000

# Failures that are looked at twice, at once, and of which it is known what that found.
SECOND_LOOKS = 5
LOOKED_AT = 2000

# Names of rows of Synapse's that are none of servers.
INVALID_NAMES = 10_000

# Where pages of v1's lists ended.
CURSORS = 4096

# Servers of which it is known what is in place of their well-known file, and how much
# of it is kept.
BAD_FILES = 2000
BAD_FILE_BYTES = 4096

# Diagnoses: the last of each server.
KEPT_DIAGNOSES = 100

# Rooms of servers of which it took long to read who is in them.
KEPT_ROOMS = 20_000

# What came of forms of the console, and for how long.
KEPT_ANSWERS = 50
KEPT_ANSWERS_MS = 600_000

# Failing destinations that are looked at to find those that matter most, and pairs of
# these and a room that they share.
ATTENTION_NAMES = 200_000
ATTENTION_PAIRS = 500_000

# Of how many of them, those with most, it is kept what waits, and which rooms they
# share: how many local users each affects is counted when somebody asks.
KEPT_WAITING = 20_000
KEPT_SHARING = 20_000

# -- done in one turn of the reactor ---------------------------------------------------

# For how long rows and pages are made before others have their turn.
TURN_MS = 2

# Queues of Synapse's sender, one for each destination, that are counted.
QUEUES_COUNTED = 2000

# -- done in one transaction -----------------------------------------------------------

RECORDS_WRITTEN = 1000

# Outages that one transaction ends.
OUTAGES_ENDED = 2000

# Rows of what is older than it is kept for.
ROWS_PRUNED = 500

DESTINATIONS_QUEUED = 200
CLEARED_LOOKED_AT = 100
RESULTS_RECORDED = 100
BACKOFFS_CAPPED = 200
DESTINATIONS_CHECKED = 200
DESTINATIONS_FORGOTTEN = 20

# -- kept in tables --------------------------------------------------------------------

# Events that are counted of those to which a federation sender has not come.
EVENTS_COUNTED = 10_000

# Rooms that wait for a destination, the oldest, of which it is looked at whether what
# waits is still there to be sent.
WAITING_CHECKED = 10_000

# How long a destination has not failed when the next outage of it begins: what fails
# anew before is part of the last one. Longer than the job takes to end an outage. And
# how many begin in 24 hours; what fails anew then is part of the last one, too.
OUTAGES_APART_MS = 600_000
OUTAGES_A_DAY = 6

# -- taken from admins -----------------------------------------------------------------

# A longer list of names is for a filter, or for several runs.
NAMES_OF_A_RUN = 50_000

# For how long it has been failing what a filter forgets without `force`.
DEAD_FOR_MS = 30 * 86_400_000

# Rows of a page of v1: a longer one is written while it is read.
PLAIN_PAGE = 1000

# Long answers that are written while they are read; each takes some megabytes. How many
# others wait for their turn, and for how many seconds. Seconds for which a client may
# take nothing of one; then its connection is cut: sooner, if others wait, and it is by
# that much later than who takes so many bytes in a second.
LONG_ANSWERS = 6
LONG_ANSWERS_WAITING = 20
LONG_ANSWER_WAITS_S = 5
CLIENT_PAUSE_S = 300
CLIENT_PAUSE_WHILE_FULL_S = 15
CLIENT_BYTES_PER_S = 16 * 1024

# Query parameters; bytes of a body, and of one with a list of names; and what else than
# names is in either: to parse, or to refuse, more would hold everybody up.
QUERY_PARAMETERS = 100
BODY_BYTES = 64 * 1024
NAMES_BODY_BYTES = 2 * 1024 * 1024
FORM_BYTES = 64 * 1024
BODY_PARTS = 1000

# -- taken from other servers ----------------------------------------------------------

# Bytes that one connection brings in, of an answer about the version, and of the body
# of an error. A real answer takes some 10 KB, most of it certificates.
CONNECTION_BYTES = 256 * 1024
VERSION_BYTES = 64 * 1024
ERROR_BYTES = 16 * 1024

# Seconds that a connection of a contact lasts: the longest timeout is a minute, once
# for the headers and once for the body.
CONTACT_CONNECTION_S = 150

# Bytes of an answer of this homeserver's own authentication service, and the seconds
# that it has for it.
SERVICE_BYTES = 64 * 1024
SERVICE_S = 20

# How often signing in that was begun may go on, in a second and at once, by address.
GOING_ON_HZ = 2
GOING_ON_BURST = 60

# Bytes of a cookie, name and value, that every browser keeps (RFC 6265, 6.1).
COOKIE_BYTES = 4096

# Servers that SRV records lead to, which are tried; hosts that a diagnosis looks up;
# and records and addresses that it tells.
SRV_SERVERS = 8
DIAGNOSED_HOSTS = 8
TOLD_SERVICES = 50
TOLD_ADDRESSES = 50
TOLD_BLOCKED = 3

# Addresses of one host name that are passed on, since Synapse looks each of them up in
# its IP blocklist at once; and those that a diagnosis connects to. A hostile name has
# thousands.
ADDRESSES_OF_A_HOST = 100
DIAGNOSED_ADDRESSES = 12

# How long a diagnosis waits for each further answer of the DNS, where that fails, to
# tell why; and how many aliases it follows, from one to the next.
DNS_ANSWER_MS = 1500
ALIASES = 4

# Signing keys that are told, that are read, and that are looked for in Synapse's
# tables: a server has one, or two.
TOLD_KEYS = 20
READ_KEYS = 500
STORED_KEYS = 200

# Names that are told of a certificate, and errors of one chain.
CERTIFICATE_NAMES = 20
CERTIFICATE_ERRORS = 8

# -- texts, in characters --------------------------------------------------------------

# The longest name that a server can have, with its port. Synapse takes longer ones from
# whoever makes them up; they lead nowhere, and PostgreSQL takes them into no index that
# has more in it.
SERVER_NAME = 261

# To what a well-known file may delegate: a longer name leads nowhere.
DELEGATED_NAME = 300

# A text in which a remote server has a say: a word, a line, and a line of the log; what
# it says of its software; and what a certificate says of who issued it.
WORD = 100
TEXT = 300
LOGGED = 300
SOFTWARE = 100
ISSUER = 150

# From when on it is told that a certificate ends soon (of one that lives for as long as
# those that are issued for six days, in the last third of its life), and that an answer
# is slow.
ENDS_SOON_MS = 7 * 86_400_000
SHORT_LIVED_MS = 6 * 86_400_000
SLOW_MS = 5000

# A process that sends and is behind by so long is told as that: one that keeps up takes
# less, and one that hangs is known as gone only after a minute.
BEHIND_MS = 15_000

# A sentence for people; a fact in it; and how many names one tells.
SENTENCE = 160
FACT = 50
NAMES_IN_A_SENTENCE = 3

# -- told ------------------------------------------------------------------------------

# Hosts in the summary of a stage; causes of one type in a correlation.
TOLD_FINDINGS = 3
TOLD_CAUSES = 10

# Changes of each sort, and runs among them.
TOLD_CHANGES = 200
TOLD_RUNS = 20

# Support contacts of a server.
TOLD_CONTACTS = 10

# Kinds of failures in a message to the admins of a server.
TOLD_FAILURES = 3

# Failing destinations that matter most.
TOLD_ATTENTION = 50

# Local users of one shared room; rooms in the refusal to forget a destination.
TOLD_USERS = 10
TOLD_ROOMS = 5
