"""How many files, and so connections, the process may have open."""

from __future__ import annotations

import resource

# Some systems allow a billion, for which nobody has the memory.
_MOST_FILES = 65_536
# What the server opens beside its connections: the model, libraries, pipes of decoding processes, logs.
_OWN_FILES = 256
_MOST_CONNECTIONS = 4096


def raise_limit() -> None:
    """As many open files as the system lets this process have; the usual soft limit of 1,024 is for old programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_allowed() -> int:
    """Connections that fit beside what else is open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(64, min(_MOST_CONNECTIONS, soft - _OWN_FILES))
