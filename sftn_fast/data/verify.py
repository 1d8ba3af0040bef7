"""``python -m sftn_fast.data.verify ROOT``: find the image files below a folder that can't be decoded.

Decodes every image file, on all cores. Prints those that fail to standard output and lists them in ``ROOT/skip.txt``;
``data.name=folder``, ``imagenet`` and ``tiny_imagenet`` skip the files in that list. An older list is replaced, or
removed if every image can be decoded. Files and folders that are ignored because of their names are counted on standard
error. Exit code 0: every image can be decoded; 1: some can't; 2: the command line or the folder can't be used; 130:
stopped by Ctrl-C, which keeps an older list.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from sftn_fast.cli.verify_options import parser
from sftn_fast.config import ConfigError, check, check_path
from sftn_fast.data import decoder_processes, resources
from sftn_fast.data.decode import find_fault, pillow
from sftn_fast.data.folders import image_files
from sftn_fast.data.ignored_files import IgnoredFiles
from sftn_fast.data.skip_list import SKIP_LIST, write_names
from sftn_fast.utils import program
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar
from sftn_fast.utils.text import counted, escape

CHUNK = 32  # files per task of a process


def verify(root: Path, *, workers: int, white: float | None = None) -> tuple[int, dict[Path, str]]:
    """Decode all images below ``root``; return how many there are, and the error of each one that fails.

    Args:
        root: A folder.
        workers: Number of processes.
        white: ``data.white``, as in training.

    Raises:
        ConfigError: ``root`` is not a folder or has no images, Pillow is missing, or a process died.
    """
    check(root.is_dir(), "ROOT", str(root), "a folder of images")
    pillow()
    ignored = IgnoredFiles()
    paths = image_files(root, ignored)
    ignored.report(root)
    check(bool(paths), "ROOT", str(root), "a folder with images")
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
    # Processes, so that a crash of a decoder does not end this one. The imports take seconds: once, in the server.
    context = decoder_processes.start_context([find_fault.__module__])
    count = min(workers, -(-len(paths) // CHUNK))
    with ProcessPoolExecutor(
        count, context, initializer=_prepare_worker, initargs=(decoder_processes.scratch_folder(),)
    ) as pool:
        try:
            yield from pool.map(partial(find_fault, white=white, option="--white"), map(str, paths), chunksize=CHUNK)
        except BrokenProcessPool as error:
            raise ConfigError(
                "a process died while decoding: a decoder crashed, or memory ran out; try fewer --workers"
            ) from error


def _prepare_worker(scratch: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    decoder_processes.exit_with_parent(scratch)


def write_skip_list(root: Path, faults: dict[Path, str]) -> None:
    """Write the files in ``faults`` to ``root/skip.txt``, or remove the list if there are none.

    Raises:
        ConfigError: It can't be written.
    """
    file = root / SKIP_LIST
    try:
        for unfinished in root.glob(f".{SKIP_LIST}.*.tmp"):  # of a check that was killed
            unfinished.unlink()
        if faults:
            write_atomically(file, write_names(path.relative_to(root).as_posix() for path in faults))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{file} can't be written ({error})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Check the folder that ``argv`` names, and return the exit code."""
    return program.run(_main, argv, output_matters=True)


def _main(argv: list[str]) -> int:
    given = parser(__doc__.split("\n\n", 1)[1]).parse_args(argv)
    try:
        check_path("ROOT", given.root)
        root = Path(given.root).expanduser().absolute()
        workers = resources.cores() if given.workers is None else given.workers
        check(workers >= 1, "--workers", workers, "at least 1")
        check(given.white is None or 0 < given.white < float("inf"), "--white", given.white, "a number greater than 0")
        count, faults = verify(root, workers=workers, white=given.white)
        write_skip_list(root, faults)
    except ConfigError as error:
        return program.fail(error, 2)
    except KeyboardInterrupt:
        print(f"stopped by SIGINT; {escape(Path(given.root) / SKIP_LIST)} was not written", file=sys.stderr)
        return 128 + signal.SIGINT
    listed = f"; they are listed in {escape(root / SKIP_LIST)}" if faults else ""
    print(f"{counted(count, 'image')}, {len(faults):,} can't be decoded{listed}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
