"""Throughput of the ops, compared with the PyTorch code of the methods' authors.

``SFTN_CPU_CAPABILITY`` sets the level of vector instructions of both. PyTorch reads its own variable once, so it is set
here, before torch is imported.
"""

import os

if os.environ.get("SFTN_CPU_CAPABILITY"):
    os.environ.setdefault("ATEN_CPU_CAPABILITY", os.environ["SFTN_CPU_CAPABILITY"])
