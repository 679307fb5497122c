"""The benchmark of simulated against integer networks, on a ResNet-20 that is trained here."""

import json

import pytest
import torch

from experiments.studies import bench_integer, bench_tasks
from experiments.studies.bench_integer import difference, layer_sites, naive_simulation, stored_outputs
from quantenv.core.errors import QuantenvError
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.formats import quantize
from quantenv.tasks.resnet20 import DATA_VARIABLE
from tests.digits import few_digits_task
from tests.networks import branched

INPUTS = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_it_writes_a_table_and_a_plot_of_every_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr(bench_tasks, "digits_splits", lambda: few_digits_task().splits)
    assert bench_integer.main(["--networks=[resnet20]", "--images=40", "--bits=[8,2]", f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "bench_integer.json").read_text())
    rows = content["rows"]
    assert [row["layer"] for row in rows[:20]] == [*(row["layer"] for row in rows[20:])]
    assert len(rows) == 40  # 19 stored outputs and the logits, at two bit-widths
    assert all(row["ours"] <= row["naive"] for row in rows if row["bits"] == 2)
    assert capsys.readouterr().out == (tmp_path / "bench_integer.md").read_text()
    assert (tmp_path / "bench_integer.png").read_bytes().startswith(b"\x89PNG")


def test_the_naive_simulation_rounds_only_what_layers_read():
    calibration = calibrate(branched(), INPUTS)
    found = stored_outputs(naive_simulation(calibration, 4), calibration, INPUTS)
    graph, stem = calibration.graph, calibration.graph.get_submodule("stem")
    read = quantize(INPUTS, calibration.site_grids["x"][4])
    with torch.no_grad():
        weight = calibration.rounded("stem", 4)
        expected = torch.relu(torch.nn.functional.conv2d(read, weight, stem.bias, stem.stride, stem.padding))
    torch.testing.assert_close(found["stem"], expected)
    places = {name: calibration.sites[place].node for name, place in layer_sites(calibration).items()}
    assert places["stem"] == "relu"
    assert places["left"] == "left"
    assert "head" not in places  # whose outputs are the network's
    assert graph is calibration.graph


def test_differences_are_relative_to_the_integers():
    assert difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)


def test_an_unknown_network_is_refused():
    with pytest.raises(QuantenvError, match="names 'resnet2'; expected resnet20 or resnet50"):
        bench_integer.main(["--networks=[resnet2]"])
