import dataclasses
import importlib.resources

import numpy as np
import pytest
import yaml

from quantenv.errors import QuantenvError
from quantenv.hardware import device_names, load_device

GOOD = yaml.safe_load(importlib.resources.files("quantenv.hardware.devices").joinpath("generic.yaml").read_text())
ROOFLINE = yaml.safe_load(importlib.resources.files("quantenv.hardware.devices").joinpath("bitfusion.yaml").read_text())


def changed(content, *path_and_value):
    """A deep copy with one entry replaced, or removed when the value is ..."""
    content = yaml.safe_load(yaml.safe_dump(content))
    *path, last, value = path_and_value
    place = content
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def save(folder, content):
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_shipped_devices_load_with_sources():
    assert set(device_names()) >= {"generic", "bitfusion", "bitserial_fpga", "int8_cpu"}
    for name in device_names():
        device = load_device(name)
        assert device.name == name
        assert "\n" not in device.description
        assert {"weight_bits", "activation_bits"} <= set(device.sources)
        assert all(len(source) > 10 for source in device.sources.values())
        assert hash(device) == hash(load_device(name))
    assert "latency.seconds_per_byte" in load_device("generic").sources


def test_supports_is_the_product_of_the_bits():
    assert load_device("generic").supports.all()
    assert np.argwhere(load_device("int8_cpu").supports).tolist() == [[7, 7]]
    device = dataclasses.replace(load_device("generic"), weight_bits=(2, 4), activation_bits=(8,))
    assert device.supports.dtype == bool
    assert np.argwhere(device.supports).tolist() == [[1, 7], [3, 7]]


def test_a_users_device_is_a_path(tmp_path):
    path = save(tmp_path, changed(GOOD, "name", "mine"))
    assert load_device(path) == load_device(str(path)) == dataclasses.replace(load_device("generic"), name="mine")


@pytest.mark.parametrize("metric", ["latency", "energy"])
def test_a_device_need_not_define_every_metric(tmp_path, metric):
    assert getattr(load_device(save(tmp_path, changed(GOOD, metric, ...))), metric) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(GOOD, "latancy", {}), r"Unknown key 'latancy'\. Did you mean 'latency'"),
        (changed(GOOD, "latency", "seconds_per_bit", {}), "section 'latency'.*Did you mean 'seconds_per_byte'"),
        (changed(GOOD, "latency", "seconds_per_mac", "unit", "s"), "section 'latency.seconds_per_mac'.*'unit'"),
        (changed(GOOD, "name", ...), "'name' is missing"),
        (changed(GOOD, "name", 5), "'name' is 5; expected text"),
        (changed(GOOD, "weight_bits", ...), "'weight_bits' is missing"),
        (changed(GOOD, "weight_bits", [8]), r"'weight_bits' is \[8\]; expected a mapping"),
        (changed(GOOD, "energy", "joules_per_mac", ...), "section 'energy': 'joules_per_mac' is missing"),
        (changed(GOOD, "energy", "joules_per_byte", "source", ...), "'source' is missing"),
        (changed(GOOD, "energy", "joules_per_byte", "source", ""), "'source' is ''; expected text"),
        (changed(GOOD, "latency", "model", ...), "'model' is missing; expected one of linear, lookup, roofline"),
        (changed(GOOD, "latency", "model", "liner"), "Unknown model of latency 'liner'. Did you mean 'linear'"),
        (changed(GOOD, "latency", "model", ["linear"]), "Unknown model of latency"),
        (changed(GOOD, "latency", None), "'latency' is None; expected a mapping"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", 0), "seconds_per_mac' is 0; expected a positive"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", -1.0), "expected a positive number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", float("nan")), "expected a positive number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", float("inf")), "expected a positive number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", True), "expected a positive number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", "1e-9"), "write 1.0e-9"),
        (changed(GOOD, "latency", "relative_time_4bit", "value", 1.5), r"expected a number in \(0, 1\]"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {}), "expected a mapping of bits"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {"8": 1.0}), "expected a mapping of bits"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {8: -1.0}), r"joules_per_mac\[8\]' is -1.0"),
        (changed(GOOD, "weight_bits", "value", []), "at least one"),
        (changed(GOOD, "weight_bits", "value", 8), "distinct whole numbers"),
        (changed(GOOD, "weight_bits", "value", [4, 2]), "ascending"),
        (changed(GOOD, "weight_bits", "value", [2, 2]), "distinct"),
        (changed(GOOD, "activation_bits", "value", [0, 8]), "from 1 to 8"),
        (changed(GOOD, "activation_bits", "value", [8, 16]), "from 1 to 8"),
        (changed(GOOD, "activation_bits", "value", [True]), "whole numbers"),
        (changed(ROOFLINE, "latency", "native_weight_bits", "value", [2, 4]), "must end in 8"),
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: [unclosed", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_slips_in_a_device_file_are_one_sentence(tmp_path, content, message):
    with pytest.raises(QuantenvError, match=message) as error:
        load_device(save(tmp_path, content))
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match=r"Unknown device 'bitfusoin'\. Did you mean 'bitfusion'"):
        load_device("bitfusoin")
    with pytest.raises(QuantenvError, match=r"Cannot read device file .*No such file"):
        load_device(str(tmp_path / "none.yaml"))
    with pytest.raises(QuantenvError, match="Cannot read device file"):
        load_device(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuantenvError, match="not UTF-8"):
        load_device(tmp_path / "binary.yaml")


def test_bits_are_checked_without_a_file_too():
    with pytest.raises(QuantenvError, match="'generic': the weight bits"):
        dataclasses.replace(load_device("generic"), weight_bits=())
