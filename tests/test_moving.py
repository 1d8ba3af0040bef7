"""docs/moving.md: every option of the peers' scripts has a line, and what a line names here exists."""

from __future__ import annotations

import re

import pages
import pytest

from sftn_fast import cli, models
from sftn_fast.compat import repdistiller
from sftn_fast.distillers import registry
from sftn_fast.distillers.options import options_of
from sftn_fast.distillers.spec import ALIASES


def words(text: str) -> list[str]:
    return text.split()


PAGE = (pages.ROOT / "docs" / "moving.md").read_text()

# The options of train_student.py and train_teacher.py, HobbitLong/RepDistiller at commit b84f547.
STUDENT = words(
    """
    print_freq tb_freq save_freq batch_size num_workers epochs init_epochs learning_rate
    lr_decay_epochs lr_decay_rate weight_decay momentum dataset model_s path_t distill trial gamma
    alpha beta kd_T feat_dim mode nce_k nce_t nce_m hint_layer
    """
)
METHODS = words(
    """
    kd hint attention similarity correlation vid crd kdsvd fsp rkd pkt abound factor nst
    """
)
TEACHER = ["model", "trial"]
IMPORTS = words(
    """
    DistillKL HintLoss Attention Similarity Correlation VIDLoss RKDLoss PKT ABLoss FactorTransfer
    KDSVD FSP NSTLoss CRDLoss
    """
)
# The groups and keys of mdistiller/engine/cfg.py, megvii-research/mdistiller at commit a08d46f.
CFG = words(
    """
    EXPERIMENT.PROJECT EXPERIMENT.NAME EXPERIMENT.TAG DATASET.TYPE DATASET.NUM_WORKERS DATASET.TEST
    DISTILLER.TYPE DISTILLER.TEACHER DISTILLER.STUDENT SOLVER.TRAINER SOLVER.BATCH_SIZE
    SOLVER.EPOCHS SOLVER.LR SOLVER.LR_DECAY_STAGES SOLVER.LR_DECAY_RATE SOLVER.WEIGHT_DECAY
    SOLVER.MOMENTUM SOLVER.TYPE SOLVER.DOT LOG.TENSORBOARD_FREQ LOG.SAVE_CHECKPOINT_FREQ LOG.PREFIX
    LOG.WANDB KD.TEMPERATURE KD.LOSS.KD_WEIGHT AT.P RKD.DISTANCE_WEIGHT RKD.ANGLE_WEIGHT RKD.PDIST
    FITNET.HINT_LAYER KDSVD.K OFD.CONNECTOR VID.EPS VID.INIT_PRED_VAR CRD.MODE CRD.FEAT.DIM
    CRD.FEAT.STUDENT_DIM CRD.FEAT.TEACHER_DIM CRD.NCE.K CRD.NCE.MOMENTUM CRD.NCE.TEMPERATURE
    REVIEWKD.REVIEWKD_WEIGHT REVIEWKD.WARMUP_EPOCHS REVIEWKD.SHAPES REVIEWKD.STU_PREACT DKD.ALPHA
    DKD.BETA DKD.T DKD.WARMUP *.CE_WEIGHT *.LOSS.FEAT_WEIGHT *.INPUT_SIZE
    """
)
CFG += words(
    """
    OUT_SHAPES IN_CHANNELS OUT_CHANNELS MAX_MID_CHANNEL
    """
)
TYPES = words(
    """
    KD AT RKD FITNET KDSVD OFD NST PKT SP VID CRD REVIEWKD DKD NONE
    """
)
NETWORKS = words(
    """
    resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4 ResNet50
    wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 vgg11 vgg13 vgg16 vgg19 MobileNetV2 ShuffleV1 ShuffleV2
    """
)


def rows(heading: str) -> list[tuple[str, str]]:
    """Left and right cells of the table below a heading."""
    part = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    part = re.split(r"^#", part, flags=re.MULTILINE)[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")][2:]
    return [(left.strip(), right.strip()) for left, right in lines]


RIGHT = [
    right
    for heading in ("Options of RepDistiller's train_student.py", "Options of RepDistiller's train_teacher.py")
    for _, right in rows(heading)
] + [right for _, right in rows("Keys of mdistiller")]


def left(heading: str) -> str:
    return " ".join(cell for cell, _ in rows(heading))


def test_no_option_of_the_student_script_is_missing():
    named = left("Options of RepDistiller's train_student.py")
    for option in STUDENT:
        assert re.search(rf"--{option}\b", named), option
    for method in METHODS:
        assert re.search(rf"[` ]{method}`", named), method


def test_no_option_of_the_teacher_script_is_missing():
    named = left("Options of RepDistiller's train_teacher.py")
    assert all(f"`--{option}`" in named for option in TEACHER)


def test_no_key_of_mdistiller_is_missing():
    named = left("Keys of mdistiller")
    for key in (*CFG, *TYPES):
        assert f"`{key}`" in named, key


@pytest.fixture
def options(capsys) -> set[str]:
    """Of the command line, as its help has them."""
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    return set(re.findall(r"--[\w.]+", capsys.readouterr().out))


@pytest.mark.parametrize("cell", RIGHT)
def test_what_a_line_names_exists(cell, options):
    named = re.findall(r"`(.+?)`", cell)
    for words in named:
        for option in re.findall(r"(?:^|\s)(--[\w.]+)", words):
            assert option in options, option
        method = re.fullmatch(r"(\w+):(\w+)(?:=.*)?", words)
        if method:
            assert method[2] in options_of(registry.find(method[1])), words
    assert named or re.match(r"the same|as above|not available|nothing:", cell), cell


def test_methods_are_available_or_said_not_to_be():
    for cell, right in rows("Options of RepDistiller's train_student.py"):
        if cell.startswith("`--distill"):
            for name in re.findall(r"`(?:--distill )?(\w+)`", cell):
                known = ALIASES.get(name, name) in registry.names()
                assert known != right.startswith("not available"), name


def test_the_import_lines_have_all_classes():
    lines = re.findall(r"^from sftn_fast\.compat\.repdistiller import (.*)$", PAGE, flags=re.MULTILINE)
    named = [name.strip() for line in lines for name in line.split(",")]
    assert sorted(named) == sorted(IMPORTS)
    assert all(hasattr(repdistiller, name) for name in IMPORTS)


def test_names_of_networks():
    assert set(NETWORKS) <= set(models.names())
    for theirs, ours in rows("Names of networks"):
        if ours.startswith("not available"):
            name = re.findall(r"`(.+?)`", theirs)[0]
            assert name not in models.names() or f"`{name}` is the one" in ours, name
        else:
            assert set(re.findall(r"`(.+?)`", ours)) <= set(models.names())
