"""``python -m sftn_fast.report FOLDER``."""

import sys

from sftn_fast.report import main

sys.exit(main())
