"""Files of weights from other projects, and files that must not be loaded as weights."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sftn_fast import models
from sftn_fast.utils.checksummed import seal

NAME, CLASSES = "resnet8", 5


def network(seed: int = 0, *, name: str = NAME, num_classes: int = CLASSES) -> models.StagedNet:
    torch.manual_seed(seed)
    net = models.build(name, num_classes=num_classes)
    net(torch.randn(4, 3, 16, 16))  # so that its counters are not zero
    return net.eval()


def before(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def load(content, tmp_path: Path, **options) -> tuple[models.StagedNet, list[str]]:
    """Load a file of ``content`` into a network; return the network and the messages."""
    torch.save(content, tmp_path / "w.pth")
    net, said = network(1), []
    models.load_weights(net, tmp_path / "w.pth", say=said.append, **options)
    return net, said


def is_equal(net: models.StagedNet, other: models.StagedNet) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in net.state_dict().items())


STATE = network().state_dict()
OTHER = network(2).state_dict()
LARGER = network(name="resnet14").state_dict()
FOREIGN = {
    "Lightning": ({"state_dict": before("model.", STATE), "epoch": 3, "optimizer_states": [{}]}, "'model.'"),
    "Lightning of a distiller": (
        {"state_dict": before("student.", STATE) | before("teacher.", LARGER)},
        "ignored: teacher (92 tensors)",
    ),
    "mdistiller": (
        {"epoch": 9, "model": before("module.student.", STATE) | before("module.teacher.", LARGER), "best_acc": 1.0},
        "removed the prefix 'module.student.'; ignored: module.teacher (92 tensors), epoch, best_acc",
    ),
    "MMRazor": ({"state_dict": before("architecture.", STATE), "meta": {"epoch": 1}}, "'architecture.'"),
    "compiled, wrapped twice": (before("_orig_mod.module.net.", STATE), "'_orig_mod.module.net.'"),
    "a name of its own": ({"backbone_weights": before("my_encoder.", STATE)}, "'my_encoder.'"),
    "averaged alone": ({"ema": STATE}, ""),
    "averaged beside": ({"ema": STATE, "model": OTHER}, "using the averaged weights, 'ema'; ignored: model"),
    "averaged by a prefix": (before("ema_model.", STATE) | before("model.", OTHER), "'ema_model'"),
    "averaged, nested": ({"ema_state_dict": {"module": STATE}, "state_dict": OTHER}, "'ema_state_dict.module'"),
    "SWA": ({"n_averaged": torch.tensor(3)} | before("module.", STATE), "ignored: n_averaged"),
    "thop": (
        STATE | {f"{m}total_{w}": torch.zeros(1) for m in ("", "stem.", "head.fc.") for w in ("ops", "params")},
        "ignored: total_ops (3 tensors), total_params (3 tensors)",
    ),
    "NumPy": ({"model": STATE, "acc": np.float64(3), "table": np.zeros(3), "n": np.int64(2)}, "acc, table, n"),
    "beside the weights": ({**STATE, "epoch": 3, "path": Path("x"), "best": np.float32(1), "name": "a"}, "epoch, path"),
    "the same twice": ({"model": STATE, "state_dict": dict(STATE)}, "ignored"),
    "in order": (OrderedDict(STATE), ""),
}


@pytest.mark.parametrize("origin", FOREIGN)
def test_what_other_projects_save_is_understood_and_said(origin, tmp_path):
    content, message = FOREIGN[origin]
    net, said = load(content, tmp_path)
    assert is_equal(net, network())
    assert len(said) == bool(message)
    assert message in "".join(said)
    assert "\n" not in "".join(said)


def test_nothing_is_said_of_plain_weights_and_a_log_line_takes_the_rest(tmp_path, caplog):
    torch.save(STATE, tmp_path / "plain.pth")
    torch.save(before("model.", STATE), tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        models.load_weights(network(), tmp_path / "plain.pth")
        assert not caplog.messages
        models.load(tmp_path / "w.pth", name=NAME, num_classes=CLASSES)
    assert caplog.messages == [f"{tmp_path / 'w.pth'}: removed the prefix 'model.'"]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (before("student.", STATE) | before("teacher.", OTHER), ("student", "teacher")),
        ({"model": STATE, "net": OTHER}, ("model", "net")),
        ({"state_dict": before("a.", STATE) | before("b.", OTHER)}, ("state_dict.a", "state_dict.b")),
    ],
)
def test_two_networks_that_fit_are_refused_unless_one_is_named(content, labels, tmp_path):
    with pytest.raises(models.WeightsError) as caught:
        load(content, tmp_path)
    assert all(repr(label) in str(caught.value) for label in labels)
    assert "\n" not in str(caught.value)
    assert is_equal(load(content, tmp_path, prefix=labels[0])[0], network())
    assert is_equal(load(content, tmp_path, prefix=labels[1] + ".")[0], network(2))
    with pytest.raises(models.WeightsError, match="no weights with the prefix 'nothing'"):
        load(content, tmp_path, prefix="nothing")


def test_openmmlabs_names(tmp_path):
    torchvision_models = pytest.importorskip("torchvision.models")
    theirs = torchvision_models.resnet18(num_classes=CLASSES).state_dict()
    named = {("head." if key.startswith("fc.") else "backbone.") + key: value for key, value in theirs.items()}
    for prefix in ("", "architecture."):
        torch.save({"meta": {}, "state_dict": before(prefix, named)}, tmp_path / "w.pth")
        net = models.load(tmp_path / "w.pth", name="resnet18", num_classes=CLASSES)
        assert torch.equal(net.state_dict()["head.classifier.weight"], theirs["fc.weight"])


def test_missing_counters_are_zero(tmp_path):
    names = [name for name in STATE if name.endswith("num_batches_tracked")]
    net, said = load({name: tensor for name, tensor in STATE.items() if name not in names}, tmp_path)
    assert all(net.state_dict()[name] == 0 for name in names)
    assert f"set {len(names)} counters num_batches_tracked, which the file lacks, to 0" in said[0]
    net, _ = load({name: tensor for name, tensor in STATE.items() if name != names[0]}, tmp_path)
    assert [int(net.state_dict()[name]) for name in names[:2]] == [0, 1]
    reference = network(1)
    reference.load_state_dict({name: tensor for name, tensor in STATE.items() if name not in names}, strict=False)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x), reference(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype, tmp_path):
    net, said = load({name: tensor.to(dtype) for name, tensor in STATE.items()}, tmp_path)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32, torch.int64}
    name = str(dtype).removeprefix("torch.")
    assert f"converted {name} weights to float32" in said[0]
    expected = network()
    expected.load_state_dict({name: tensor.to(dtype) for name, tensor in STATE.items()})
    assert is_equal(net, expected)


def with_value(value):
    def change(tensor):
        tensor = tensor.double()
        tensor.view(-1)[0] = value
        return tensor if abs(value) < float("inf") and abs(value) > 1e100 else tensor.float()

    return change


FAULTS = {
    "meta": (lambda t: t.to("meta"), "has a shape and no data"),
    "sparse": (lambda t: t.to_sparse(), "is not dense"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised"),
    "complex": (lambda t: t.to(torch.complex64), "is complex64, not floating point"),
    "bool": (lambda t: t > 0, "is bool"),
    "int8": (lambda t: t.to(torch.int8), "is int8"),
    "int64": (lambda t: t.to(torch.int64), "is int64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "NaN": (with_value(float("nan")), "NaN or infinite"),
    "infinite": (with_value(float("inf")), "NaN or infinite"),
    "1e300": (with_value(1e300), "beyond float32"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("first", ["stem.0.weight", "head.fc.weight"])
@pytest.mark.filterwarnings("ignore")
def test_values_that_cannot_be_weights_are_refused_as_a_whole(fault, first, tmp_path):
    change, message = FAULTS[fault]
    net = network(1)
    for names in ([first], [name for name, tensor in STATE.items() if tensor.is_floating_point()]):
        torch.save({**STATE, **{name: change(STATE[name]) for name in names}}, tmp_path / "w.pth")
        with pytest.raises(models.WeightsError, match=message) as caught:
            models.load_weights(net, tmp_path / "w.pth")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        assert names[0] in str(caught.value)
        assert is_equal(net, network(1))


def test_negative_variances_are_refused(tmp_path):
    with pytest.raises(models.WeightsError, match=r"stem\.1\.running_var has negative variances"):
        load({**STATE, "stem.1.running_var": -STATE["stem.1.running_var"]}, tmp_path)


@pytest.mark.parametrize(
    "counter", [torch.tensor(float("inf")), torch.tensor([3]), torch.tensor(3.0), torch.tensor(-1)]
)
def test_counters_of_another_kind(counter, tmp_path):
    net, said = load({**STATE, "stem.1.num_batches_tracked": counter}, tmp_path)
    good = torch.isfinite(counter).all() and counter >= 0
    assert int(net.state_dict()["stem.1.num_batches_tracked"]) == (int(counter) if good else 0)
    assert bool(said) != bool(good)


@pytest.mark.parametrize("fault", ["NaN", "int8", "bool"])
def test_an_export_with_such_values_is_refused(fault, tmp_path):
    models.save(network(), tmp_path)
    data = safetensors.torch.save({**STATE, "stem.0.weight": FAULTS[fault][0](STATE["stem.0.weight"]).contiguous()})
    (tmp_path / "model.safetensors").write_bytes(data)
    config = json.loads((tmp_path / "config.json").read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "config.json").write_text(seal(config))
    with pytest.raises(models.WeightsError, match=FAULTS[fault][1]):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key in ("num_classes", "in_channels") for value in (10**9, 10**400, 0, -3, 5.0, "5", True)],
        ("num_classes", 900_000),
        ("name", "resnet9"),
        ("name", "\x1b[31m" + "x" * 10_000),
        ("name", None),
    ],
)
def test_a_config_that_claims_too_much_is_refused_before_memory_is_asked(key, value, tmp_path, monkeypatch):
    models.save(network(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.nn, "Conv2d", None)  # nothing is built
    with pytest.raises(ValueError) as caught:
        models.load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"num_classes": ' + "9" * 5000 + "}", "\x00", "null", ""])
def test_a_config_that_is_no_json_object_of_ours(text, tmp_path):
    models.save(network(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(models.WeightsError):
            models.load(path)


def test_a_small_archive_that_unpacks_to_gigabytes(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as good, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for member in good.namelist():
            bomb.writestr(member, good.read(member))
        with bomb.open(zipfile.ZipInfo("w/data/999"), "w", force_zip64=True) as member:
            member._zinfo.compress_type = zipfile.ZIP_DEFLATED
        large = zipfile.ZipInfo("w/data/1000")
        large.compress_type = zipfile.ZIP_DEFLATED
        bomb.writestr(large, bytes(100_000_000))
    with pytest.raises(models.WeightsError, match=r"would unpack to 10\d\.\d MB"):
        models.load_weights(network(), tmp_path / "bomb.pth")


def test_an_archive_that_is_packed_a_little_is_read(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as good,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in good.namelist():
            packed.writestr(member, good.read(member))
    net = network(1)
    models.load_weights(net, tmp_path / "packed.pth")
    assert is_equal(net, network())


@pytest.mark.parametrize(
    "header",
    [
        {"stem.0.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"stem.0.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"stem.0.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_claims_too_much(header, tmp_path):
    text = json.dumps(header).encode()
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(models.WeightsError, match="damaged"):
            models.load_weights(network(), tmp_path / name)
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(models.WeightsError, match="damaged"):
        models.load_weights(network(), tmp_path / "w.safetensors")


def test_the_content_says_what_a_file_is(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "pytorch_model.bin")
    net = network(1)
    models.load_weights(net, tmp_path / "pytorch_model.bin")
    assert is_equal(net, network())


def test_a_mapping_that_holds_itself_many_times(tmp_path):
    laugh: dict[str, object] = {"a": torch.zeros(1)}
    for _ in range(60):
        laugh = {str(i): laugh for i in range(10)}
    with pytest.raises(models.WeightsError, match="no weights by name"):
        load(laugh, tmp_path)


def test_names_that_would_steer_a_terminal_are_shown_plain(tmp_path):
    with pytest.raises(models.WeightsError) as caught:
        load({**STATE, "\x1b[2J\n" + "x" * 5000: torch.zeros(1)}, tmp_path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 2000


class Dangerous:
    def __reduce__(self):
        return print, ("the payload ran",)


@pytest.mark.parametrize("name", ["numpy.core.multiarray.scalar", "numpy.dtype", "pathlib.PosixPath"])
def test_stand_ins_run_nothing(name, tmp_path, capsys):
    """Return a pickle in which code takes the place of a NumPy scalar."""
    module, _, attribute = name.rpartition(".")
    inner = pickle.dumps(Dangerous(), protocol=2)
    calls = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n" + b"(" + inner[2:-1] + b"tR"
    torch.save({"acc": 1.0, "model": STATE}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as good:
        files = {member: good.read(member) for member in good.namelist()}
    pickled = next(member for member in files if member.endswith("data.pkl"))
    files[pickled] = b"\x80\x02}(X\x03\x00\x00\x00acc" + calls + b"u."
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as bad:
        for member, data in files.items():
            bad.writestr(member, data)
    with pytest.raises(models.WeightsError):
        models.load_weights(network(), tmp_path / "w.pth")
    assert "the payload ran" not in capsys.readouterr().out


# Another number of classes


def test_all_but_the_classifier(tmp_path):
    net = network(name="resnet8", num_classes=1000)
    torch.save(before("module.", net.state_dict()), tmp_path / "w.pth")
    ours, said = network(1), []
    head = {name: tensor.clone() for name, tensor in ours.state_dict().items() if name.startswith("head.")}
    with pytest.raises(models.WeightsError, match=r"all but the classifier does: sftn.init.*keep_head=True"):
        models.load_weights(ours, tmp_path / "w.pth")
    models.load_weights(ours, tmp_path / "w.pth", keep_head=True, say=said.append)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, head[name] if name in head else net.state_dict()[name])
    assert len(said) == 1
    assert (
        "loaded all but the classifier (head.fc.weight, head.fc.bias): the file has 1000 classes, this network 5"
    ) in said[0]


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "wrn_16_1", "MobileNetV2"])
def test_all_but_the_classifier_of_every_kind_of_head(name, tmp_path):
    if name[0].islower() and "_v2" in name:
        pytest.importorskip("torchvision")
    buffer = io.BytesIO()
    torch.save(models.build(name, num_classes=11).state_dict(), buffer)
    (tmp_path / "w.pth").write_bytes(buffer.getvalue())
    said: list[str] = []
    models.load_weights(models.build(name, num_classes=3), tmp_path / "w.pth", keep_head=True, say=said.append)
    assert "the file has 11 classes, this network 3" in said[0]


def test_another_network_does_not_pass_as_one_of_other_classes(tmp_path):
    torch.save(network(name="resnet8x4", num_classes=9).state_dict(), tmp_path / "w.pth")
    with pytest.raises(models.WeightsError, match="does not fit resnet8 with 5 classes; the file has stem"):
        models.load_weights(network(), tmp_path / "w.pth", keep_head=True)


def test_a_mismatch_shows_the_files_own_names_first(tmp_path):
    torch.save({f"layers.{i}.kernel": torch.zeros(3, i + 1) for i in range(9)}, tmp_path / "w.pth")
    with pytest.raises(models.WeightsError) as caught:
        models.load_weights(network(), tmp_path / "w.pth")
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("the file has layers.0.kernel, layers.1.kernel, layers.2.kernel and 6 more:")
    assert any("layers.0.kernel: [3, 1] in the file, not in the network" in line for line in lines)
    assert any("stem.0.weight: [16, 3, 3, 3] in the network, not in the file" in line for line in lines)


def _timm_mobilenet():
    """Return the names of timm's mobilenetv2_100, layer by layer in the order of execution."""
    yield from ("conv_stem", "bn1")
    for row, depth in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(depth):
            layers = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            layers = ["conv_dw", "bn1", "conv_pw", "bn2"] if row == 0 else layers
            yield from (f"blocks.{row}.{block}.{layer}" for layer in layers)
    yield from ("conv_head", "bn2", "classifier")


def test_timms_names_of_mobilenet(tmp_path):
    torchvision_models = pytest.importorskip("torchvision.models")
    original = torchvision_models.mobilenet_v2(num_classes=CLASSES).eval()
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in original.state_dict()))
    names = dict(zip(layers, _timm_mobilenet(), strict=True))
    theirs = {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": v for key, v in original.state_dict().items()
    }
    torch.save({"arch": "mobilenetv2_100", "state_dict": theirs}, tmp_path / "w.pth")
    net = models.load(tmp_path / "w.pth", name="mobilenet_v2", num_classes=CLASSES)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), original(x))


def test_networks_whose_names_differ_in_case_alone_are_told_apart(tmp_path):
    pytest.importorskip("torchvision")
    torch.save(models.export_state_dict(models.build("ResNet18", num_classes=CLASSES)), tmp_path / "w.pth")
    with pytest.raises(
        models.WeightsError, match=r"does not fit resnet18 with 5 classes \(ResNet18 is another network\)"
    ):
        models.load(tmp_path / "w.pth", name="resnet18", num_classes=CLASSES)
