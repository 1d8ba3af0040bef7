"""Entry point of ``python -m sftn_fast.report``."""

import sys

from sftn_fast.report import main

if __name__ == "__main__":
    sys.exit(main())
