import dataclasses
import json

import numpy as np
import pytest

from experiments.studies import bench_cifar10
from experiments.studies.bench_cifar10 import (
    BenchOptions,
    compression,
    main,
    to_markdown,
    uniform_allocation,
    with_whole_test,
)
from experiments.studies.fidelity import reduced
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.tasks import get_task
from quantenv.training import finetune


@pytest.fixture(scope="module")
def task():
    """Stands in for ResNet-20, whose data do not ship."""
    return reduced(get_task("digits"), train=96, calibration=32, search=30, test=90)


@pytest.fixture
def found(task):
    return Allocation.make(task.layers, [8, 2, 3, 2, 4, 2, 2, 8], 4, task.name, task.scheme)


def test_it_fine_tunes_every_row_with_every_seed(task, found, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_cifar10, "make_resnet20", lambda test: task)
    found.save(tmp_path / "best.json")
    options = [
        "--uniform=[8,3,2]",
        "--seeds=2",
        "--workers=1",
        "--scheme=linear",
        "--qat.epochs=1",
        "--qat.batch_size=16",
    ]
    options += ["--qat.compile=never", "--qat.bf16=false", "--qat.crop=0", "--qat.flip=false"]
    options += [f"--allocation={tmp_path / 'best.json'}", f"--output={tmp_path}"]
    assert main(options) == 0
    measured = json.loads((tmp_path / "bench_cifar10.json").read_text())
    assert measured["rival"] == "uniform 2"  # 8 bits are larger than what was found
    assert list(measured["rows"]) == ["uniform 8", "uniform 3", "uniform 2", "found"]
    assert {name: len(row["runs"]) for name, row in measured["rows"].items()} == {
        "uniform 8": 1,
        "uniform 3": 1,
        "uniform 2": 2,
        "found": 2,
    }
    small = {"epochs": 1, "batch_size": 16, "compile": "never", "bf16": False, "crop": 0, "flip": False}
    recipe = dataclasses.replace(bench_cifar10.RECIPE, **small, seed=1)
    linear = dataclasses.replace(with_whole_test(task), scheme="linear")
    result = finetune(linear, uniform_allocation(task, 2, 4), recipe)
    assert measured["rows"]["uniform 2"]["runs"][1]["test"]["correct"] == result.test.correct
    table = (tmp_path / "bench_cifar10.md").read_text()
    assert table == to_markdown(measured)
    assert table in capsys.readouterr().out
    assert main(options) == 0  # all is in the journal
    assert json.loads((tmp_path / "bench_cifar10.json").read_text())["rows"] == measured["rows"]


def test_compression_counts_the_bits_of_all_weights(task, found):
    params = np.array([layer.params for layer in task.layers])
    assert compression(task, found) == pytest.approx(32 * params.sum() / (params * found.weight_bits).sum())
    assert compression(task, Allocation.make(task.layers, 8)) == 4
    uniform = uniform_allocation(task, 3, 4)
    assert uniform.bits == ((8, 8), *[(3, 4)] * 6, (8, 8))


def test_the_best_epoch_is_chosen_on_training_samples_and_all_others_are_tested_on(task):
    whole = with_whole_test(task)
    assert {name: len(split) for name, split in whole.splits.items()} == {
        "train": 66,
        "calibration": len(task.splits["calibration"]),
        "search": 30,
        "test": 120,
    }

    def samples(*splits):
        return {
            (row.numpy().tobytes(), int(label)) for x in splits for row, label in zip(x.inputs, x.labels, strict=True)
        }

    before, after = task.splits, whole.splits
    assert samples(after["train"], after["search"]) == samples(before["train"])
    assert samples(after["test"]) == samples(before["search"], before["test"])


def row(*accuracies, size=14.0):
    def evaluation(correct):
        return {"correct": correct, "samples": 1000, "loss": 1.0}

    return {
        "weight_bits": [8, 2, 8],
        "activation_bits": [8, 4, 8],
        "compression": size,
        "post_training": evaluation(500),
        "runs": [{"test": evaluation(each), "search": evaluation(each), "seconds": 1.0} for each in accuracies],
    }


def test_the_table_says_which_goals_are_reached():
    measured = {
        "samples": {"test": 1000, "search": 10},
        "float": {"correct": 900, "samples": 1000, "loss": 1.0},
        "rival": "uniform 2",
        "rows": {
            "uniform 2": row(880, 884, size=15.8),
            "found": row(896, 900),
        },
    }
    table = to_markdown(measured)
    assert "| float | 32 | 32 | 1.0 | - | 90.00 |" in table
    assert "| found | 2 | 4 | 14.0 | 50.00 | 89.80 (0.28) | 2 | +0.20 |" in table
    assert "14.00 times, 13.1 wanted: reached" in table
    assert "0.20 points below float, 0.3 allowed: reached" in table
    assert "+1.60 points against uniform 2" in table
    assert "is 0.28: reached" in table
    assert "The best row of all is 1.60 points above it" in table
    measured["rows"]["found"] = row(880, 885, size=13.0)
    table = to_markdown(measured)
    assert table.count("**not reached**") == 3


def test_bad_options_are_refused(task):
    with pytest.raises(QuantenvError, match="--seeds is 0"):
        BenchOptions(seeds=0)
    with pytest.raises(QuantenvError, match="Give --allocation"):
        main([])
