import pytest

from experiments.cli.main import main
from experiments.options.runs import TrainOptions
from quantenv.core.errors import QuantenvError
from tests.experiments.cli.test_train import cut, results
from tests.experiments.conftest import SHORT, run_train


def test_a_run_with_workers_is_the_run_without_resumed_or_not(finished, tmp_path):
    folder = run_train(tmp_path, *SHORT, "--workers=2")
    assert results(folder) == results(finished)
    cut(folder, 35)
    assert main(["train", "--resume", str(folder), "--workers=1"]) == 0
    assert results(folder) == results(finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"pool": "rai"}, "Did you mean 'ray'"),
        ({"ray_address": "auto"}, "choose pool 'ray'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(options, message):
    with pytest.raises(QuantenvError, match=message):
        TrainOptions(**options)
