import dataclasses
import os
import pickle
import subprocess
import sys

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.quantization.calibrating import calibrate, restore
from quantenv.quantization.calibration import folded_weight, prepare
from quantenv.quantization.formats import quantize
from quantenv.quantization.prepared import About, Reference, read_prepared, write_prepared
from quantenv.quantization.schemes import parse_scheme
from tests.networks import branched

INPUTS = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CHANNELS = {"stem": [[7, 0, 3], [1, 2], [4, 5, 6]], "block.depthwise": [[0, 2, 4, 6], [1, 3, 5, 7]]}
SCHEMES = ["linear", "linear+bias+batch-norm", "linear+equalisation+bias", "k-means+bias", "linear+adaround+bias"]
ABOUT = About("a key", "a task", "linear", {"search": Reference(3, 4, 0.25)}, {"id": {"x": [0.1, 1.0]}}, ["a note"])


@pytest.fixture(autouse=True)
def short_learning(monkeypatch):
    monkeypatch.setattr("quantenv.quantization.adaround.STEPS", 20)


def equal(one, other):
    return (one is None and other is None) or torch.equal(one, other)


def written(tmp_path, prepared, name="prepared.safetensors"):
    write_prepared(prepared, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("channels", [None, CHANNELS])
def test_what_is_read_is_what_was_measured_to_the_bit(scheme, channels, tmp_path):
    if channels and scheme.startswith("k-means"):
        channels = {}
    parsed, network = parse_scheme(scheme), branched()
    measured = calibrate(network, INPUTS, parsed, channels)
    path = written(tmp_path, dataclasses.replace(prepare(measured), about=ABOUT))
    found = read_prepared(path)
    assert found.about == ABOUT
    restored = restore(network, INPUTS, found, parsed, channels)
    assert restored.layers == measured.layers
    assert restored.sites == measured.sites
    assert restored.normalised == measured.normalised
    for layer in measured.modules:
        for bits in range(1, 9):
            assert torch.equal(restored.rounded(layer.name, bits), measured.rounded(layer.name, bits))
            assert equal(restored.bias(layer.name, bits), measured.bias(layer.name, bits))
            one, other = (each.weight_grids[layer.name][bits] for each in (restored, measured))
            assert torch.equal(one.scale, other.scale)
    assert restored.reestimated.keys() == measured.reestimated.keys()
    for name, moments in measured.reestimated.items():
        assert all(torch.equal(*pair) for pair in zip(restored.reestimated[name], moments, strict=True))
    for node, grids in measured.site_grids.items():
        for bits, grid in grids.items():
            other = restored.site_grids[node][bits]
            assert (grid.low, grid.high) == (other.low, other.high)
            assert torch.equal(grid.scale, other.scale)
    assert restored.content_hash == measured.content_hash == found.content_hash
    allocation = Allocation.make(measured.layers, [2 + index % 7 for index in range(len(measured.layers))], 5)
    networks = QuantizedNetwork(measured), QuantizedNetwork(restored)
    for each in networks:
        each.select(allocation)
    assert torch.equal(*(each(INPUTS) for each in networks))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), unit=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]), zeros=st.booleans())
def test_weights_are_whole_numbers_times_scales(seed, unit, zeros):
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * unit
    if zeros:
        network[0].weight.data[2] = 0
    calibration = calibrate(network, torch.randn(8, 6, generator=generator))
    for layer in calibration.modules:
        weight = folded_weight(calibration.graph.get_submodule(layer.name)).detach()
        for bits in range(1, 9):
            grid = calibration.linear_grids[layer.name][bits]
            codes = calibration.codes(layer.name, bits)
            assert codes.dtype == torch.int8
            assert torch.equal(codes.float() * grid.scale, quantize(weight, grid))  # what rounds in training


def test_mixtures_have_each_group_s_own_numbers():
    calibration = calibrate(branched(), INPUTS, parse_scheme("linear+bias"), CHANNELS)
    bias, rounded = (take("stem", (2, 5, 8)) for take in (calibration.bias, calibration.rounded))
    for channels, bits in zip(CHANNELS["stem"], (2, 5, 8), strict=True):
        assert torch.equal(bias[channels], calibration.bias("stem", bits)[channels])
        assert torch.equal(rounded[channels], calibration.rounded("stem", bits)[channels])


def test_every_number_is_in_the_hash_and_what_is_said_of_it_is_not():
    prepared = prepare(calibrate(branched(), INPUTS, parse_scheme("linear+bias+batch-norm")))
    assert dataclasses.replace(prepared, about=ABOUT).content_hash == prepared.content_hash
    hashes = {prepared.content_hash}
    for name, tensor in prepared.tensors.items():
        changed = tensor.clone()
        changed.view(-1)[0] += 1
        hashes.add(dataclasses.replace(prepared, tensors={**prepared.tensors, name: changed}).content_hash)
    assert len(hashes) == len(prepared.tensors) + 1


def test_numbers_are_read_alike_on_every_processor_and_by_any_threads(tmp_path):
    prepared = prepare(calibrate(branched(), INPUTS, parse_scheme("linear+bias+batch-norm")))
    path = written(tmp_path, prepared)
    program = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(2)\n"
        "from quantenv.quantization.prepared import read_prepared; print(read_prepared(Path(sys.argv[1])).content_hash)"
    )
    narrow = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-c", program, str(path)]
    found = subprocess.run(command, env=os.environ | narrow, capture_output=True, text=True)
    assert found.stdout.strip() == prepared.content_hash, found.stderr


