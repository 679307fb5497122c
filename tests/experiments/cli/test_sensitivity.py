import json

import numpy as np
import pytest

from experiments.cli.main import main
from experiments.studies import bench_sensitivity, bench_sensitivity_images, bench_tasks
from experiments.studies.bench_sensitivity import Correlation, correlations, plot, rank_correlation
from quantenv.sensitivity import Settings, measure
from quantenv.sensitivity.network import sensitivity_file
from quantenv.tasks import get_task
from tests.digits import few_digits_of_any_scheme
from tests.synthetic_table import synthetic_table


@pytest.fixture
def few(monkeypatch):
    """Digits with few images; no other task has its data."""
    task = few_digits_of_any_scheme()
    monkeypatch.delenv("QUANTENV_DATA", raising=False)
    monkeypatch.setattr(bench_tasks, "get_task", lambda name: task if name == "digits" else get_task(name))
    return task


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_table_for_weights_and_one_for_activations(cache, capsys):
    assert main(["sensitivity", "--images=32"]) == 0
    captured = capsys.readouterr()
    found = measure(get_task("digits"), settings=Settings(images=32))
    assert "digits, kl: increase of KL" in captured.out
    for head in ("bits of weights", "bits of activations"):
        assert head in captured.out
    assert captured.out.count("classifier") == 2
    assert f"{found.weights[0, 0]:.3g}" in captured.out
    assert str(sensitivity_file(get_task("digits"), Settings(images=32))) in captured.out
    assert "sensitivity kl 9/9" in captured.err
    assert main(["sensitivity", "--images=32"]) == 0
    again = capsys.readouterr()
    assert again.out == captured.out
    assert not again.err  # nothing to measure, no progress


def test_json_holds_every_number(cache, capsys):
    arguments = ["--images=32", "--gradient_images=8", "--probes=2", "--kind=all", "--json"]
    assert main(["sensitivity", *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    settings = Settings(images=32, gradient_images=8, probes=2)
    assert set(content["sensitivities"]) == {"accuracy", "loss", "kl", "sqnr", "fisher", "fisher-output", "hessian"}
    assert content["layers"][0] == "stem"
    for kind, row in content["sensitivities"].items():
        found = measure(get_task("digits"), kind, settings)
        assert row["weights"] == found.weights.tolist()
        assert row["activations"] == found.activations.tolist()
        assert (row["evaluations"], row["identity"]) == (found.evaluations, found.identity)
    assert "after 2 probes" in content["sensitivities"]["hessian"]["notes"][0]


def test_tables_tell_their_rows(tmp_path, capsys):
    synthetic_table(4, groups=[[0, 2], [1], [3]]).save(tmp_path / "table.npz")
    assert main(["sensitivity", f"--task={tmp_path / 'table.npz'}"]) == 0
    out = capsys.readouterr().out
    assert "loss: increase of the mean cross-entropy" in out
    assert "bits of activations" not in out
    assert "as much as 7.0 evaluations" in out
    assert "Kept in" not in out


def test_mistakes_are_one_sentence(refused, tmp_path):
    synthetic_table(3).save(tmp_path / "table.npz")
    assert "Did you mean 'kl'" in refused("sensitivity", "--kind=kll")
    assert "Did you mean 'digits'" in refused("sensitivity", "--task=digit")
    assert "its rows tell loss and accuracy" in refused(
        "sensitivity", f"--task={tmp_path / 'table.npz'}", "--kind=hessian"
    )
    assert "--threads is 0" in refused("sensitivity", "--threads=0")
    assert "gradient_images is 0" in refused("sensitivity", "--gradient_images=0")


def test_rank_correlation_of_ties_is_that_of_mean_ranks():
    # d = (0.5, -0.5, 0, 0) with one tie: Pearson's correlation of the ranks (1.5, 1.5, 3, 4) and (1, 2, 3, 4)
    assert rank_correlation(np.array([5, 5, 7, 9]), np.array([1, 2, 3, 4])) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1]
    )


