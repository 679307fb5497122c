import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import main
from quantenv.core.allocation import Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.sensitivity import measure
from tests.synthetic_table import synthetic_table

HAWQ = Path(__file__).parents[2] / "data" / "hawq_v3_resnet18.json"

SOUND = {
    "layers": ["a", "b", "c"],
    "bits": [2, 4],
    "perturbation": {"2": [3.0, 2.0, 9.0], "4": [0.5, 0.25, 0.125]},
    "cost": {"size": {"2": [1, 2, 1], "4": [2, 4, 2]}, "time": {"2": [5, 1, 1], "4": [6, 2, 2]}},
    "equal_bits": [],
    "problems": [{"cost": "size", "budget": 6}],
}


@pytest.fixture
def solved(tmp_path, capsys):
    """Writes a problem file, solves it and returns what is printed."""

    def run(content, *arguments):
        (tmp_path / "problem.json").write_text(json.dumps(content))
        capsys.readouterr()
        assert main(["solve", str(tmp_path / "problem.json"), *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def changed(**changes):
    content = copy.deepcopy(SOUND) | changes
    return {key: value for key, value in content.items() if value is not None}


def test_all_nine_published_configurations_of_hawq_v3(capsys):
    assert main(["solve", str(HAWQ)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["published"] == {"equal": 9}
    for found, problem in zip(printed["problems"], json.loads(HAWQ.read_text())["problems"], strict=True):
        assert found["bits"] == problem["published_bits"]
        assert found["objective"] == pytest.approx(problem["published_objective"], rel=1e-9)
        assert (found["metric"], found["budget"]) == (problem["cost"], problem["budget"])
        assert found["cost"] <= problem["budget"] * (1 + 1e-12)
        assert found["proven"]


def test_a_problem_file_loads_no_torch():
    program = f"""
import sys
from experiments.cli.main import main
assert main(["solve", {str(HAWQ)!r}]) == 0
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert json.loads(result.stdout)["published"] == {"equal": 9}


def test_several_budgets_in_every_form(solved):
    forms = [
        {"cost": ["size", "time"], "budget": [7, 8]},
        {"budget": {"size": 7, "time": 8}},
    ]
    first, second = solved(changed(problems=forms))["problems"]
    assert first["bits"] == second["bits"] == [2, 2, 4]
    assert first["objective"] == 5.125
    assert first["cost"] == [5, 8]
    assert second["cost"] == {"size": 5, "time": 8}


def test_tied_pinned_missing_options_and_defaults(solved):
    bits = [entry["bits"] for entry in solved(changed(equal_bits=[["a", "c"]]))["problems"]]
    assert bits == [[4, 2, 4]]
    assert solved(changed(pinned={"b": 4}))["problems"][0]["bits"] == [2, 4, 2]
    without = changed(perturbation={"2": [3.0, 2.0, None], "4": [0.5, 0.25, 0.125]}, layers=None, bits=None)
    assert solved(without)["problems"][0]["bits"] == [4, 2, 4]
    assert solved(without)["layers"] == ["0", "1", "2"]


def test_pairs_of_weight_and_activation_bits(solved):
    pairs = {"4/8": [1.0, 2.0], "8/4": [1.5, 0.5], "8/8": [0.0, 0.0]}
    costs = {"4/8": [1, 1], "8/4": [1, 1], "8/8": [3, 3]}
    content = {
        "bits": [[4, 8], "8/4", [8, 8]],
        "perturbation": pairs,
        "cost": {"x": costs},
        "problems": [{"cost": "x", "budget": 2, "published_bits": [[4, 8], [8, 4]]}],
    }
    (found,) = solved(content)["problems"]
    assert found["bits"] == [[4, 8], [8, 4]]
    assert found["published"]["verdict"] == "equal"


@pytest.mark.parametrize(
    ("published", "tied", "verdict"),
    [
        ([4, 2, 4], [], "equal"),
        ([2, 2, 4], [], "bettered"),
        ([4, 4, 4], [], "infeasible"),
        ([2, 2, 4], [["a", "c"]], "infeasible"),
    ],
)
def test_published_answers_are_judged(solved, published, tied, verdict):
    problem = {"cost": "size", "budget": 6, "published_bits": published}
    printed = solved(changed(problems=[problem], equal_bits=tied))
    assert printed["problems"][0]["published"]["verdict"] == verdict
    assert printed["published"] == {verdict: 1}


def test_equally_good_published_answers_and_wrong_objectives(solved):
    same = {"2": [1.0, 1.0, 1.0], "4": [0.0, 0.0, 0.0]}
    content = changed(perturbation=same, cost={"size": {"2": [1, 1, 1], "4": [2, 2, 2]}})
    verdicts = []
    for published in ([2, 2, 4], [2, 4, 2], [4, 2, 2]):
        problem = {"cost": "size", "budget": 4, "published_bits": published, "published_objective": 1.5}
        entry = solved({**content, "problems": [problem]})["problems"][0]["published"]
        verdicts.append(entry["verdict"])
        assert entry["objective"] == 2.0
        assert "published_objective is 1.5" in entry["remark"]
    assert sorted(verdicts) == ["as good", "as good", "equal"]


def test_top_lists_the_next_best(solved):
    (entry,) = solved(changed(), "--top=3")["problems"]
    harms, costs = np.array(list(SOUND["perturbation"].values())), np.array(list(SOUND["cost"]["size"].values()))
    every = [
        (harms[choice, range(3)].sum(), [SOUND["bits"][option] for option in choice])
        for choice in map(list, itertools.product(range(2), repeat=3))
        if costs[choice, range(3)].sum() <= 6
    ]
    assert [(found["objective"], found["bits"]) for found in entry["top"]] == sorted(every)[:3]
    assert entry["bits"] == entry["top"][0]["bits"]


def test_pareto_curve_of_a_file(solved):
    points = solved(changed(problems=None), "--pareto=size")["pareto"]["points"]
    assert [(point["cost"], point["objective"]) for point in points] == [(4, 14), (5, 5.125), (6, 2.625), (8, 0.875)]
    assert points[1]["bits"] == [2, 2, 4]


def test_an_infeasible_problem_is_said_and_the_others_are_solved(tmp_path, capsys):
    content = changed(problems=[{"cost": "size", "budget": 3.5}, {"cost": "size", "budget": 6}])
    (tmp_path / "problem.json").write_text(json.dumps(content))
    assert main(["solve", str(tmp_path / "problem.json")]) == 2
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)["problems"]
    assert "the least feasible is 4" in first["infeasible"]
    assert second["bits"] == [4, 2, 4]
    assert captured.err.count("\n") == 1
    assert "problems[0]: No choice of options meets size <= 3.5 (the least feasible is 4)" in captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perturbation": None}, "perturbation is missing"),
        ({"perturbation": [1, 2]}, "perturbation is [1, 2]; expected a JSON object"),
        ({"perturbation": {"2": [1, 2, 3]}}, "perturbation['4'] is missing"),
        ({"perturbation": {"2": [1, 2, 3], "4": [1, 2]}}, "perturbation['4'] is 2 numbers; expected one for each of 3"),
        ({"perturbation": {"2": [1, 2, 3], "4": [1, 2, "x"]}}, "perturbation['4'][2] is x; expected a finite number"),
        ({"perturbation": {"2": [1, 2, 3], "4": [1, 2, True]}}, "perturbation['4'][2] is true"),
        ({"perturbation": {"2": [1, 2, 3], "4": [1, 2, float("nan")]}}, "holds NaN, which is no number of JSON"),
        ({"perturbation": {"2": [1, 2, 3], "4": [1, 2, 3], "8": [1, 2, 3]}}, "Unknown bits in perturbation: '8'"),
        ({"perturbation": {"2": [], "4": []}}, "perturbation['2'] is []; expected a list of numbers"),
        ({"perturbation": {"two": [1, 2, 3]}, "bits": None}, "perturbation is two; expected bit-widths"),
        ({"cost": None}, "cost is missing"),
        ({"cost": {}}, "cost is {}; expected a JSON object with entries"),
        ({"cost": {"size": [1, 2]}}, "cost['size'] is [1, 2]; expected a JSON object"),
        ({"cost": {"size": {"2": [1, 2, 1], "4": [2, 4]}}}, "cost['size']['4'] is 2 numbers"),
        ({"cost": {"size": {"2": [1, 2, 1], "4": [2, 4, None]}}}, "cost['size']['4'][2] is missing or null"),
        ({"bits": []}, "bits is []"),
        ({"bits": [2, 2]}, "bits is [2, 2]; expected each option once"),
        ({"bits": [2, 0]}, "bits is 0; expected bit-widths"),
        ({"bits": [2, 4.0]}, "bits is 4.0; expected bit-widths"),
        ({"bits": [2, [4, 8, 8]]}, "bits is [4, 8, 8]; expected bit-widths"),
        ({"bits": [2, 4, 8]}, "perturbation['8'] is missing"),
        ({"layers": ["a", "b"]}, "layers is 2 names; expected 3"),
        ({"layers": ["a", "b", "b"]}, "layers is"),
        ({"equal_bits": [["a", "d"]]}, "Unknown layer in equal_bits[0]: 'd'"),
        ({"equal_bits": [["a", "b"], ["b", "c"]]}, "equal_bits[1] is b; expected each layer in one group"),
        ({"equal_bits": ["ab"]}, "equal_bits is"),
        ({"equal_bits": [[0, 1]]}, "equal_bits[0] is 0; expected names of layers"),
        ({"equal_bit": [], "equal_bits": None}, "equal_bit is no key of a problem file; expected equal_bits"),
        ({"pinned": {"d": 4}}, "Unknown layer in pinned: 'd'"),
        ({"pinned": {"a": 8}}, "pinned['a'] is 8; expected one of the bits 2, 4"),
        ({"pinned": {"a": 2, "b": 4}, "equal_bits": [["a", "b"]]}, "No option is left for layer(s) 0, 1"),
        ({"problems": []}, "problems is missing or empty"),
        ({"problems": {}}, "problems is {}"),
        ({"problems": [3]}, "problems[0] is 3; expected a JSON object"),
        ({"problems": [{"cost": "size"}]}, "problems[0].budget is missing"),
        ({"problems": [{"budget": 3}]}, "problems[0].cost is missing"),
        ({"problems": [{"cost": "sise", "budget": 3}]}, "Did you mean 'size'"),
        ({"problems": [{"cost": "size", "budget": "6"}]}, "problems[0].budget is 6; expected a finite number"),
        ({"problems": [{"cost": ["size", "time"], "budget": 6}]}, "problems[0].budget is 6; expected one number for"),
        ({"problems": [{"cost": ["size", "size"], "budget": [6, 7]}]}, "problems[0].cost is size; expected each cost"),
        ({"problems": [{"cost": "size", "budget": {"size": 6}}]}, "problems[0].cost is size; expected nothing"),
        ({"problems": [{"cost": "size", "budgets": 6}]}, "problems[0].budgets is no key"),
        ({"problems": [{"cost": "size", "budget": 6, "published_bits": [2, 4]}]}, "problems[0].published_bits is"),
        ({"problems": [{"cost": "size", "budget": 6, "published_bits": [2, 4, 6]}]}, "published_bits[2] is 6"),
    ],
)
def test_malformed_files_are_one_sentence_that_names_the_key(refused, tmp_path, changes, message):
    (tmp_path / "problem.json").write_text(json.dumps(changed(**changes)))
    sentence = refused("solve", str(tmp_path / "problem.json"))
    assert message in sentence
    assert "problem.json" in sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"bits": [2], "bits": [4]}', "has the key 'bits' twice"),
        ("\xff", "is not UTF-8"),
        ("[" * 5000, "more than 64 deep"),
        ('{"perturbation": {"' + "9" * 5000 + '": [1]}, "cost": {"a": {}}}', "expected bit-widths"),
    ],
)
def test_damaged_files_are_one_sentence(refused, tmp_path, text, message):
    (tmp_path / "problem.json").write_bytes(text.encode("latin-1"))
    assert message in refused("solve", str(tmp_path / "problem.json"))


def test_mistakes_on_the_command_line_are_one_sentence(refused, tmp_path):
    (tmp_path / "problem.json").write_text(json.dumps(SOUND))
    file = str(tmp_path / "problem.json")
    assert "Cannot read the problem file missing.json" in refused("solve", "missing.json")
    assert "--metric is about tasks" in refused("solve", file, "--metric=size")
    assert "Did you mean 'size'" in refused("solve", file, "--pareto=sise")
    assert "at least 1" in refused("solve", file, "--top=0")
    assert "above 0" in refused("solve", file, "--time_limit=0")
    assert "--top" in refused("solve", file, "--time_limit=3", "--top=2")
    assert "Did you mean 'digits'" in refused("solve", "digit")
    assert "Did you mean 'size'" in refused("solve", "digits_table", "--pareto=sise")
    assert "leave --metric and --budget out" in refused("solve", "digits_table", "--pareto=size", "--budget=0.4")
    assert "The feasible interval" in refused("solve", "digits_table", "--budget=0.1")


def test_help_describes_the_format(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["solve", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key in ("perturbation", "cost", "problems", "layers", "bits", "equal_bits", "pinned", "published_bits"):
        assert key in text.partition("positional arguments")[0]


@pytest.fixture
def table(tmp_path):
    table = synthetic_table(5, groups=[[0, 3], [1], [2, 4]])
    table.save(tmp_path / "table.npz")
    return table


def on_table(capsys, tmp_path, *arguments):
    capsys.readouterr()
    assert main(["solve", str(tmp_path / "table.npz"), *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("metric", ["size", "latency"])
def test_a_task_s_optimum_by_its_sensitivities(table, tmp_path, capsys, metric):
    printed = on_table(capsys, tmp_path, f"--metric={metric}", "--budget=0.7", "--sensitivity=loss", "--top=4")
    env = QuantizationEnv(table, metric=metric, budget=0.7)
    weights = measure(table, "loss").weights
    every = []
    for row in range(table.rows):
        bits = table.allocation(row).weight_bits
        if env.tables[metric].cost(bits, (8,) * 5) <= env.budgets[0].limit:
            every.append((sum(weights[layer, b - 1] for layer, b in enumerate(bits)), [[b, 8] for b in bits]))
    every.sort()
    assert [entry["objective"] for entry in printed["top"]] == pytest.approx([harm for harm, _ in every[:4]])
    assert [entry["bits"] for entry in printed["top"]] == [bits for _, bits in every[:4]]
    allocation = Allocation.from_dict(printed["allocation"])
    assert [list(pair) for pair in allocation.bits] == printed["bits"]
    bits = allocation.weight_bits, allocation.activation_bits
    assert printed["cost"] == {name: costs.cost(*bits) for name, costs in env.tables.items()}
    assert (printed["sensitivity"], printed["budget"]) == ("loss", {metric: env.budgets[0].limit})


def test_a_task_s_pareto_curve(table, tmp_path, capsys):
    printed = on_table(capsys, tmp_path, "--pareto=size")
    points = printed["pareto"]["points"]
    env = QuantizationEnv(table, budget=1.0)
    weights = measure(table).weights
    every = []
    for row in range(table.rows):
        bits = table.allocation(row).weight_bits
        harm = sum(weights[layer, b - 1] for layer, b in enumerate(bits))
        every.append((env.tables["size"].cost(bits, (8,) * 5), harm))
    front = [(c, h) for c, h in sorted(every) if not any(d <= c and g < h - 1e-12 for d, g in every)]
    distinct = [point for number, point in enumerate(front) if number == 0 or point[1] < front[number - 1][1] - 1e-12]
    assert [point["cost"]["size"] for point in points] == [cost for cost, _ in distinct]
    assert [point["objective"] for point in points] == pytest.approx([harm for _, harm in distinct])
