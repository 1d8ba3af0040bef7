"""See :mod:`sftn_fast.data.verify`."""

import sys

from sftn_fast.verify import main

if __name__ == "__main__":
    sys.exit(main())
