"""``python -m sparsitywatch``: the command line."""

import sys

from sparsitywatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
