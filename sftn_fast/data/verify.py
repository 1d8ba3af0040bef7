"""``python -m sftn_fast.data.verify ROOT``: which image files below a folder can't be decoded.

Decodes every one, over all cores, names those that fail on standard output, and lists them in ``ROOT/skip.txt``, which
``data.name=folder``, ``imagenet`` and ``tiny_imagenet`` then leave out. An older list is replaced, and removed where
all is well.
Exit code 0: all is well; 1: something was found; 2: the command line or the folder can't be used; 130: stopped by
Ctrl-C, which leaves an older list as it is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from sftn_fast.atomic import write_atomically
from sftn_fast.config import ConfigError, check
from sftn_fast.data.decode import find_fault, pillow
from sftn_fast.data.folders import SKIP_LIST, image_files
from sftn_fast.data.progress import Progress

CHUNK = 32  # files that a process takes at a time


def verify(root: Path, *, workers: int) -> tuple[int, dict[Path, str]]:
    """Decode all images below ``root``; returns how many there are, and what is wrong with each that fails.

    Raises:
        ConfigError: ``root`` is no folder or holds no images, Pillow is missing, or a process died.
    """
    check(root.is_dir(), "ROOT", str(root), "a folder of images")
    pillow()
    paths = image_files(root)
    check(bool(paths), "ROOT", str(root), "a folder that holds images")
    progress = Progress(f"checking images in {root}", len(paths))
    faults = {}
    for done, (path, fault) in enumerate(zip(paths, _faults(paths, workers), strict=True), start=1):
        if fault is not None:
            faults[path] = fault
            # A name may hold bytes that are no UTF-8.
            print(f"{path.relative_to(root)}: {fault}".encode(errors="backslashreplace").decode(), flush=True)
        progress.update(done)
    return len(paths), faults


def _faults(paths: list[Path], workers: int) -> Iterator[str | None]:
    # Processes, so that a decoder that crashes does not take this one along; forked from a server that has imported
    # everything, because each would need seconds for it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([find_fault.__module__])
    count = min(workers, -(-len(paths) // CHUNK))
    # Ctrl-C is for this process to answer.
    with ProcessPoolExecutor(
        count, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            yield from pool.map(find_fault, map(str, paths), chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise ConfigError(
                "a process died while decoding, of a decoder's crash or for want of memory: try fewer --workers"
            ) from error


def write_skip_list(root: Path, faults: dict[Path, str]) -> None:
    """Make ``root/skip.txt`` say what ``faults`` holds; no faults, no file.

    Raises:
        ConfigError: It can't be written.
    """
    file = root / SKIP_LIST
    lines = "".join(f"{path.relative_to(root).as_posix()}\n" for path in faults)
    try:
        if faults:
            write_atomically(file, lines.encode("utf-8", "surrogateescape"))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{file} can't be written ({error})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Check the folder that ``argv`` names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sftn_fast.data.verify", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of images, of whatever layout")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: the cores, %(default)s)"
    )
    given = parser.parse_args(argv)
    root = given.root.expanduser().absolute()
    try:
        check(given.workers >= 1, "workers", given.workers, "at least 1")
        count, faults = verify(root, workers=given.workers)
        write_skip_list(root, faults)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped by SIGINT; {root / SKIP_LIST} was not written", file=sys.stderr)
        return 128 + signal.SIGINT
    listed = f"; they are listed in {root / SKIP_LIST}" if faults else ""
    print(f"{count:,} images, {len(faults):,} can't be decoded{listed}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
