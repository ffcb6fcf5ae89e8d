"""``python -m seqconv``: the ``seqconv`` command."""

import sys

from seqconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
