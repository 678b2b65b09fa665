"""`python -I -S child.py PARENT SIGNAL COMMAND..`: becomes COMMAND, which gets SIGNAL when the process PARENT ends.

A program of its own and no `preexec_fn`: between fork and exec, code of a process that has threads may wait for ever
for a lock that one of them held.

Where SIGNAL is SIGKILL, COMMAND cannot end what it has started. So a process that waits for its end kills its group
then: a stub of tritonserver that waits for that inside C, with Python's lock, would never notice.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); stays in force over exec, but not over fork


def tell_me(number: int) -> None:
    """This process gets the signal `number` when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def guard(leader: int) -> None:
    """Kills the process group of `leader`, this process's parent, once that has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    tell_me(signal.SIGTERM)
    while os.getppid() == leader:
        signal.sigwait({signal.SIGTERM})
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    number, itself = int(sys.argv[2]), os.getpid()
    tell_me(number)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("its parent ended before it began")
    if number == signal.SIGKILL and os.getpgrp() == itself and os.fork() == 0:
        guard(itself)
    os.execv(sys.argv[3], sys.argv[3:])
