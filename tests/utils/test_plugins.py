from __future__ import annotations

import re
import sys

import pytest

from sftn_fast import cli, distillers, models, train
from sftn_fast.config import ConfigError
from sftn_fast.utils import plugins

METHOD = """
import torch.nn.functional as F
from sftn_fast import distillers
from sftn_fast.distillers.method import Method

@distillers.register("{name}")
class Mine(Method):
    def loss(self, student, teacher, batch):
        return F.mse_loss(student.logits, teacher.logits)
"""

NETWORK = """
import torch
from sftn_fast import models

@models.register("counted")
def counted(**options):
    depths = torch.linspace(0.5, 1, 4)
    assert depths[-1].item() == 1  # as stochastic depth has it; a tensor without data could not tell
    return models.build("resnet8", **options)
"""


pytestmark = pytest.mark.usefixtures("forgotten_plugins")


def test_file_is_run_once(tmp_path):
    file = tmp_path / "with spaces.py"
    file.write_text(METHOD.format(name="once"))
    plugins.load([str(file)])
    plugins.load([str(file), str(file)])  # a second time it would find its name taken
    assert "once" in distillers.names()


def test_module_by_name(tmp_path, monkeypatch):
    (tmp_path / "module_by_name.py").write_text(METHOD.format(name="named"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load(["module_by_name"])
    assert "named" in distillers.names()


@pytest.mark.parametrize(
    ("plugin", "code", "says"),
    [
        ("missing.py", None, "there is no such file"),
        ("no_such_module_anywhere", None, "No module named"),
        ("broken.py", "def (", "SyntaxError"),
        ("raises.py", "raise RuntimeError('on purpose')", "RuntimeError: on purpose"),
        ("speaks.py", "raise RuntimeError('of\\n  several lines')", "RuntimeError: of several lines"),
        ("leaves.py", "raise SystemExit(0)", "SystemExit: 0"),
        ("taken.py", METHOD.format(name="kd"), "'kd' is registered already"),
    ],
)
def test_what_cannot_be_imported(plugin, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if code is not None:
        (tmp_path / plugin).write_text(code)
    with pytest.raises(ConfigError, match=rf"plugins: {plugin} can't be imported: .*{says}"):
        plugins.load([plugin])
    assert train.main(["--plugins", f"[{plugin}]", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_unknown_method_beside_a_plugin_is_refused(tmp_path, capsys):
    (tmp_path / "empty.py").touch()
    argv = ["--plugins", f"[{tmp_path / 'empty.py'}]", "--distill", "nothing=1", "--output", str(tmp_path / "run")]
    assert cli.parse(argv)[0].distill == "nothing=1"  # not known yet whether there is one
    assert train.main(argv) == 2
    assert "unknown method 'nothing'" in capsys.readouterr().err


def test_a_network_may_look_at_numbers_while_it_is_built(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    argv = f"--plugins [{tmp_path / 'mine.py'}] --student counted --stages [student] --epochs 1 --seeds [0]"
    data = "--data.name fake --data.train_size 16 --optim.batch_size 8"
    assert train.main([*argv.split(), *data.split(), "--output", str(tmp_path / "run")]) == 0
    assert models.load(tmp_path / "run" / "student").name == "counted"


@pytest.mark.parametrize(
    ("options", "processes"), [([], 1), (["--dry-run"], 1), (["--devices", "[cpu,cpu]"], 3)], ids=str
)
def test_every_process_runs_the_plugin_once(options, processes, tmp_path, capfd):
    (tmp_path / "mine.py").write_text(METHOD.format(name="mine") + "print('the plugin runs')\n")
    argv = f"--plugins [{tmp_path / 'mine.py'}] --distill mine=0.1 --stages [teacher,distill] --epochs 1 --seeds [0]"
    data = "--data.name fake --data.train_size 16 --optim.batch_size 8 --teacher resnet8"
    assert train.main([*argv.split(), *data.split(), *options, "--output", str(tmp_path / "run")]) == 0
    assert capfd.readouterr().out.count("the plugin runs") == processes
    assert (tmp_path / "run" / "seed0" / "distill-teacher" / "result.json").is_file() == ("--dry-run" not in options)


WHERE = """
from sftn_fast import distillers, models
from sftn_fast.distillers.method import Method

@models.register("of_{0}")
def network(**options):
    net = {1}
    return net

@distillers.register("by_{0}")
class By(Method):
    def loss(self, student, teacher, batch):
        return {2}
"""
NET = "models.build('resnet8', **options)"
MUST = r"loss\(\) \({file}, line 12\) must return one number, a tensor without dimensions such as a mean, got "


@pytest.mark.parametrize(
    ("name", "network", "loss", "says"),
    [
        ("gone", NET, "teacher.nosuch", r"AttributeError: .*'nosuch' \({file}, line 13\)$"),
        ("deep", NET, "batch.images.view(7).mean()", r"RuntimeError: .* \({file}, line 13\)$"),
        ("many", NET, "(student.logits - teacher.logits) ** 2", MUST + r"a tensor \[4, 10\]"),
        ("none", NET, "None", MUST + "NoneType"),
        ("single", NET, "student.logits.mean().view(1)", MUST + r"a tensor \[1\]"),
        ("empty", "None", "0", r"network 'of_empty' \({file}, line 5\) must return a StagedNet, got NoneType"),
        ("divided", "1 / 0", "0", r"ZeroDivisionError: division by zero \({file}, line 7\)$"),
    ],
)
def test_an_error_in_a_plugin_names_its_line(name, network, loss, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(WHERE.format(name, network, loss))
    student = "resnet8" if network == NET else f"of_{name}"
    stages = "teacher,distill" if network == NET else "student"
    argv = ["--plugins", "mine.py", "--distill", f"by_{name}", "--student", student, "--stages", stages]
    argv += ["--teacher", "resnet8", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
    assert train.main([*argv, "--output", "run"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and re.search(says.format(file=r"mine\.py"), message.strip()), message
    assert not (tmp_path / "run").exists()


def test_a_plugin_that_fails_to_import_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_of_a_plugin.py").write_text("\n\n1 / 0\n")
    (tmp_path / "mine.py").write_text("import sys\nsys.path.insert(0, '.')\nimport helper_of_a_plugin\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match=r"division by zero \(helper_of_a_plugin\.py, line 3\)$"):
        plugins.load(["mine.py"])
    (tmp_path / "other.py").write_text("import math\n\nmath.sqrt(-1)\n")
    with pytest.raises(ConfigError, match=r"ValueError: .* \(other\.py, line 3\)$"):
        plugins.load(["other.py"])
