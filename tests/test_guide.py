"""README and docs/, run as they are written: every command and snippet, one after the other, in one folder.

The commands are not shortened. The machinery below them is, so that a run still checks, records and compares what the
command says. Data sets are small stand-ins, images have 8 to 27 pixels, batches at most 16 images, and the deepest
networks are as shallow as the shallowest of their family. A training takes one step. Of several seeds the first is
trained, except for two that share runs/demo, and of many methods every eighth. Only the first run draws its pictures.

The snippets of a page share their names, as in one Python session. The runs share the working folder, as in one
checkout. The test fails if a command changes what an earlier one finished, or is refused because of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from pages import Block

from sftn_fast import cli, data, engine, models, ops, report
from sftn_fast.data import sampler, source, verify
from sftn_fast.data.source import Images, Source
from sftn_fast.distillers import registry
from sftn_fast.engine import threads
from sftn_fast.experiment import dry_run
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.plan import Job
from sftn_fast.experiment.worker import Worker

NOT_RUN = {
    r"make \w+": "sets up a virtual environment; the command of `make demo` is run first of all",
    r"source \.venv": "activates that environment",
    r"pip install": "changes the environment",
    r"torchrun ": "starts processes; tests/engine/test_torchrun.py has such runs",
    r"#!/bin/bash\n#SBATCH": "needs SLURM",
    r".*cuda:0": "needs GPUs",
    r".*\bimagenet": "needs ImageNet",
    r".*fashion_mnist_matrix": "tests/cli/test_recipes.py runs this recipe, and `matrix` is run here",
    r".*_pretrained true": "needs a download",
    r".*--logger (wandb|mlflow|trackio)": "needs libraries that the tests do not depend on; tests/loggers has them",
    r".*--data\.loader dali": "starts DALI's threads; tests/test_train_on_files.py has such runs",
}
"""Patterns of commands that are not run, and the reasons. Those of `python -m sftn_fast` are parsed."""
ELSEWHERE = {"docs/guide/own-loop.md": "tests/distillers/test_without_trainer.py, which starts its two processes"}
"""Pages with snippets that another test runs."""
SHALLOW = {"resnet32x4": "resnet8x4", "vgg13": "vgg8"}
"""Networks built with the stages of another one of the same widths and fewer layers."""
MISSING_PACKAGES = ("lightning", "accelerate", "onnx", "onnxscript", "torchao")
"""Optional packages. A snippet that imports one is skipped if it is not installed."""


@pytest.fixture
def checkout(tmp_path, monkeypatch, forgotten_plugins, parsed_once, rendered):
    """Make a working folder with images, teachers of each kind, and small stand-ins for data sets and networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    number_of_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shorten(monkeypatch)
    stand_in(monkeypatch)
    leave_images(tmp_path / "my_images")
    torch.manual_seed(0)
    teacher = models.build("resnet32x4", num_classes=100)
    torch.save({"epoch": 240, "model": teacher.state_dict()}, "ckpt_epoch_240.pth")
    models.save(models.build("wrn_16_2", num_classes=10, in_channels=1), "trained")
    Path("trained/model.safetensors").rename("teacher.safetensors")
    Path("trained/config.json").unlink()
    yield tmp_path
    torch.set_num_threads(number_of_threads)


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a training take one step of at most 16 images of at most 27 pixels, and train some of many jobs only."""
    fit, build, length, run, draw = (
        engine.fit,
        data.build,
        sampler.ShuffledSampler.__len__,
        Worker.run,
        report.writer.draw,
    )

    def one_epoch(*arguments: Any, epochs: int, on_epoch: Any = None, **others: Any) -> engine.FitResult:
        result = fit(*arguments, epochs=1, on_epoch=on_epoch, **others)
        if "snapshots" in getattr(on_epoch, "__qualname__", ""):
            for epoch in range(2, epochs + 1):  # snapshots of the teacher, for --route
                on_epoch(epoch)
        return result

    def pictures_of_the_first_run(*arguments: Any) -> Any:
        monkeypatch.setattr(report.writer, "draw", lambda folder, *_: ([], f"plot: {folder / 'report.png'}"))
        return draw(*arguments)

    def small_batches(config: Any, *, batch_size: int, **others: Any) -> data.ImageData:
        # Different sizes stay different: up to 512 pixels become 8 to 27.
        size = config.image_size and 8 + config.image_size // 26
        return build(dataclasses.replace(config, image_size=size), batch_size=min(batch_size, 16), **others)

    def some_jobs(worker: Worker, job: Job) -> None:
        seeds, both = worker.config.seeds, worker.root.name == "demo" and len(worker.config.seeds) == 2
        methods = worker.config.methods
        # Counted from the end: the student of the last method is the one that is exported.
        of_many = len(methods) > 8 and job.method in methods and methods[::-1].index(job.method) % 8
        if (both or job.seed == seeds[0]) and not of_many:
            run(worker, job)

    monkeypatch.setattr(Worker, "run", some_jobs)
    monkeypatch.setattr(report.writer, "draw", pictures_of_the_first_run)
    monkeypatch.setattr(engine, "fit", one_epoch)
    monkeypatch.setattr(data, "build", small_batches)
    monkeypatch.setattr(sampler.ShuffledSampler, "__len__", lambda self: min(1, length(self)))
    monkeypatch.setattr(threads, "AVAILABLE", 1)  # several threads wait for each other where other work runs
    monkeypatch.setattr(threads, "TIMED_STEPS", 1)
    monkeypatch.setattr(dry_run, "TIMED_STEPS", 1)
    monkeypatch.setattr(experiment, "_try_jobs", lambda *_: None)  # a step of what is trained for a step anyway
    # Processes that verify starts would import torch, each for seconds.
    monkeypatch.setattr(verify, "_faults", lambda paths, *_: map(verify.find_fault, map(str, paths)))


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put data sets with the right classes and channels and few test images, and shallow networks, in their places."""
    for deep, shallow in SHALLOW.items():
        monkeypatch.setitem(models.registry._factories, deep, models.registry._factories[shallow])
    source.names()  # all are registered
    for name, classes, channels, train in (
        ("digits", 10, 1, 1000),
        ("fashion_mnist", 10, 1, 10_000),
        ("cifar100", 100, 3, 200),
        ("stl10", 10, 3, 50),
    ):
        images, tests = make_images(train, classes, channels, 8), make_images(classes, classes, channels, 8)
        small = Source(name, classes, images, tests, (0.5,) * channels, (0.2,) * channels, 1, flip=name != "digits")
        monkeypatch.setitem(source._loaders, name, lambda config, small=small: small)


