"""Options of ``sftn verify``, known without importing torch, which decoding brings."""

from __future__ import annotations

import argparse

from sftn_fast.utils import program


def parser(description: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=program.name_of("verify"), description=description)
    parser.add_argument("root", metavar="ROOT", help="folder of images, in any layout")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--white", type=float, help="value of data.white in training, for images of more than 8 bits")
    return parser