def test_only_bits_that_are_asked_for_are_measured(cache, capsys):
    assert main(["sensitivity", "--images=32", "--bits=2,4,8", "--activation_bits=8", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["sensitivities"].values()
    known = [[value is not None for value in layer] for layer in row["weights"]]
    assert known == [[False, True, False, True, False, False, False, True]] * 8
    assert row["evaluations"] == pytest.approx((16 + 2) * 32 / len(get_task("digits").splits["search"]))


def test_bits_are_from_1_to_8(refused):
    assert "--bits is [0, 9]" in refused("sensitivity", "--bits=0,9")


def test_few_images_are_compared_with_all_and_timed(cache, few, tmp_path, capsys):
    arguments = ["--images=16,32", "--allocations=8", "--schemes=linear+bias", f"--output={tmp_path}"]
    assert bench_sensitivity_images.main(arguments) == 0
    rows = json.loads((tmp_path / "bench_sensitivity_images.json").read_text())["rows"]
    total = len(few.splits["search"])
    assert [(row["kind"], row["images"]) for row in rows] == [
        ("fisher-output", total),
        ("kl", 16),
        ("kl", 32),
        ("kl", total),
    ]
    assert (rows[-1]["of_deviations"], rows[-1]["of_sums"]) == (pytest.approx(1), pytest.approx(1))
    assert all(row["scheme"] == "linear+bias" and row["deviations"] == 16 and row["seconds"] > 0 for row in rows)
    assert capsys.readouterr().out == (tmp_path / "bench_sensitivity_images.md").read_text()
    assert not (cache / "sensitivity").exists()


def test_a_perfect_proxy_has_correlation_one():
    class Perfect:
        evaluations = 3.0

        def total(self, bits):
            return -bits.sum(axis=(1, 2)).astype(float)

    options = bench_sensitivity.BenchOptions(allocations=30, resamples=50)
    bits = bench_sensitivity.random_bits(5, "weights+activations", options)
    rows = correlations("t", "d", {"perfect": Perfect(), "mean bits": None}, bits, bits.mean(axis=(1, 2)), options)
    for row in rows:
        assert (row.spearman, row.low, row.high) == pytest.approx((1, 1, 1))
    assert [row.evaluations for row in rows] == [3.0, 0.0]


def test_random_bits_are_seeded_and_weights_alone_leave_8_bit_activations():
    options = bench_sensitivity.BenchOptions(allocations=50)
    bits = bench_sensitivity.random_bits(4, "weights", options)
    assert (bits[..., 1] == 8).all()
    assert set(np.unique(bits[..., 0])) == set(range(2, 9))
    np.testing.assert_array_equal(bits, bench_sensitivity.random_bits(4, "weights", options))


def test_the_benchmark_writes_what_it_prints_and_leaves_out_tasks_without_data(cache, few, tmp_path, capsys):
    arguments = ["--allocations=12", "--images=24", "--measured_images=8", "--gradient_images=4", "--probes=2"]
    assert bench_sensitivity.main([*arguments, "--resamples=20", f"--output={tmp_path}"]) == 0
    captured = capsys.readouterr()
    assert "resnet20 is left out: Task 'resnet20' needs data" in captured.err
    content = json.loads((tmp_path / "bench_sensitivity.json").read_text())
    rows = [Correlation(**row) for row in content["rows"]]
    assert len(rows) == 2 * 9  # draws x (kinds, accuracy of few images, mean bits)
    assert all(-1 <= row.low <= row.spearman <= row.high <= 1 for row in rows if row.proxy == "kl")
    assert captured.out == (tmp_path / "bench_sensitivity.md").read_text()
    assert "resnet20 was left out" in captured.out
    assert captured.out.count("| kl |") == 1
    assert (tmp_path / "bench_sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert plot(rows) == plot(rows)
