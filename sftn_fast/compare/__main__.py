"""See :mod:`sftn_fast.report.comparison`."""

import sys

from sftn_fast.compare import main

if __name__ == "__main__":
    sys.exit(main())
