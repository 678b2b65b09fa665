"""`python -I -S child.py PARENT SIGNAL COMMAND..`: becomes COMMAND, which gets SIGNAL when the process PARENT ends.

A program of its own and no `preexec_fn`: between fork and exec, code of a process that has threads may wait for ever
for a lock that one of them held.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); stays in force over exec

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]))
    if os.getppid() != int(sys.argv[1]):
        sys.exit("its parent ended before it began")
    os.execv(sys.argv[3], sys.argv[3:])