def test_it_can_be_sent_to_other_processes():
    measured = calibrate(branched(), INPUTS, parse_scheme("linear+bias"))
    restored = restore(branched(), INPUTS, prepare(measured), parse_scheme("linear+bias"))
    again = pickle.loads(pickle.dumps(restored))
    assert again.content_hash == restored.content_hash
    assert torch.equal(again.rounded("stem", 3), measured.rounded("stem", 3))


def test_numbers_of_another_network_are_refused():
    prepared = prepare(calibrate(branched(), INPUTS))
    with pytest.raises(QuantenvError, match=r"of another network: .* Make it again with `quantenv prepare`"):
        restore(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.Linear(4, 2)).eval(), INPUTS, prepared)


# What a file may not hold, each by the one change that makes it so ------------------------------------------------


def with_tensor(prepared, name, change):
    return dataclasses.replace(prepared, tensors={**prepared.tensors, name: change(prepared.tensors[name].clone())})


def filled(value, place=0):
    def change(tensor):
        tensor.view(-1)[place] = value
        return tensor

    return change


WRONG = [
    ("layers/stem/codes", filled(100, -(3 * 8 * 9) * 1 - 1), "does not lie on the grid of"),
    ("layers/stem/codes", filled(0), "does not lie on the grid of 1 bits"),
    ("layers/stem/codes", lambda tensor: tensor[:7], "eight options"),
    ("layers/stem/codes", lambda tensor: tensor.float(), "eight options"),
    ("layers/stem/scale", filled(-1.0), "a scale is not positive"),
    ("layers/stem/scale", filled(0.0, -1), "a scale is not positive"),
    ("layers/stem/scale", filled(float("nan")), "no sound scale"),
    ("layers/stem/scale", lambda tensor: tensor[:, :3], "no sound scale"),
    ("layers/stem/bias", filled(float("inf")), "no sound bias"),
    ("layers/stem/variance", filled(-1.0), "a variance or gain is negative"),
    ("layers/stem/gain", filled(0.0), "a variance or gain is negative"),
    ("sites/scale", filled(0.0, -1), "a grid of a stored tensor is none"),
    ("sites/bounds", filled(1, -2), "a grid of a stored tensor is none"),
    ("sites/bounds", lambda tensor: tensor.long(), "lacks the bounds"),
]


@pytest.mark.parametrize(("name", "change", "said"), WRONG)
def test_numbers_that_cannot_be_are_refused(name, change, said, tmp_path):
    prepared = prepare(calibrate(branched(), INPUTS, parse_scheme("linear+bias+batch-norm")))
    name = name.replace("stem", prepared.layers[0]) if name in prepared.tensors else name
    path = written(tmp_path, with_tensor(prepared, name, change))
    with pytest.raises(QuantenvError, match=f"not sound: .*{said}"):
        read_prepared(path)


def test_unknown_missing_and_renamed_parts_are_refused(tmp_path):
    prepared = prepare(calibrate(branched(), INPUTS))
    tensors = dict(prepared.tensors)
    odd = [
        ({**tensors, "layers/other/scale": tensors["sites/scale"]}, "holds the unknown"),
        ({name: value for name, value in tensors.items() if name != "sites/scale"}, "lacks the grids"),
        ({name: value for name, value in tensors.items() if not name.endswith("stem/codes")}, "lacks or doubles"),
    ]
    for changed, said in odd:
        path = written(tmp_path, dataclasses.replace(prepared, tensors=changed))
        with pytest.raises(QuantenvError, match=said):
            read_prepared(path)


@pytest.mark.parametrize(("change", "said"), [
    ({"content": "another"}, "another hash than it says"),
    ({"key": 5}, "key is 5; expected text"),
    ({"more": 1}, "unknown key 'more'"),
    ({"references": {"search": {"correct": 5, "samples": 4, "loss": 0.0}}}, "reference on the split 'search'"),
    ({"sensitivities": {"id": {"x": ["0.1"]}}}, "expected a number"),
    ({"layers": ["stem", "stem"]}, "twice|unknown"),
])  # fmt: skip
def test_a_description_that_cannot_be_is_refused(change, said, tmp_path):
    path = written(tmp_path, prepare(calibrate(branched(), INPUTS)))
    kind = "quantenv-prepared-1"
    description, tensors = read_tensors(path, kind, "", "")
    write_tensors(path, kind, description | change, tensors)
    with pytest.raises(QuantenvError, match=said):
        read_prepared(path)


def test_tampered_truncated_and_old_files_are_refused(tmp_path):
    path = written(tmp_path, prepare(calibrate(branched(), INPUTS)))
    content = path.read_bytes()
    for odd in (content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2], b""):
        path.write_bytes(odd)
        with pytest.raises(QuantenvError, match="damaged"):
            read_prepared(path)
    path.write_bytes(content.replace(b"quantenv-prepared-1", b"quantenv-prepared-0"))
    with pytest.raises(QuantenvError, match=r"format is not 'quantenv-prepared-1' \(it says 'quantenv-prepared-0'\)"):
        read_prepared(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    prepared = prepare(calibrate(branched(), INPUTS))
    path = written(tmp_path, prepared)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_prepared(dataclasses.replace(prepared, about=ABOUT), path)
    monkeypatch.undo()
    assert read_prepared(path).about == About()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_descriptions_are_plain_data():
    assert msgspec.convert(msgspec.to_builtins(ABOUT), About) == ABOUT
