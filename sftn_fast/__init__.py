"""Student-friendly teachers and knowledge distillation, with fused C++/CUDA losses."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # python -m sftn_fast.PROGRAM is starting; never the case for an import
    from sftn_fast.utils import program

    program.exit_on_interrupt()
    del program
