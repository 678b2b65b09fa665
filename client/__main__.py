"""Entry point of `python -m client`."""

import os
import sys

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC reports every server that goes away on stderr; so do we

from client.cli import main

if __name__ == "__main__":
    sys.exit(main())
