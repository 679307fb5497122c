import dataclasses
import importlib.resources

import numpy as np
import pytest
import yaml

from quantenv.core.errors import QuantenvError
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
        (changed(GOOD, "latancy", {}), "unknown key 'latancy'; perhaps 'latency' is meant"),
        (changed(GOOD, "latency", "seconds_per_bit", {}), "'latency.seconds_per_bit'; perhaps 'seconds_per_byte' is"),
        (changed(GOOD, "latency", "seconds_per_mac", "unit", "s"), "unknown key 'latency.seconds_per_mac.unit'"),
        (changed(GOOD, "name", ...), "lacks the key 'name'"),
        (changed(GOOD, "name", 5), "name is 5; expected text"),
        (changed(GOOD, "weight_bits", ...), "lacks the key 'weight_bits'"),
        (changed(GOOD, "weight_bits", [8]), r"weight_bits is \[8\]; expected names with values"),
        (changed(GOOD, "energy", "joules_per_mac", ...), r"lacks the key 'energy\.joules_per_mac'"),
        (changed(GOOD, "energy", "joules_per_byte", "source", ...), r"lacks the key 'energy\.joules_per_byte\.source'"),
        (changed(GOOD, "energy", "joules_per_byte", "source", ""), "source has 0 characters; expected at least 1"),
        (changed(GOOD, "latency", "model", ...), r"lacks the key 'latency\.model'"),
        (changed(GOOD, "latency", "model", "liner"), "is 'liner'; expected 'linear' or 'roofline' or 'lookup'"),
        (changed(GOOD, "latency", "model", ["linear"]), r"latency\.model is \['linear'\]; expected text"),
        (changed(GOOD, "latency", None), "latency is null; expected names with values"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", 0), "value is 0; expected a number above 0"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", -1.0), "expected a number above 0"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", float("nan")), "no finite number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", float("inf")), "no finite number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", True), "value is true; expected a number"),
        (changed(GOOD, "latency", "seconds_per_mac", "value", "fast"), "value is 'fast'; expected a number"),
        (changed(GOOD, "latency", "relative_time_4bit", "value", 1.5), "is 1.5; expected a number of at most 1"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {}), "has 0 entries; expected at least 1"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {"8": 1.0}), "a key of .*; expected a whole number"),
        (changed(GOOD, "energy", "joules_per_mac", "value", {8: -1.0}), r"joules_per_mac\.value\[8\] is -1.0"),
        (changed(GOOD, "weight_bits", "value", []), r"weight_bits\.value has 0 entries; expected at least 1"),
        (changed(GOOD, "weight_bits", "value", 8), "value is 8; expected a list"),
        (changed(GOOD, "weight_bits", "value", [4, 2]), "ascending"),
        (changed(GOOD, "weight_bits", "value", [2, 2]), "distinct"),
        (changed(GOOD, "activation_bits", "value", [0, 8]), r"value\[0\] is 0; expected a whole number of at least 1"),
        (changed(GOOD, "activation_bits", "value", [8, 16]), "is 16; expected a whole number of at most 8"),
        (changed(GOOD, "activation_bits", "value", [4.9]), "is 4.9; expected a whole number"),
        (changed(GOOD, "activation_bits", "value", [True]), "is true; expected a whole number"),
        (changed(ROOFLINE, "latency", "native_weight_bits", "value", [2, 4]), "must end in 8"),
        (changed(ROOFLINE, "latency", "native_weight_bits", "value", [4, 2, 8]), "ascending"),
        ("- a\n- b\n", "expected names with values"),
        ("", "its content is null; expected names with values"),
        ("name: [unclosed", "not plain YAML: line 1"),
        ("name: !!python/object/apply:os.getcwd []", "not plain YAML: line 1, column 7: the tag"),
        ("name: 9999-99-99", "not plain YAML: line 1, column 7"),
        ("name: a\nname: b", "line 2, column 1: the key 'name' stands twice"),
        ("[" * 5000, "more than 64 deep"),
    ],
)
def test_slips_in_a_device_file_are_one_sentence(tmp_path, content, message):
    with pytest.raises(QuantenvError, match=message) as error:
        load_device(save(tmp_path, content))
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_constant_that_stands_twice_is_refused(tmp_path):
    text = importlib.resources.files("quantenv.hardware.devices").joinpath("generic.yaml").read_text()
    twice = text.replace("    value: 2.5e-10\n", "    value: 2.5e-10\n    value: 2.5e-3\n")
    with pytest.raises(QuantenvError, match="the key 'value' stands twice in one mapping"):
        load_device(save(tmp_path, twice))


def test_a_number_is_read_with_and_without_its_point(tmp_path):
    text = importlib.resources.files("quantenv.hardware.devices").joinpath("generic.yaml").read_text()
    assert "value: 1.25e-10" in text
    path = save(tmp_path, text.replace("value: 1.25e-10", "value: 1e-9"))  # PyYAML reads text
    assert load_device(path).latency.seconds_per_mac == 1e-9


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match=r"Unknown device 'bitfusoin'\. Did you mean 'bitfusion'"):
        load_device("bitfusoin")
    with pytest.raises(QuantenvError, match=r"Cannot read the device file .*No such file"):
        load_device(str(tmp_path / "none.yaml"))
    with pytest.raises(QuantenvError, match="Cannot read the device file"):
        load_device(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuantenvError, match="not UTF-8"):
        load_device(tmp_path / "binary.yaml")


def test_bits_are_checked_without_a_file_too():
    with pytest.raises(QuantenvError, match="'generic': the weight bits"):
        dataclasses.replace(load_device("generic"), weight_bits=())
