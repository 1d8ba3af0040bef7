"""See :mod:`sftn_fast.report.comparison`."""

import sys

from sftn_fast.report.command import compare_main

if __name__ == "__main__":
    sys.exit(compare_main())
