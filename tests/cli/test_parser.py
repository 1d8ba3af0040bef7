"""The command line: what it accepts, and that what it refuses costs one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sftn_fast import cli, train
from sftn_fast.config import ConfigError
from sftn_fast.utils import plugins, safe_yaml
from sftn_fast.utils.checksummed import seal_text


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        cli.parse(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_arguments_means_the_demo() -> None:
    config, recipe = cli.parse([])
    assert (recipe, config.data.name, config.output) == ("demo", "digits", "runs/demo")


def test_options_override_the_recipe_wherever_they_stand() -> None:
    for argv in (
        ["--epochs", "3", "--config", "cifar100", "--data.download", "true"],
        ["--config=cifar100", "--epochs=3", "--data.download=true"],
    ):
        config, recipe = cli.parse(argv)
        assert (recipe, config.epochs, config.data.download, config.data.name) == ("cifar100", 3, True, "cifar100")


def test_a_recipe_overrides_its_base() -> None:
    base, _ = cli.parse(["--config", "cifar100"])
    pair, _ = cli.parse(["--config", "cifar100_vgg13_vgg8"])
    assert (pair.teacher, pair.student) == ("vgg13", "vgg8")
    assert (pair.optim, pair.data, pair.epochs) == (base.optim, base.data, base.epochs)


def test_a_dumped_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    config, _ = cli.parse(
        ["--seeds", "[4, 5]", "--stage_epochs", '{"sftn": 7}', "--sftn.branch_stages", "[1]", "--optim.lr", "1e-3"]
    )
    path = tmp_path / "with space ü.yaml"
    path.write_text(cli.dump(config))
    assert cli.load(path) == config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--epochs", "ten"], ["epochs", "ten", "int"]),
        (["--epochs", "0"], ["epochs", "at least 1", "0"]),
        (["--epoch", "3"], ["--epoch"]),
        (["--optim.lr", ".nan"], ["optim.lr", "nan"]),
        (["--optim.lr", "-1"], ["optim.lr", "-1"]),
        (["--optim.lr", "fast"], ["optim.lr", "fast"]),
        (["--optim.milestones", "[5, 400]", "--optim.schedule", "milestones"], ["optim.milestones", "400"]),
        (["--optim.milestones", "[5, 4]"], ["optim.milestones", "increasing"]),
        (["--optim.accumulate", "0"], ["optim.accumulate", "at least 1"]),
        (["--optim.accumulate", "5", "--optim.batch_size", "64"], ["optim.accumulate", "divisor", "64", "5"]),
        (["--optim.accumulate", "8", "--optim.batch_size", "8"], ["optim.accumulate", "2 images or more"]),
        (["--optim.lr_scale", "sqrt"], ["optim.lr_scale", "none or linear", "sqrt"]),
        (["--optim.base_batch_size", "0"], ["optim.base_batch_size", "at least 1"]),
        (["--gather", "rkd"], ["gather", "rkd"]),
        (["--engine.amp", "off"], ["engine.amp", "off", "fp32, bf16, fp16"]),
        (["--engine.amp", "false"], ["engine.amp"]),
        (["--sftn.temperature", "-4"], ["sftn.temperature", "-4"]),
        (["--sftn.temperature", ".inf"], ["sftn.temperature", "inf"]),
        (["--distill", "kd=0.9:temperature=-4"], ["temperature", "-4"]),
        (["--distill", "kd=.nan"], ["kd", "nan"]),
        (["--distill", "telepathy"], ["telepathy", "kd"]),
        (["--data.name", "mnist"], ["data.name", "mnist", "digits"]),
        (["--data.image_size", "4"], ["data.image_size", "4"]),
        (["--stages", "[teacher, students]"], ["stages", "students"]),
        (["--seeds", "[1, 1]"], ["seeds", "distinct"]),
        (["--seeds", "[-1]"], ["seeds"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "demo"]),
        (["--config"], ["config"]),
        (["stray"], ["stray", "--config"]),
        (["--lr", "0.1"], ["unknown option --lr", "--optim.lr"]),
        (["--seed=3"], ["unknown option --seed", "--seeds"]),
        (["--nothing.like.it", "3"], ["--nothing.like.it", "--help"]),
        (["--seeds", "three"], ["seeds must be a list", "'three'"]),
        (["--optim.lr", "0,1"], ["optim.lr must be a number or null, got '0,1'"]),
        (["--stage_epochs", "teacher=3"], ["stage_epochs must be keys and values", "teacher=3"]),
        (["--devices", "some"], ["devices must be all or a whole number", "or a list"]),
        (["--data.auto_augment", "augmix"], ["data.auto_augment must be one of none, randaugment, trivialaugment"]),
        (["--data.auto_augment", "randaugment", "--data.randaugment_magnitude", "31"], ["from 0 to 30", "31"]),
        (["--data.auto_augment", "randaugment", "--data.randaugment_ops", "0"], ["randaugment_ops", "from 1 to 14"]),
        (["--data.randaugment_ops", "3"], ["data.randaugment_ops must be null with data.auto_augment=none", "3"]),
        (["--data.random_erasing", "1.5"], ["data.random_erasing", "from 0 to 1", "1.5"]),
        (["--data.flip", "maybe"], ["data.flip must be true or false or null, got 'maybe'"]),
    ],
)
def test_refused_on_the_command_line(argv: list[str], words: list[str]) -> None:
    message = refusal(*argv)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: blue\n", ["colour"]),
        ("optim:\n  learning_rate: 0.1\n", ["learning_rate"]),
        ("epochs: ten\n", ["epochs", "ten"]),
        ("engine:\n  amp: off\n", ["engine.amp"]),
        ("optim:\n  lr: .nan\n", ["optim.lr", "nan"]),
        ("teacher: [resnet8\n", ["YAML"]),
        ("- a\n- b\n", ["keys and values"]),
        ("", ["keys and values"]),
        ("base: nowhere\n", ["nowhere"]),
        ("base: 3\n", ["base", "3"]),
        ("method: crd\n", ["method", "distill"]),
        ("base: demo\nbeta: 0.8\n", ["beta", "distill"]),
        ("dry_run: true\n", ["dry_run", "command line"]),
    ],
)
def test_refused_in_a_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    message = refusal("--config", str(path))
    assert all(word in message for word in words), message


def test_a_recipe_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"base: {path}\n")
    assert "back to itself" in refusal("--config", str(path))


@pytest.mark.parametrize("name", ["../outside", "recipes/../../outside", "sub/recipe"])
def test_a_recipes_name_leads_to_no_other_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = tmp_path / "recipes"
    for folder in (recipes, recipes / "sub"):
        folder.mkdir()
        (folder / "recipe.yaml").write_text("base: null\nteacher: resnet8\n")
    (tmp_path / "outside.yaml").write_text("teacher: resnet8\n")
    monkeypatch.setattr(cli.parser, "RECIPES", recipes)
    assert cli.recipe_path("recipe") == recipes / "recipe.yaml"
    assert name in refusal("--config", name)


def test_a_python_tag_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"teacher: !!python/object/apply:os.system ['touch {marker}']\n")
    assert "python" in refusal("--config", str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--colour", "blue"],
        ["--epochs", "ten"],
        ["--epochs", "0"],
        ["--sftn.temperature", "-4"],
        ["--distill", "kd:temperature=-4"],
        ["--optim.milestones", "[400]", "--optim.schedule", "milestones"],
        ["--optim.lr", ".nan"],
        ["--engine.amp", "off"],
        ["--config", "nowhere.yaml"],
        ["--config", "python-tag.yaml"],
        ["--config", "unknown-key.yaml"],
        ["--resume", ""],
    ],
    ids=" ".join,
)
def test_a_bad_configuration_is_exit_code_2_and_one_line(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("python-tag.yaml").write_text("teacher: !!python/object/apply:os.mkdir ['ran']\n")
    Path("unknown-key.yaml").write_text("base: demo\noptim:\n  learning_rate: 0.1\n")
    assert train.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python-tag.yaml", "unknown-key.yaml"]


def run_train(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sftn_fast.train", *argv], capture_output=True, text=True)


def test_a_refusal_is_exit_code_2_and_one_line() -> None:
    done = run_train("--epochs", "ten")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_names_every_key_and_does_without_torch() -> None:
    done = run_train("--help")
    assert done.returncode == 0
    for key in ("--teacher", "--optim.lr", "--sftn.kl_weight", "--engine.amp", "--data.download", "--print_config"):
        assert key in done.stdout
    probe = """
