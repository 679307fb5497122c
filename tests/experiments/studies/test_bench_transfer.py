import json
import math

import numpy as np
import pytest

from experiments.studies.bench_transfer import Comparison, TransferOptions, compare, main, sentence, to_markdown
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.table.optimum import optimum
from tests.synthetic_table import synthetic_table
from tests.tasks.images import write_parts


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for name, layers in (("short", 3), ("long", 4)):
        synthetic_table(layers, bits=(2, 4, 8), seed=layers).save(folder / f"{name}.npz")
    return folder


def test_a_tiny_benchmark(tables, tmp_path, capsys):
    pair = f"{tables / 'short.npz'}:{tables / 'long.npz'}"
    arguments = [f"--pairs=[{pair}]", "--agents=[ppo]", "--seeds=2", f"--output={tmp_path}", "--budget=0.6"]
    assert main([*arguments, "--source_evaluations=20", "--evaluations=30"]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "bench_transfer.md").read_text()
    cases = json.loads((tmp_path / "bench_transfer.json").read_text())["cases"]
    ((title, case),) = cases.items()
    (comparison,) = case["comparisons"]
    assert len(comparison["scratch"]) == len(comparison["transferred"]) == 2
    assert all(time is None or 1 <= time <= 30 for time in comparison["scratch"])
    table = synthetic_table(4, bits=(2, 4, 8), seed=4)
    env = QuantizationEnv(table, budget=0.6)
    best = optimum(table, env.budgets, env.tables).best.evaluation.accuracy
    assert comparison["accuracy"] == pytest.approx(best - 0.0025)
    # Again, beside another pair: that is kept, and the numbers are the same.
    kept = {"another pair": case, title: {**case, "comparisons": []}}
    (tmp_path / "bench_transfer.json").write_text(json.dumps({"cases": kept}))
    assert main([*arguments, "--source_evaluations=20", "--evaluations=30"]) == 0
    cases = json.loads((tmp_path / "bench_transfer.json").read_text())["cases"]
    assert cases["another pair"] == case
    assert cases[title]["comparisons"] == case["comparisons"]
    assert (tmp_path / "bench_transfer.md").read_text() == to_markdown(cases)


def test_same_options_same_numbers_and_targets_that_are_easy_are_reached(tables):
    options = TransferOptions(seeds=2, source_evaluations=10, evaluations=20, regret=100, budget=0.6)
    names = (str(tables / "short.npz"), str(tables / "long.npz"), "random")
    first = compare(*names, options)
    assert first == compare(*names, options)
    assert first.scratch == first.transferred == (1, 1)
    assert first.saved == 0


def test_the_target_may_be_a_network_of_the_user_s(tables, tmp_path, monkeypatch):
    """From a table to a task that is evaluated: what scratch ends with is the target, which all seeds reach."""
    monkeypatch.setenv("QUANTENV_STORE", "off")
    brought = {"data": str(write_parts(tmp_path / "images")), "model": "tests.networks:branched", "image_size": 16}
    options = TransferOptions(seeds=2, source_evaluations=10, evaluations=16, budget=0.6, bits=[2, 4, 8], **brought)
    comparison = compare(str(tables / "short.npz"), "imagefolder", "reinforce", options)
    assert comparison.target == "imagefolder (tests.networks:branched)"
    assert all(1 <= time <= 16 for time in comparison.scratch)


def test_medians_and_savings():
    comparison = Comparison("a", "b", "ppo", 0.9, (100.0, 40.0, math.inf), (30.0, 50.0, 60.0), (0.9, 0.91))
    assert comparison.medians == (100, 50)
    assert comparison.saved == pytest.approx(0.5)
    assert "100 from scratch, 50 transferred (50% fewer)" in sentence(comparison)
    worse = Comparison("a", "b", "ppo", 0.9, (50.0,), (75.0,), (0.9, 0.9))
    assert "(50% more)" in sentence(worse)
    never = Comparison("a", "b", "ppo", 0.9, (np.inf,), (75.0,), (0.9, 0.9))
    assert never.saved is None
    assert "never from scratch, 75 transferred (only transferred reaches it)" in sentence(never)
    neither = Comparison("a", "b", "ppo", 0.9, (np.inf,), (np.inf,), (0.9, 0.9))
    assert "(neither reaches it)" in sentence(neither)


@pytest.mark.parametrize("options", [{"pairs": ["digits_table"]}, {"seeds": 0}])
def test_mistakes_are_one_sentence(options):
    with pytest.raises(QuantenvError, match="--"):
        TransferOptions(**options)


def test_damaged_results_are_known_before_anything_is_measured(tmp_path):
    (tmp_path / "bench_transfer.json").write_text('{"comparisons": []}')
    with pytest.raises(QuantenvError, match="does not hold the results"):
        main([f"--output={tmp_path}"])
