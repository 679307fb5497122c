import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.studies import bench_fidelity, fidelity
from experiments.studies.bench_fidelity import (
    DEFAULT,
    FidelityOptions,
    ceiling,
    correlate,
    main,
    rank_correlations,
    to_markdown,
)
from experiments.studies.fidelity import (
    REWARDS,
    Journal,
    Measured,
    Trained,
    draw_allocations,
    journal_of,
    reduced,
    train_all,
)
from quantenv.core.allocation import Allocation
from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.evaluation import Evaluation
from quantenv.hardware import Budget, load_device, parse_budgets
from quantenv.tasks import get_task
from quantenv.training import FinetuneConfig, finetune
from tests.synthetic import chain_costs

TINY = (
    *("--allocations=3", "--seeds=2", "--qat.epochs=1", "--resamples=50", "--workers=1"),
    *("--train_images=32", "--images=40", "--test_images=90"),
)


@pytest.fixture(scope="module")
def task():
    return reduced(get_task("digits"), train=32, calibration=32, search=40, test=90)


@pytest.fixture(scope="module")
def size(task):
    return chain_costs(task.layers, load_device("generic"))["size"]


@pytest.fixture(autouse=True)
def cache(task, tmp_path, monkeypatch):
    """A cache of its own for the journals; the task was loaded from the usual one."""
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few_calibrate(task, monkeypatch):
    """Lets a benchmark of digits prepare few images: it prepares them under every scheme."""
    few = dataclasses.replace(
        get_task("digits"), splits={**get_task("digits").splits, "calibration": task.splits["calibration"]}
    )
    monkeypatch.setattr(bench_fidelity, "get_task", {"digits": few}.__getitem__)


def run(folder, *arguments):
    assert main([*TINY, f"--output={folder}", *arguments]) == 0
    return json.loads((folder / "bench_fidelity.json").read_text())["cases"]


def numbers(case):
    """What a case holds without times and circumstances."""
    return [
        (each["weight_bits"], [m["evaluation"] for m in each["rewards"].values()], [t["test"] for t in each["full"]])
        for each in case["allocations"]
    ]


def test_rewards_can_be_chosen(tmp_path, few_calibrate):
    cases = run(tmp_path, '--rewards=["ptq", "ptq, batch-norm"]')
    assert [row["reward"] for row in cases["digits, size 0.3"]["rows"]] == [
        *("ptq: accuracy", "ptq: loss", "ptq, batch-norm: accuracy", "ptq, batch-norm: loss", "mean bits"),
    ]


@pytest.mark.parametrize(
    ("rewards", "message"), [(["ptq", "luck"], "luck"), (["ptq, batch-norm"], "lacks ptq, which the others")]
)
def test_rewards_are_checked(rewards, message):
    with pytest.raises(QuantenvError, match=message):
        FidelityOptions(rewards=rewards)


def test_a_tiny_benchmark(tmp_path, capsys, cache, few_calibrate):
    cases = run(tmp_path)
    (case,) = cases.values()
    assert capsys.readouterr().out == (tmp_path / "bench_fidelity.md").read_text() == to_markdown(cases)
    allocations = case["allocations"]
    assert allocations[0]["weight_bits"] == [2] * 8
    assert len({tuple(each["weight_bits"]) for each in allocations}) == 3
    assert all(each["size"] <= 0.3 + 1e-9 for each in allocations)
    assert case["samples"] == {"train": 32, "calibration": 32, "search": 40, "test": 90}
    truth = [np.mean([run["test"]["correct"] / 90 for run in each["full"]]) for each in allocations]
    rows = {row["reward"]: row for row in case["rows"]}
    assert len(rows) == 2 * len(REWARDS) + 1
    for name in REWARDS:
        found = [each["rewards"][name] for each in allocations]
        losses = [-each["evaluation"]["loss"] for each in found]
        assert rows[f"{name}: loss"]["spearman"][0] == pytest.approx(spearmanr(losses, truth).statistic)
        assert rows[f"{name}: loss"]["favourite"] == pytest.approx(truth[int(np.argmax(losses))])
        assert rows[f"{name}: loss"]["seconds"] == np.median([each["seconds"] for each in found]) > 0
    # Again, beside a case of another budget: that is kept, and the numbers are the same.
    kept = json.dumps({"cases": {"digits, size 0.5": case}})
    (tmp_path / "bench_fidelity.json").write_text(kept)
    again = run(tmp_path)
    assert again["digits, size 0.5"] == case
    assert numbers(again["digits, size 0.3"]) == numbers(case)
    assert [row["spearman"] for row in again["digits, size 0.3"]["rows"]] == [r["spearman"] for r in case["rows"]]
    assert "## digits, size 0.5" in (tmp_path / "bench_fidelity.md").read_text()
    assert not any(cache.rglob("*.json"))