import sys
from sftn_fast.train import main
try:
    main(["--help"])
finally:
    assert "torch" not in sys.modules
"""
    silent = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert silent.returncode == 0, silent.stderr


def test_print_config_gives_a_recipe_that_parses(tmp_path: Path) -> None:
    done = run_train("--config", "fashion_mnist", "--epochs", "2", "--print_config")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "printed.yaml"
    path.write_text(done.stdout)
    assert cli.load(path) == cli.parse(["--config", "fashion_mnist", "--epochs", "2"])[0]


@pytest.mark.parametrize(
    ("options", "distill"),
    [
        ("--method crd", "crd"),
        ("--method=at", "at,kd=1"),
        ("--method hint", "fitnet,kd=1"),
        ("--distill kd -r 0.1 -a 0.9 -b 0", "ce=0.1,kd=0.9"),
        ("--distill hint -a 0 -b 100", "ce=1,fitnet=100"),
        ("--distill crd -r 1 -a 1 -b 0.8", "ce=1,kd=1,crd=0.8"),
        ("--distill abound --gamma 1 --alpha 0 --beta 1", "ce=1,ab=1"),
        ("--distill attention=10,kd=2", "attention=10,kd=2"),
    ],
)
def test_repdistillers_options_and_the_papers_settings(options, distill):
    assert cli.parse(options.split())[0].distill == distill


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method nonsense", "method must be one of ab, at"),
        ("--method crd --distill kd", "give one of the two"),
        ("-r 1", "need --distill"),
        ("--distill kd=1,crd -b 2", "must be one method of"),
        ("--distill kd -r much", "invalid float value: 'much'"),
        ("--method crd --methods [kd]", "methods can't be combined with distill or method"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        cli.parse(options.split())


def test_one_method_takes_the_place_of_a_recipes_many() -> None:
    matrix = cli.parse(["--config", "matrix"])[0]
    assert len(matrix.methods) == 5 and matrix.seeds == (0, 1, 2)
    config = cli.parse(["--method", "pkt", "--config", "matrix"])[0]
    assert (config.distill, config.methods) == ("pkt,kd=1", ())


def test_a_pair_stands_for_its_recipe() -> None:
    short, name = cli.parse(["--config", "vgg13_vgg8"])
    assert name == "vgg13_vgg8" and short == cli.parse(["--config", "cifar100_vgg13_vgg8"])[0]


@pytest.mark.parametrize("devices", [3, "all", ("cuda:0", "cuda:1")])
def test_devices_are_read_as_they_were_written(devices, tmp_path) -> None:
    text = f"[{','.join(devices)}]" if isinstance(devices, tuple) else str(devices)
    config = cli.parse(["--devices", text])[0]
    assert config.devices == devices
    path = tmp_path / "config.yaml"
    path.write_text(cli.dump(config))
    assert cli.load(path) == config


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_a_layout_is_read_as_it_was_written(text, value, tmp_path) -> None:
    config = cli.parse(["--engine.channels_last", text])[0]
    assert config.engine.channels_last == value and type(config.engine.channels_last) is type(value)
    path = tmp_path / "config.yaml"
    path.write_text(cli.dump(config))
    assert cli.load(path) == config


@pytest.mark.parametrize(
    ("options", "compiled"), [([], False), (["--compile"], True), (["--engine.compile=true"], True)]
)
def test_compile(options, compiled, tmp_path) -> None:
    config = cli.parse(options)[0]
    assert config.engine.compile is compiled
    path = tmp_path / "config.yaml"
    path.write_text("compile: true\n" if compiled else "base: demo\n")
    assert cli.parse(["--config", str(path)])[0].engine.compile is compiled


@pytest.mark.parametrize("option", ["--engine.channels_last=sometimes", "--engine.compile=often"])
def test_a_layout_or_a_compiler_that_there_is_not(option) -> None:
    with pytest.raises(ConfigError, match=option.removeprefix("--").partition("=")[0]):
        cli.parse([option])


BOTH = "distill can't be combined with methods"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill: kd=1,at=1000\nmethods: [kd]\n", BOTH),
        ("base: demo\nmethods: [kd, at]\ndistill: kd\n", BOTH),
        ("output: ''\n", "output must be a path, got ''"),
        ("base: demo\noutput: ' '\n", "output must be a path, got ' '"),
        ("stages: [teacher, teacher]\n", "stages must be distinct"),
    ],
)
def test_a_recipe_is_refused_like_a_command_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    said = refusal("--config", str(path))
    assert said.startswith(f"{path}: {message}")
    if "output" in text or "distill" in text:  # also where it is another one's base
        (tmp_path / "other.yaml").write_text("base: mine.yaml\noutput: x\n")
        assert refusal("--config", str(tmp_path / "other.yaml")) == said


def test_the_last_of_distill_and_methods_counts(tmp_path: Path) -> None:
    one, many, none = (tmp_path / f"{name}.yaml" for name in ("one", "many", "none"))
    one.write_text("base: many.yaml\ndistill: at,kd=1\n")
    many.write_text("methods: [kd, crd]\n")
    none.write_text("methods: []\ndistill: crd\n")
    config, _ = cli.parse(["--config", str(one)])
    assert (config.distill, config.methods) == ("at,kd=1", ())
    assert cli.parse(["--config", str(one), "--config", str(many)])[0].methods == ("kd", "crd")
    assert cli.parse(["--config", str(one), "--methods", "kd", "at"])[0].methods == ("kd", "at")
    assert cli.parse(["--config", str(none)])[0].distill == "crd"


def test_a_run_of_several_methods_leaves_a_recipe_that_parses(tmp_path: Path) -> None:
    config, path = cli.parse(["--methods", "kd", "at,kd=1"])[0], tmp_path / "config.yaml"
    path.write_text(cli.dump(config))
    assert "distill:" not in path.read_text() and cli.load(path) == config
    old = safe_yaml.dump(cli.to_dict(config))  # earlier versions wrote the unused key as well
    path.write_text(seal_text(old))
    assert cli.load(path) == config


def test_a_base_is_looked_for_beside_its_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes, here = tmp_path / "recipes", tmp_path / "here"
    for folder, epochs in ((recipes / "more", 1), (recipes, 2), (here, 3)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "base.yaml").write_text(f"epochs: {epochs}\n")
    monkeypatch.chdir(here)
    (here / "only.yaml").write_text("epochs: 4\n")
    (here / "demo").write_text("epochs: 5\n")
    mine = recipes / "mine.yaml"
    expected = {"base.yaml": 2, "more/base.yaml": 1, "../here/base.yaml": 3, "only.yaml": 4, str(here / "base.yaml"): 3}
    for base, epochs in {**expected, "demo": cli.parse([])[0].epochs}.items():
        mine.write_text(f"base: {base}\n")
        for name in (str(mine), "../recipes/mine.yaml"):
            assert cli.parse(["--config", name])[0].epochs == epochs, base
    mine.write_text("base: nowhere.yaml\n")
    assert f"relative to {recipes} or to the working folder" in refusal("--config", str(mine))
    mine.write_text("base: ../recipes/mine.yaml\n")
    assert "back to itself" in refusal("--config", str(mine))


def test_other_paths_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept as they are, and opened from there."""
    mine, here = tmp_path / "recipes" / "mine.yaml", tmp_path / "here"
    here.mkdir()
    mine.parent.mkdir()
    mine.write_text("plugins: [a.py]\nteacher_file: b\noutput: c\nresume: d\ndata: {root: e}\nsftn: {init: f}\n")
    monkeypatch.chdir(here)
    config, _ = cli.parse(["--config", str(mine)])
    assert (config.plugins, config.teacher_file, config.output, config.resume) == (("a.py",), "b", "c", "d")
    assert (config.data.root, config.sftn.init) == ("e", "f")
    (mine.parent / "a.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=f"there is no such file: {here / 'a.py'}"):
        plugins.load(config.plugins)


def test_one_option_given_in_two_ways() -> None:
    assert "compile can't be combined with engine.compile" in refusal("--compile", "--engine.compile", "false")
