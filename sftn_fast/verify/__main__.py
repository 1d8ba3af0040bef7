"""See :mod:`sftn_fast.data.verify`."""

import sys

from sftn_fast.data.verify import main
from sftn_fast.utils import program

if __name__ == "__main__":
    sys.exit(program.run(main, None, output_matters=True))