def make_images(count: int, classes: int, channels: int, size: int) -> Images:
    generator = torch.Generator().manual_seed(classes)
    pixels = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % classes)


def leave_images(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for split, count in (("train", 40), ("val", 4)):
        for number, name in enumerate(("bird", "cat", "dog")):
            path = folder / split / name
            path.mkdir(parents=True)
            for each in range(count):
                image.new("RGB", (32, 32), (80 * number, 6 * each, 90)).save(path / f"{each}.png")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_runs_in_one_checkout(checkout, monkeypatch, capsys):
    finished: dict[str, str] = {}
    run_command(Block("Makefile", 0, "sh", None, ""), demo_command(), monkeypatch)
    for page in pages.page_names():
        session: dict[str, Any] = {"__name__": "__main__"}
        for block in pages.blocks(page):
            if page in pages.SIGNATURES:
                continue
            if block.title:
                (checkout / block.title).write_text(block.text)
            elif block.language == "python" and page not in ELSEWHERE:
                run_snippet(block, session)
            elif block.language in ("sh", "bash"):
                for command in block.commands():
                    if reason_not_to_run(command) is None:
                        run_command(block, command, monkeypatch)
                        finished = check_results(block, command, checkout, finished)
        capsys.readouterr()
    assert len(finished) > 20


def demo_command() -> str:
    """Return the command of `make demo`."""
    makefile = (pages.ROOT / "Makefile").read_text()
    found = re.search(r"^demo:.*\n\t\$\(PY\) (.*)$", makefile, flags=re.MULTILINE)
    assert found
    return f"python {found[1]}".replace(" $(DEVICES)", "")  # one process runs all, since others would not be shortened


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def run_command(block: Block, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    forget_plugins()
    assert words[:2] == ["python", "-m"] and words[2].split(".")[0] == "sftn_fast", f"{block.place}: {command}"
    # main() and not runpy, which would run a copy of the module, without the shortened machinery.
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        try:
            code = importlib.import_module(words[2]).main()
        except SystemExit as left:
            code = left.code
    assert not code, f"{block.place}: exit code {code} of {command}"


def forget_plugins() -> None:
    """Remove what plugins registered, as the end of a process does: each command and each session is one."""
    theirs = [name for name, factory in models.registry._factories.items() if is_foreign(factory)]
    for name in theirs:
        del models.registry._factories[name]
    for name, method in list(registry._methods.items()):
        if is_foreign(method):
            del registry._methods[name]
    checkout = str(Path.cwd())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(checkout):
            del sys.modules[name]


def is_foreign(registered: Any) -> bool:
    module = getattr(getattr(registered, "func", registered), "__module__", "")
    return not module.startswith("sftn_fast.")


def run_snippet(block: Block, session: dict[str, Any]) -> None:
    lacking = [name for name in MISSING_PACKAGES if imports(block.text, name) and not importlib.util.find_spec(name)]
    if not lacking:
        forget_plugins()
        with ops.backend("auto"):
            exec(compile("\n" * block.line + block.text, block.page, "exec"), session)


def imports(code: str, package: str) -> bool:
    return re.search(rf"^\s*(import|from) {package}\b", code, flags=re.MULTILINE) is not None


def check_results(block: Block, command: str, checkout: Path, before: dict[str, str]) -> dict[str, str]:
    """Check that all results of earlier commands are unchanged; return their checksums and those of the new ones."""
    now = {
        str(path.relative_to(checkout)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkout.glob("runs/**/result.json")
    }
    changed = [name for name, digest in before.items() if now.get(name) != digest]
    assert not changed, f"{block.place}: {command} changed {changed[0]} of an earlier command"
    return now


@pytest.mark.parametrize(("place", "argv"), pages.module_commands("sftn_fast.train"), ids=str)
def test_every_training_command_is_understood(place, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in pages.blocks(place.split(":")[0]):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    config, _ = cli.parse([word for word in argv if word not in (*cli.DRY_RUN, "--print_config", "--help")])
    assert config.epochs >= 1, place


def test_what_is_not_run_is_there():
    """Every pattern is needed by a command, and every block has a known language."""
    found = [block for page in pages.page_names() if page not in pages.SIGNATURES for block in pages.blocks(page)]
    commands = [command for block in found if block.language in ("sh", "bash") for command in block.commands()]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in commands), pattern
    assert {block.language for block in found if not block.title} <= {*pages.CODE, ""}
    assert sum(reason_not_to_run(command) is None for command in commands) >= 20


def test_site_builds(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "guide" / "own-method" / "index.html").is_file()


def test_every_page_is_in_the_navigation():
    named = set(pages.page_names())
    assert {f"docs/{path.relative_to(pages.ROOT / 'docs')}" for path in (pages.ROOT / "docs").rglob("*.md")} <= named