def test_a_stopped_benchmark_goes_on(tmp_path, monkeypatch, task, cache):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return finetune(*arguments, **options)

    allocations = [Allocation.make(task.layers, bits) for bits in (2, 3)]
    configs = [FinetuneConfig(epochs=1, seed=seed) for seed in range(3)]
    whole = train_all(task, allocations, configs, Journal(tmp_path / "other.json"))
    monkeypatch.setattr(fidelity, "finetune", counted)
    with pytest.raises(KeyboardInterrupt):
        train_all(task, allocations, configs, journal_of(task))
    assert len(calls) == 4
    resumed = train_all(task, allocations, configs, journal_of(task))
    assert len(calls) == 7
    assert [[(r.search, r.test) for r in runs] for runs in resumed] == [
        [(r.search, r.test) for r in runs] for runs in whole
    ]
    for allocation, runs in zip(allocations, whole, strict=True):
        for config, trained in zip(configs, runs, strict=True):
            result = finetune(task, allocation, config)
            assert (trained.search, trained.test) == (result.search, result.test)
    journal_of(task).remove()
    assert not any(cache.rglob("*.json"))


def test_workers_change_nothing(tmp_path, task):
    allocations = [Allocation.make(task.layers, bits) for bits in (2, 4)]
    configs = [FinetuneConfig(epochs=1)]
    one = train_all(task, allocations, configs, Journal(tmp_path / "one.json"), workers=1)
    two = train_all(task, allocations, configs, Journal(tmp_path / "two.json"), workers=2)
    assert [[(r.search, r.test) for r in runs] for runs in one] == [[(r.search, r.test) for r in runs] for runs in two]


@pytest.mark.parametrize("ratio", [0.3, 0.42, 0.6])
def test_allocations_fill_the_budget_and_differ(task, size, ratio):
    (budget,) = parse_budgets("size", ratio, {"size": size})
    options = (2, 3, 4, 6, 8)
    drawn = draw_allocations(task, size, budget, options, 8, 20, 0)
    assert drawn == draw_allocations(task, size, budget, options, 8, 20, 0)
    assert drawn[1:] != draw_allocations(task, size, budget, options, 8, 20, 1)[1:]
    assert len({each.hash for each in drawn}) == 20
    fitting = [bits for bits in options if bits / 8 <= ratio]
    assert drawn[0].weight_bits == (max(fitting),) * 8
    for allocation in drawn:
        assert size.cost(allocation.weight_bits, allocation.activation_bits) <= budget.limit
    for allocation in drawn[1:]:
        for layer, bits in enumerate(allocation.weight_bits):
            if bits < 8:
                more = list(allocation.weight_bits)
                more[layer] = options[options.index(bits) + 1]
                assert size.cost(more, allocation.activation_bits) > budget.limit


