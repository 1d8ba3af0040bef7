"""Random draws that depend on a key and on nothing else: no global state is read or moved."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream is a pure function of ``key``.

    The key is hashed to the 128 bits that Philox, a counter-based generator, takes: neighbouring keys such as
    ``(seed, epoch)`` and ``(seed, epoch + 1)`` give unrelated streams, and so do ``(1, 23)`` and ``(12, 3)``.
    """
    digest = blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
