"""``python -m sftn_fast.data.verify ROOT``: which image files below a folder can't be decoded.

Decodes every one, over all cores, names those that fail on standard output, and lists them in ``ROOT/skip.txt``, which
``data.name=folder``, ``imagenet`` and ``tiny_imagenet`` then leave out. An older list is replaced, and removed where
all is well. What is not looked into, because its name is no image's or a system's, is counted on standard error.
Exit code 0: all is well; 1: something was found; 2: the command line or the folder can't be used; 130: stopped by
Ctrl-C, which leaves an older list as it is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from sftn_fast.config import ConfigError, check
from sftn_fast.data import children, machine
from sftn_fast.data.decode import find_fault, pillow
from sftn_fast.data.folders import image_files
from sftn_fast.data.left_out import LeftOut
from sftn_fast.data.skip_list import SKIP_LIST, write_names
from sftn_fast.utils import program
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar
from sftn_fast.utils.text import escape

CHUNK = 32  # files that a process takes at a time


def verify(root: Path, *, workers: int, white: float | None = None) -> tuple[int, dict[Path, str]]:
    """Decode all images below ``root``; returns how many there are, and what is wrong with each that fails.

    Args:
        root: A folder.
        workers: Processes.
        white: ``data.white``, which training will be given too.

    Raises:
        ConfigError: ``root`` is no folder or holds no images, Pillow is missing, or a process died.
    """
    check(root.is_dir(), "ROOT", str(root), "a folder of images")
    pillow()
    left_out = LeftOut()
    paths = image_files(root, left_out)
    left_out.report(root)
    check(bool(paths), "ROOT", str(root), "a folder that holds images")
    label = f"checking images in {root}"
    faults = {}
    with ProgressBar(len(paths), start=None, label=label, unit="images", line_interval=LINE_INTERVAL) as progress:
        for done, (path, fault) in enumerate(zip(paths, _faults(paths, workers, white), strict=True), start=1):
            if fault is not None:
                faults[path] = fault
                progress.clear()
                print(escape(f"{path.relative_to(root)}: {fault}"), flush=True)
            progress.update(done)
    return len(paths), faults


def _faults(paths: list[Path], workers: int, white: float | None = None) -> Iterator[str | None]:
    # Processes, so that a decoder that crashes does not take this one along; forked from a server that has imported
    # everything, because each would need seconds for it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([find_fault.__module__])
    count = min(workers, -(-len(paths) // CHUNK))
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(children.scratch_folder(),)) as pool:
        try:
            yield from pool.map(partial(find_fault, white=white), map(str, paths), chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise ConfigError(
                "a process died while decoding, of a decoder's crash or for want of memory: try fewer --workers"
            ) from error


def _begin(scratch: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the parent to answer
    children.leave_with_parent(scratch)


def write_skip_list(root: Path, faults: dict[Path, str]) -> None:
    """Make ``root/skip.txt`` say what ``faults`` holds; no faults, no file.

    Raises:
        ConfigError: It can't be written.
    """
    file = root / SKIP_LIST
    try:
        for unfinished in root.glob(f".{SKIP_LIST}.*.tmp"):  # by a check that was killed
            unfinished.unlink()
        if faults:
            write_atomically(file, write_names(path.relative_to(root).as_posix() for path in faults))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{file} can't be written ({error})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Check the folder that ``argv`` names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sftn_fast.data.verify", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder of images, of whatever layout")
    parser.add_argument(
        "--workers", type=int, default=machine.cores(), help="processes (default: the cores, %(default)s)"
    )
    parser.add_argument("--white", type=float, help="what data.white will be: of images of more than 8 bits")
    given = parser.parse_args(argv)
    root = given.root.expanduser().absolute()
    try:
        check(given.workers >= 1, "workers", given.workers, "at least 1")
        check(given.white is None or 0 < given.white < float("inf"), "white", given.white, "a number greater than 0")
        count, faults = verify(root, workers=given.workers, white=given.white)
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
    sys.exit(program.run(main, None, output_matters=True))
