import pytest

from quantenv.evaluation.store.store import EvaluationStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluations.sqlite"


@pytest.fixture
def store(path):
    return EvaluationStore(str(path))
