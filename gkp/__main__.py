"""`python -m gkp` is the command line of `gkp.cli`."""

import sys

from gkp.cli import main

if __name__ == "__main__":
    sys.exit(main())
