import dataclasses
import json

import pytest

from experiments.studies.peers.job import ACTIONS, Job
from quantenv.core.errors import QuantenvError


def test_a_job_survives_its_way_to_another_process():
    job = Job("quantenv", "evaluate", "resnet20", weight_bits=(8, 4, 2), scheme="linear+bias", images=64)
    assert Job.from_plain(json.loads(json.dumps(dataclasses.asdict(job)))) == job


def test_keys_name_what_is_asked_for():
    assert Job("mct", "mixed", "resnet20", ratio=0.5).key == "mct mixed resnet20 ratio=0.5"
    one, other = (Job("quantenv", "evaluate", "resnet20", weight_bits=bits) for bits in ((8, 2), (2, 8)))
    assert one.key != other.key
    assert dataclasses.replace(one, weights="/tmp/elsewhere.pt").key == one.key


def test_what_a_program_does_not_do_is_refused():
    with pytest.raises(QuantenvError, match=r"'brevitas'.*haq, mct, quantenv"):
        Job("brevitas", "mixed", "resnet20")
    with pytest.raises(QuantenvError, match="haq has no 'gptq'; it does episodes"):
        Job("haq", "gptq", "resnet20")
    assert all(Job(program, action, "resnet20") for program, actions in ACTIONS.items() for action in actions)
