from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantenv.core.activations import chain
from quantenv.core.errors import QuantenvError
from quantenv.hardware import load_device
from quantenv.hardware.lookup import LookupTable
from quantenv.hardware.workload import Workload
from tests.synthetic import chain_costs, synthetic_layers

#: HAQ's published MobileNetV2 table; development data, not part of the repository.
PUBLISHED = Path(__file__).parents[2].parent / "shared/data/reference/haq_mobilenetv2_latency.npy"
TOTAL, LAYERS = 39_624_933, 53


WORK = Workload(synthetic_layers(3), chain(synthetic_layers(3)))


def built_table():
    """A table of the published one's format and known properties."""
    rng = np.random.default_rng(0)
    shares = rng.multinomial(TOTAL, rng.dirichlet(np.ones(LAYERS)))
    bits = np.arange(1, 9) / 8
    by_weight, by_activation = 0.6229 + 0.3771 * bits, 0.04 + 0.96 * bits
    return np.rint(shares[:, None, None] * by_weight[:, None] * by_activation).astype(np.int64)


@pytest.fixture(params=["built", "published"] if PUBLISHED.exists() else ["built"])
def haq_table(request, tmp_path):
    if request.param == "published":
        return PUBLISHED
    path = tmp_path / "table.npy"
    np.save(path, built_table())
    return path


def write_device(folder, file="table.npy", scale="1.0e-9"):
    path = folder / "mine.yaml"
    path.write_text(
        "name: mine\ndescription: A measured device.\n"
        "weight_bits: {value: [1, 2, 3, 4, 5, 6, 7, 8], source: test}\n"
        "activation_bits: {value: [1, 2, 3, 4, 5, 6, 7, 8], source: test}\n"
        "latency:\n  model: lookup\n"
        f"  file: {{value: {str(file)!r}, source: test}}\n  scale: {{value: {scale}, source: test}}\n"
    )
    return path


def test_the_haq_table_reads_with_its_known_totals(haq_table, tmp_path):
    layers = synthetic_layers(LAYERS)
    latency = chain_costs(layers, load_device(write_device(tmp_path, haq_table.resolve(), 1)))["latency"]
    raw = np.load(haq_table)
    assert raw.dtype == np.int64
    assert raw.shape == (LAYERS, 8, 8)
    np.testing.assert_array_equal(latency.values, raw)
    eight, one = [8] * LAYERS, [1] * LAYERS
    assert latency.reference == TOTAL
    # Which axis is which shows in the ratios: activations weigh much more than weights.
    assert latency.cost(eight, one) / TOTAL == pytest.approx(0.16, abs=0.005)
    assert latency.cost(one, eight) / TOTAL == pytest.approx(0.67, abs=0.005)


def test_the_file_is_relative_to_the_yaml_and_scaled(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    (tmp_path / "tables").mkdir()
    np.save(tmp_path / "tables/mine.npy", values)
    path = write_device(tmp_path, "tables/mine.npy", "1.0e-6")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    latency = chain_costs(synthetic_layers(3), load_device(path))["latency"]
    np.testing.assert_allclose(latency.values, values.astype(np.float64) * 1e-6)


def test_energy_can_be_looked_up_too(tmp_path):
    np.save(tmp_path / "table.npy", np.full((2, 8, 8), 7, dtype=np.uint8))
    path = write_device(tmp_path)
    path.write_text(path.read_text().replace("latency:", "energy:"))
    tables = chain_costs(synthetic_layers(2), load_device(path))
    assert list(tables) == ["size", "bops", "energy", "memory"]
    assert tables["energy"].reference == pytest.approx(14e-9)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 8, 8)), "has 4 layers, but the network has 3"),
        (np.ones((3, 8, 7)), r"shape \(3, 8, 7\); expected \(3, 8, 8\)"),
        (np.ones((3, 64)), "shape"),
        (np.where(np.arange(192).reshape(3, 8, 8) == 75, -1, 1), r"-1.0 for layer 1 \('layer1'\) at 2/4"),
        (np.full((3, 8, 8), np.nan), "nan for layer 0"),
        (np.full((3, 8, 8), np.inf), "inf for layer 0"),
        (np.ones((3, 8, 8), dtype=bool), "bool"),
        (np.ones((3, 8, 8), dtype=complex), "complex"),
        (np.full((3, 8, 8), "1"), "integers or floats"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, array, message):
    np.save(tmp_path / "table.npy", array)
    device = load_device(write_device(tmp_path))
    with pytest.raises(QuantenvError, match=message):
        chain_costs(synthetic_layers(3), device)


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_is_never_run(tmp_path):
    np.save(tmp_path / "table.npy", np.array([Boom()] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(QuantenvError, match="not of plain numbers"):
        LookupTable(tmp_path / "table.npy", 1.0).table(WORK)


def test_missing_files_and_archives_are_refused(tmp_path):
    with pytest.raises(QuantenvError, match=r"Cannot read the look-up table .*No such file"):
        LookupTable(tmp_path / "none.npy", 1.0).table(WORK)
    with pytest.raises(QuantenvError, match="Cannot read the look-up table"):
        LookupTable(tmp_path, 1.0).table(WORK)
    np.savez(tmp_path / "table.npz", np.ones((3, 8, 8)))
    with pytest.raises(QuantenvError, match=r"not a NumPy \.npy file"):
        LookupTable(tmp_path / "table.npz", 1.0).table(WORK)


@given(data=st.data())
def test_damaged_files_are_refused_or_read_as_numbers(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, np.ones((3, 8, 8)))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        with pytest.raises(QuantenvError, match=r"table .*damaged\.npy"):
            LookupTable(path, 1.0).table(WORK)
        return
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))  # the header
    path.write_bytes(content)
    try:
        values = LookupTable(path, 1.0).table(WORK)
    except QuantenvError:
        return
    assert values.shape == (3, 8, 8)
