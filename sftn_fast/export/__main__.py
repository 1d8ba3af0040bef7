"""``python -m sftn_fast.export STUDENT --format FORMAT``."""

import sys

from sftn_fast.export.command import main

if __name__ == "__main__":
    sys.exit(main())
