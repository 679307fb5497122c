"""Channel groups from the command line, and their benchmark."""

import json

from experiments.cli.main import main
from experiments.studies import bench_channel_groups
from experiments.studies.bench_channel_groups import RANDOM, SORTED, cut_task
from quantenv.core.allocation import Allocation
from quantenv.tasks import get_task
from tests.digits import FEW_DIGITS
from tests.experiments.conftest import run_train

SHORT = ("--agent=random", "--evaluations=4", "--qat.epochs=1", "--budget=0.5")
FEW = f"--task={FEW_DIGITS}"


def test_a_run_over_groups_is_validated_and_its_allocation_fine_tuned_from_the_file_alone(tmp_path, capsys):
    folder = run_train(tmp_path, FEW, *SHORT, "--channel_groups=3", "--least_channels=4", "--decisions=hierarchical")
    allocation = Allocation.load(folder / "best.json")
    assert sorted({name.partition("#")[0] for name in allocation.names}) == sorted(
        layer.name for layer in get_task("digits").layers
    )
    assert set(map(len, allocation.channels)) == {4, 5, 8, 16}  # 12, 24, 48 and 10 channels
    assert main(["validate", str(folder)]) == 0
    capsys.readouterr()
    assert main(["finetune", "--run", str(folder)]) == 0
    assert "The same as the found row" in capsys.readouterr().out
    output = tmp_path / "alone"
    arguments = ["--allocation", str(folder / "best.json"), "--qat.epochs=1", "--output", str(output)]
    assert main(["finetune", *arguments]) == 0
    first, second = (json.loads((path / "finetune.json").read_text()) for path in (folder / "finetune", output))
    assert first == second


def test_solving_and_measuring_are_about_groups(capsys):
    chosen = ["--channel_groups={stem: 2}", "--task=digits"]
    assert main(["sensitivity", *chosen, "--kind=loss", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["layers"][:3] == ["stem#0", "stem#1", "block1.depthwise"]
    assert main(["solve", "digits", chosen[0], "--sensitivity=loss"]) == 0
    solved = json.loads(capsys.readouterr().out)
    assert len(solved["bits"]) == 9
    assert Allocation.from_dict(solved["allocation"]).groups.keys() == {"stem"}
    harms = [row[weight - 1] for row, (weight, _) in zip(measured_weights(measured), solved["bits"], strict=True)]
    assert abs(sum(harms) - solved["objective"]) < 1e-9
    assert main(["tasks", *chosen]) == 0
    assert "stem#1" in capsys.readouterr().out


def measured_weights(measured):
    return measured["sensitivities"]["loss"]["weights"]


def test_what_makes_no_sense_is_refused(tmp_path, refused):
    train = ("train", f"--runs={tmp_path}", *SHORT)
    assert "--channel_groups is 0" in refused(*train, "--channel_groups=0")
    assert "too few for 13 groups" in refused(*train, "--channel_groups={stem: 13}")
    assert "Did you mean 'stem'" in refused(*train, "--channel_groups={stm: 2}")
    assert "give --channel_groups" in refused(*train, "--least_channels=2")
    assert "one codebook for a layer" in refused(*train, "--channel_groups=2", "--scheme=k-means")
    assert "leave --channel_groups out" in refused(*train, "--channel_groups=2", "--task=digits_table")
    assert "no layer has any" in refused(*train, "--decisions=hierarchical")
    assert "read the same activations" in refused(*train, "--channel_groups=2", "--decisions=joint")
    assert "leave --channel_groups out" in refused("enumerate", "--channel_groups=2", f"--output={tmp_path / 't.npz'}")
    assert not list(tmp_path.glob("*"))


def test_the_control_has_groups_of_the_same_sizes():
    by_sensitivity, at_random = (cut_task(get_task("digits"), 4, cut, 0) for cut in (SORTED, RANDOM))
    sizes = [
        {name: list(map(len, groups)) for name, groups in task.channel_groups.items()}
        for task in (by_sensitivity, at_random)
    ]
    assert sizes[0] == sizes[1]
    assert by_sensitivity.identity != at_random.identity
    assert cut_task(get_task("digits"), 4, RANDOM, 1).identity != at_random.identity
    assert cut_task(get_task("digits"), 1, SORTED, 0) is get_task("digits")


def test_the_benchmark_compares_every_way_at_equal_evaluations(tmp_path, capsys):
    arguments = ["--evaluations=2", "--seeds=1", "--budgets=[0.5]", "--groups=[1,2]", f"--output={tmp_path}"]
    arguments.append(FEW)
    assert bench_channel_groups.main(arguments) == 0
    content = json.loads((tmp_path / "bench_channel_groups.json").read_text())
    found = [(row["groups"], row["cut"], row["agent"], row["decisions"], row["length"]) for row in content["rows"]]
    assert found == [
        (1, SORTED, "annealing", "weights", 8),
        (1, SORTED, "reinforce", "weights", 8),
        (2, SORTED, "annealing", "weights", 16),
        (2, SORTED, "annealing", "hierarchical", 16),
        (2, SORTED, "reinforce", "weights", 16),
        (2, SORTED, "reinforce", "hierarchical", 16),
        (2, RANDOM, "annealing", "weights", 16),
    ]
    assert all(0 < row["test"] <= 1 and row["test_loss"] > 0 for row in content["rows"])
    assert len(content["findings"]) == 5 + 1
    table = (tmp_path / "bench_channel_groups.md").read_text()
    assert table == capsys.readouterr().out
    assert table.count("\n| 2 |") == 5
