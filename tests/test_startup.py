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


def test_the_ops_add_nothing_to_torch():
    assert imported("import sftn_fast.ops") - imported("import torch") == {"sftn_fast"}
