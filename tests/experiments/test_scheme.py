import json

from experiments.cli.main import main
from quantenv.core.allocation import Allocation
from quantenv.evaluation.table.shipped import get_table
from tests.digits import ANY_SCHEME
from tests.experiments.conftest import run_train

SHORT = ("--agent=random", "--evaluations=10", "--qat.epochs=1", f"--task={ANY_SCHEME}")


def test_a_run_under_another_scheme_is_measured_trained_and_validated_under_it(tmp_path, capsys):
    folder = run_train(tmp_path, *SHORT, "--scheme=k-means+batch-norm")
    assert Allocation.load(folder / "best.json").scheme == "k-means+batch-norm"
    linear = run_train(tmp_path, *SHORT, "--scheme=linear")
    of_scheme, of_linear = (
        [json.loads(line)["loss"] for line in (each / "episodes.jsonl").read_text().splitlines()]
        for each in (folder, linear)
    )
    assert all(one < other for one, other in zip(of_scheme, of_linear, strict=True))
    assert main(["validate", str(folder)]) == 0
    capsys.readouterr()
    assert main(["finetune", "--run", str(folder)]) == 0
    assert "The same as the found row" in capsys.readouterr().out


def test_a_scheme_that_is_unknown_or_not_the_table_s_is_refused(tmp_path, refused):
    assert "Did you mean 'k-means'" in refused("train", f"--runs={tmp_path}", "--scheme=kmeans")
    sentence = refused("train", f"--runs={tmp_path}", "--task=digits_table", "--scheme=k-means")
    assert f"under scheme {get_table('digits_table').scheme!r}" in sentence
    assert "use task 'digits'" in sentence