def test_budgets_that_leave_too_few_allocations_are_refused(task, size):
    with pytest.raises(InfeasibleBudgetError):
        draw_allocations(task, size, Budget("size", 0.2 * size.reference), (2, 8), 8, 5, 0)
    with pytest.raises(QuantenvError, match="Only 1 different"):
        draw_allocations(task, size, Budget("size", 0.25 * size.reference), (2, 8), 8, 5, 0)


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(0)
    values, target = rng.integers(0, 5, (7, 12, 3)).astype(float), rng.integers(0, 4, (7, 12)).astype(float)
    found = rank_correlations(values, target)
    for index in np.ndindex(7, 3):
        assert found[index] == pytest.approx(spearmanr(values[index[0], :, index[1]], target[index[0]]).statistic)
    assert rank_correlations(np.ones((4, 1)), np.arange(4.0)) == 0


def made_up(correct, samples=1000):
    evaluation = Evaluation(int(correct), samples, float(1 - correct / samples))
    return Trained(evaluation, evaluation, 2.0)


def test_rewards_are_told_apart_where_they_differ():
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(500, 980, 20))
    full = [[made_up(value + 1), made_up(value)] for value in truth]
    noisy, exact = ([Evaluation(int(v), 1000, float(1 - v / 1000)) for v in x] for x in (rng.permutation(truth), truth))
    rewards = {name: [Measured(each, 1.0) for each in noisy] for name in ("ptq", "other")}
    rewards["good"] = [Measured(each, 3.0) for each in exact]
    allocations = [Allocation(("a",), (2 + index % 3,), (8,)) for index in range(len(truth))]
    rows = {row.reward: row for row in correlate(allocations, rewards, full, FidelityOptions(resamples=300))}
    assert rows["good: accuracy"].spearman == rows["good: loss"].spearman == (1, 1, 1)
    assert rows["good: accuracy"].difference[1] > 0
    assert rows["other: accuracy"].difference == rows[DEFAULT].difference == (0, 0, 0)
    assert rows["good: loss"].favourite == pytest.approx(max(truth) / 1000 + 0.0005)
    assert (rows["good: loss"].seconds, rows["mean bits"].seconds) == (3, 0)


def test_the_ceiling_of_the_full_recipe():
    rng = np.random.default_rng(0)
    same = ceiling([[made_up(value)] * 3 for value in range(500, 520)])
    assert (same.between_seeds, same.reliability, same.highest, same.search) == pytest.approx((1, 1, 1, 1))
    assert (same.seed_deviation, same.seconds) == (0, 2)
    # Equal variances of allocations and seeds: two seeds correlate by 1/2, the mean of four by 4/5 with its like.
    values = 5000 + 200 * (rng.normal(size=(3000, 1)) + rng.normal(size=(3000, 4)))
    noisy = ceiling([[made_up(value, 10_000) for value in row] for row in values])
    assert noisy.between_seeds == pytest.approx(0.5, abs=0.05)
    assert noisy.reliability == pytest.approx(0.8, abs=0.05)
    assert noisy.seed_deviation == pytest.approx(0.02, rel=0.05)
    means = values.mean(axis=1)
    assert noisy.highest == pytest.approx(np.sqrt(0.8), abs=0.03)
    assert noisy.search == pytest.approx(spearmanr(means, means).statistic)


@pytest.mark.parametrize("options", [{"allocations": 2}, {"seeds": 1}, {"workers": 0}, {"resamples": 0}])
def test_mistakes_are_one_sentence(options):
    with pytest.raises(QuantenvError, match="--"):
        FidelityOptions(**options)


def test_damaged_files_are_named(tmp_path, task):
    (tmp_path / "bench_fidelity.json").write_text("[]")
    with pytest.raises(QuantenvError, match=r"bench_fidelity\.json does not fit"):
        run(tmp_path)
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(QuantenvError, match=r"journal\.json is not JSON"):
        Journal(tmp_path / "journal.json")
    with pytest.raises(QuantenvError, match="0 samples"):
        reduced(task, train=0)
