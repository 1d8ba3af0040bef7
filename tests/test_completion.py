"""Completion on the command line of a shell: the script, run by the shell itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sftn_fast.__main__ import VERBS
from sftn_fast.cli import recipe_names
from sftn_fast.cli.network_names import NETWORKS
from sftn_fast.completion import main
from sftn_fast.completion.command import SHELLS
from sftn_fast.distillers import spec

COMPLETE = """
while IFS= read -r line; do
    IFS=$'\\x1f' read -r -a COMP_WORDS <<< "$line"
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    COMP_WORDS[COMP_CWORD]="${COMP_WORDS[COMP_CWORD]%.}"  # the dot keeps an empty last word
    COMPREPLY=()
    _sftn
    echo "${COMPREPLY[*]}"
done
"""


def script_for(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([shell]) == 0
    return capsys.readouterr().out


def test_bash_completes_verbs_options_choices_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "runs").mkdir()
    wanted = {
        "sftn ": {*VERBS},
        "sftn tr": {"train", "transfer"},
        "sftn train --data.lo": {"--data.loader"},
        "sftn train --data.loader ": {"auto", "memory", "dali", "torchvision"},
        "sftn train --engine.tensorboard ": {"true", "false"},
        "sftn train --stages s": {"sftn", "soteacher", "student"},
        "sftn train --stages teacher st": {"student"},
        "sftn train --stages teacher student --epo": {"--epochs"},
        "sftn train --stages teacher --export b": {"best"},
        "sftn train --logger wandb ml": {"mlflow"},
        "sftn train --plugins mine.yaml mi": {"mine.yaml", "mine.txt"},
        "sftn train --export = b": {"best"},  # as bash divides --export=b
        "sftn train --export =": {"last", "best", "ema"},
        "sftn train --export=b": {"--export=best"},  # where = divides no words
        "sftn train --export=": {"--export=last", "--export=best", "--export=ema"},
        "sftn train --export = best --data.loader = mem": {"memory"},
        "sftn train --stages = teacher st": {"student"},
        "sftn train --config = mi": {"mine.yaml"},
        "sftn export x --format = on": {"onnx", "onnx-legacy"},
        "sftn transfer --plugins x ru": {"runs"},
        "sftn train --teacher ": {*NETWORKS},
        "sftn train --epochs 3 --data.name cifar": {"cifar10", "cifar100"},
        "sftn train --method ": {*spec.known()},
        "sftn train --config cifar100_v": {name for name in recipe_names() if name.startswith("cifar100_v")},
        "sftn train --config mi": {"mine.yaml"},
        "sftn train --resume m": {"must", "mine.yaml", "mine.txt"},
        "sftn train --teacher_file mi": {"mine.yaml", "mine.txt"},
        "sftn transfer ru": {"runs"},
        "sftn report ru": {"runs"},
        "sftn compare x ru": {"runs"},
        "sftn predict x ru": {"runs"},
        "sftn predict x mine.txt --to": {"--top"},
        "sftn export x --format o": {"onnx", "onnx-legacy"},
        "sftn verify ru": {"runs"},
        "sftn completion ": {*SHELLS},
        "sftn info --he": {"--help"},
    }
    lines = "".join("\x1f".join(f"{words}.".split(" ")) + "\n" for words in wanted)
    script = tmp_path / ".script"
    script.write_text(script_for("bash", capsys) + COMPLETE)
    run = subprocess.run(["bash", str(script)], input=lines, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and run.stderr == ""
    assert dict(zip(wanted, (set(line.split()) for line in run.stdout.splitlines()), strict=True)) == wanted


def test_zsh_accepts_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_for("zsh", capsys)
    assert '"--export=[Weights that become the exported student]:export:(last best ema)"' in script
    stages = "stages:(teacher early soteacher sftn student distill collaborate)"
    assert f'"--stages=[Stages to run]:{stages}::{stages}::{stages}' in script
    for word in (*VERBS, "--data.loader", "wrn_40_2", "cifar100", "onnx-legacy", *recipe_names()):
        assert word in script
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    setup = "autoload -Uz compinit && compinit -u -D\n"
    (tmp_path / "script").write_text(f"{setup}{script}\necho ${{_comps[sftn]}}\n")
    run = subprocess.run(["zsh", "-f", str(tmp_path / "script")], capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (["_shtab_sftn"], "")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fish"])
    assert stopped.value.code == 2 and "fish" in capsys.readouterr().err
