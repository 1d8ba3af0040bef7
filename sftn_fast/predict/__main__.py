"""``python -m sftn_fast.predict STUDENT IMAGE ...``."""

import sys

from sftn_fast.predict.command import main

if __name__ == "__main__":
    sys.exit(main())
