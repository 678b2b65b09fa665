"""`python -I -S child.py PARENT COMMAND..`: becomes COMMAND, which the kernel kills when the process PARENT ends.

A program of its own and no `preexec_fn`: between fork and exec, code of a launcher that has threads may wait for ever
for a lock that one of them held.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); stays in force over exec

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the launcher ended before its server began")
    os.execv(sys.argv[2], sys.argv[2:])
