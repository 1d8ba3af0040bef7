"""What a start imports: nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "torchvision", "nvidia", "sklearn", "matplotlib", "PIL", "scipy", "safetensors"}
AFTER = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
TRAIN = "import runpy; sys.argv = ['train', *{options}]\ntry: runpy.run_module('sftn_fast.train', run_name='__main__')"


def imported(code: str) -> set[str]:
    """Packages that are imported when ``code`` has run."""
    run = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{AFTER}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("options", [["--help"], ["--epochs", "-1"], ["--print_config"]])
def test_what_needs_no_network_imports_no_torch(options):
    found = imported(f"{TRAIN.format(options=options)}\nexcept SystemExit: pass")
    assert {"sftn_fast", "yaml"} <= found
    assert not found & HEAVY


def test_a_report_imports_no_torch():
    found = imported("import sftn_fast.report")
    assert {"sftn_fast", "jinja2"} <= found
    assert not found & HEAVY


def test_a_completion_and_a_comparison_import_no_torch():
    code = "import sftn_fast.compare, sftn_fast.completion\nassert sftn_fast.completion.main(['bash']) == 0"
    found = imported(code)
    assert {"sftn_fast", "shtab"} <= found
    assert not found & HEAVY


UNUSED = {"sklearn", "scipy", "pandas", "matplotlib", "torchvision", "nvidia", "timm", "tensorboard", "sympy"}
UNUSED |= {"torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "torch.onnx"}
DIGITS = """
from pathlib import Path
from sftn_fast import cli
from sftn_fast.experiment.run import run
options = ["--data.name", "digits", "--data.train_size", "40", "--teacher", "resnet8", "--student", "resnet8"]
options += ["--epochs", "1", "--seeds", "[0]", "--engine.threads", "1", "--output", {output!r}]
run(cli.parse([*options, *{more}])[0], report=lambda root: "")
assert len(list(Path({output!r}).glob("seed0/*/result.json"))) == 5
print(*sorted(set(sys.modules) & {unused}), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("more", [[], ["--optim.name", "adamw", "--optim.lr", "0.001"]])
def test_a_training_imports_only_what_it_uses(more, tmp_path):
    code = DIGITS.format(output=str(tmp_path / "run"), more=more, unused=UNUSED)
    run = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not set(run.stderr.split()) & UNUSED


def test_the_ops_add_nothing_to_torch():
    code = "import torch\nbefore = set(sys.modules)\nimport sftn_fast.ops\nadded = set(sys.modules) - before"
    packages = "added = {name.partition('.')[0] for name in added} - {name.partition('.')[0] for name in before}"
    imported(f"{code}\n{packages}\nassert added == {{'sftn_fast'}}, added")


ELSEWHERE = """
import os, signal, ssl, subprocess, multiprocessing.util, tempfile, asyncio  # whose own imports need the names below
for module, names in {
    os: ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "sched_getaffinity", "fork", "setsid", "fchmod", "renameat2"),
    signal: ("SIGUSR1", "SIGKILL", "SIGHUP"),
}.items():
    for name in names:
        module.__dict__.pop(name, None)
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["termios"] = None
"""


@pytest.mark.parametrize("module", ["atomic", "checksummed", "format", "launcher", "plugins", "program", "run_files"])
def test_the_utilities_import_where_unix_is_not(module):
    """Names that only Unix has are looked up where they are used."""
    assert "sftn_fast" in imported(f"{ELSEWHERE}\nimport sftn_fast.utils.{module}")


def test_help_works_where_unix_is_not():
    imported(f"{ELSEWHERE}\n{TRAIN.format(options=['--help'])}\nexcept SystemExit: pass")
