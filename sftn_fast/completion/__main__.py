"""Entry point of ``python -m sftn_fast.completion``."""

import sys

from sftn_fast.completion import main

if __name__ == "__main__":
    sys.exit(main())
