"""`python -m lsm` is `lsm`."""

import sys

from lsm.cli import main

if __name__ == "__main__":
    sys.exit(main())
