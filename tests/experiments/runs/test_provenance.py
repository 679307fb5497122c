import copy
import importlib.metadata
import json

import pytest

from experiments.runs.provenance import Environment, changes, check_identity, environment
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import fit


def recorded(content):
    return fit(content, Environment, "The file environment.json")


def test_environment_is_json_and_names_versions():
    content = environment("abc", 2)
    assert json.loads(json.dumps(content)) == content
    assert content["packages"]["torch"] == importlib.metadata.version("torch")
    assert (content["evaluator_identity"], content["threads"]) == ("abc", 2)
    assert content["cpu"]


def test_identity_must_agree():
    check_identity(recorded(environment("abc", 1)), "abc")
    with pytest.raises(QuantenvError, match=r"identity abc, but here the evaluator's is xyz"):
        check_identity(recorded(environment("abc", 1)), "xyz")


def test_changes_are_named():
    before = environment("abc", 1)
    assert list(changes(recorded(before), before)) == []
    now = copy.deepcopy(before) | {"threads": 4}
    before["packages"]["torch"] = "1.0"
    assert list(changes(recorded(before), now)) == [
        f"torch {now['packages']['torch']} instead of 1.0",
        "threads 4 instead of 1",
    ]
