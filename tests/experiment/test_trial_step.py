"""What can't learn is refused before anything is trained, in one line: every method, with networks of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, data, models, train
from sftn_fast.config import Config, ConfigError, DataConfig
from sftn_fast.data import ImageData
from sftn_fast.distillers import registry
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.trial_step import try_jobs
from sftn_fast.utils import plugins

ODD = str(Path(__file__).parents[1] / "odd_networks.py")
NAMES = [name for name in registry.names() if "-" not in name]
ON_MAPS = {"ab", "at", "cat", "fitnet", "fsp", "ft", "kdsvd", "nst", "oh", "reviewkd", "simkd", "srrl", "uskd", "vid"}
ON_MAPS |= {"sdd", "wkd_f"}
ODD_PAIRS = [(odd, "resnet8") for odd in ("odd_one_stage", "odd_unused", "odd_weight_norm", "odd_qat")]
ODD_PAIRS += [("resnet8", odd) for odd in ("odd_one_stage", "odd_weight_norm", "odd_qat")]
PREACTS = {"ab", "oh", "reviewkd"}


@pytest.fixture(scope="module", autouse=True)
def odd_networks() -> Iterator[None]:
    """Registered for these tests alone: others go through all names there are."""
    before = set(models.names())
    plugins.load([ODD])
    yield
    for name in set(models.names()) - before:
        del models.registry._factories[name]


@pytest.fixture(scope="module")
def images() -> ImageData:
    config = DataConfig(name="fake", train_size=32, image_size=8)
    return data.build(config, seed=0, batch_size=16, device="cpu")


def parse(*options: str) -> Config:
    config, _ = cli.parse(["--config", "demo", "--seeds", "[0]", "--plugins", f"[{ODD}]", *options])
    experiment._checked_plan(config)  # which imports the plugin
    return config


def refused(images: ImageData, config: Config) -> str | None:
    """Why a run is refused, in one line; None where it is not."""
    try:
        try_jobs(config, experiment.plan(config), images)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def refused_methods(images: ImageData, student: str, teacher: str, names: Sequence[str] = NAMES) -> dict[str, str]:
    """The methods of ``names`` that can't teach ``student`` from ``teacher``, and why."""
    config, found = parse("--stages", "[distill,teacher]", "--student", student, "--teacher", teacher), {}
    for name in names:
        method = {"crd": "crd:negatives=4", "fsp": "fsp:variant=joint"}.get(name, name)
        reason = refused(images, replace(config, distill=method))
        if reason is not None:
            prefix = f"{method!r} can't teach {student} from {teacher}: "
            assert reason.startswith(prefix)
            found[name] = reason.removeprefix(prefix)
    return found


@pytest.mark.parametrize(("student", "teacher"), [("odd_tokens", "resnet8"), ("resnet8", "odd_tokens")])
def test_tokens(images: ImageData, student: str, teacher: str) -> None:
    """A transformer learns and teaches by what is not a map; a method that needs maps says so."""
    found = refused_methods(images, student, teacher)
    only_student = {"ofa"} if student == "odd_tokens" else set()  # which reads no map of the teacher
    assert set(found) == (ON_MAPS | only_student) & set(NAMES)
    assert all("its maps must be [N, C, H, W], and stage 1 of the" in reason for reason in found.values())


@pytest.mark.parametrize("pair", ODD_PAIRS)
def test_every_method_with_every_network(images: ImageData, pair: tuple[str, str]) -> None:
    """It trains for a step, or is refused for a reason of its own: every method with one stage, a third with others."""
    number = ODD_PAIRS.index(pair) % 3
    others = [name for i, name in enumerate(NAMES) if i % 3 == number or name in {*PREACTS, "fsp", "kdsvd"}]
    found = refused_methods(images, *pair, NAMES if "odd_one_stage" in pair else others)
    assert set(found) <= {*PREACTS, "cat", "fsp", "fitnet", "kdsvd", "uskd", "wkd_f"}
    assert "the side of the smaller last map" in found.get("cat", "the side of the smaller last map")
    assert "two pixels or more" in found.get("wkd_f", "two pixels or more")
    assert "two stages or more" in found.get("uskd", "two stages or more")
    assert all("pre-activations" in found[name] for name in PREACTS)
    assert "the same channels" in found["fsp"]
    assert "the same channels" in found["kdsvd"] or "two stages or more" in found["kdsvd"]
    assert "layer must be from 1 to 1" in found.get("fitnet", "layer must be from 1 to 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages [teacher,sftn] --teacher odd_tokens", "odd_tokens can't become a student-friendly teacher"),
        ("--stages [teacher,sftn] --student odd_tokens", "can't become a student-friendly teacher for odd_tokens: "),
        ("--stages [teacher,sftn] --student odd_one_stage", "has 1 stage; a branch needs a student of 2 or more"),
        ("--stages [teacher,sftn] --teacher odd_one_stage", "sftn.branch_stages must be distinct stages"),
        ("--stages [teacher] --teacher odd_deep", "odd_deep can't be trained on fake: "),
        ("--stages [student] --student odd_deep", "odd_deep can't be trained on fake: "),
        ("--stages [distill,teacher] --student odd_deep", "odd_deep can't run on images of 8 x 8 pixels"),
        ("--stages [collaborate] --student odd_deep", "odd_deep can't be trained on fake: "),
        ("--stages [student] --student odd_classes", "must give logits [4, 10], got [4, 12]"),
        ("--stages [teacher,distill] --teacher odd_classes", "must give logits [4, 10], got [4, 12]"),
        ("--stages [collaborate] --student odd_classes", "classes"),
        ("--stages [student] --student odd_frozen", "odd_frozen can't be trained on fake: "),
    ],
)  # fmt: skip
def test_refused(images: ImageData, options: str, message: str) -> None:
    reason = refused(images, parse(*options.split()))
    assert reason is not None and message in reason


@pytest.mark.parametrize(
    "options",
    [
        "--stages [collaborate] --student odd_tokens",
        "--stages [collaborate] --student odd_one_stage --collaborate.method kdcl",
        "--stages [collaborate] --collaborate.networks [odd_weight_norm,odd_qat,odd_tokens]",
        "--stages [teacher,distill] --route.anchors 2 --teacher odd_tokens --epochs 2",
        "--stages [teacher,sftn] --teacher odd_weight_norm --student odd_unused",
    ],
)
def test_trains(images: ImageData, options: str) -> None:
    assert refused(images, parse(*options.split())) is None


def test_layers_that_do_not_learn_are_named(images: ImageData) -> None:
    config = parse("--stages", "[student]", "--student", "odd_unused")
    (line,) = try_jobs(config, experiment.plan(config), images)
    assert line == (
        "stage student: 2 parameters get no gradient and stay as they are: model.unused.weight, model.unused.bias"
    )


def test_one_class_is_refused(images: ImageData) -> None:
    reason = refused(replace(images, num_classes=1), parse("--stages", "[student]"))
    assert reason == "data.name must be of two classes or more, got fake with 1"


def test_the_trial_leaves_no_trace(images: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    assert refused(images, parse("--teacher", "resnet14", "--distill", "crd:negatives=4")) is None
    assert torch.equal(torch.get_rng_state(), expected)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options",
    ["--teacher odd_tokens --distill at", "--student odd_deep", "--teacher odd_one_stage", "--student odd_classes"],
)
def test_the_command_line_says_it_in_one_line(options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16"
    output = tmp_path / "run"
    code = train.main([*fake.split(), *options.split(), "--plugins", f"[{ODD}]", "--output", str(output)])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not output.exists()
