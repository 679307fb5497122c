import math

import numpy as np
import pytest

from quantenv.core.errors import QuantenvError
from quantenv.envs.constraints import CONSTRAINTS, make_constraint


def test_lambda_climbs_the_dual_and_prices_the_episode_it_is_reported_for():
    constraint = make_constraint("lagrangian", {"initial": 2.0, "learning_rate": 0.5, "target": 0.25})
    assert constraint.info() == {"penalty_lambda": 2.0}
    assert constraint.reward(1.0, np.array([1.5, 0.5, 1.25])) == pytest.approx(1.0 - 2.0 * 0.75)
    assert constraint.info()["penalty_lambda"] == pytest.approx(2.0 + 0.5 * 0.75)
    assert constraint.reward(1.0, np.array([1.0, 0.5])) == 1.0
    assert constraint.info()["penalty_lambda"] == pytest.approx(2.0 + 0.5 * 0.5)
    constraint.restart()
    assert constraint.info() == {"penalty_lambda": 2.0}


def test_lambda_settles_where_the_violation_rate_meets_the_target():
    constraint = make_constraint("lagrangian", {"initial": 0.0, "learning_rate": 0.01, "target": 0.2})
    rng = np.random.default_rng(0)
    violations = []
    for _ in range(20_000):  # an agent that breaks the budget with probability exp(-lambda)
        violated = rng.random() < math.exp(-constraint.info()["penalty_lambda"])
        constraint.reward(0.0, np.array([1.1 if violated else 0.9]))
        violations.append(violated)
    assert np.mean(violations[5_000:]) == pytest.approx(0.2, abs=0.01)
    assert constraint.info()["penalty_lambda"] == pytest.approx(-math.log(0.2), abs=0.5)


def test_lambda_never_turns_into_a_bonus():
    constraint = make_constraint("lagrangian", {"initial": 0.0, "target": 1.0})
    for _ in range(5):
        assert constraint.reward(0.5, np.array([0.1])) == 0.5
    assert constraint.info() == {"penalty_lambda": 0.0}


@pytest.mark.parametrize("floor", [-1.0, -7, -math.inf])
def test_reject_gives_infeasible_allocations_the_floor(floor):
    constraint = make_constraint("reject", {"infeasible_reward": floor})
    assert constraint.reward(0.3, np.array([1.0 + 1e-12, 0.2])) == 0.3
    assert constraint.reward(0.3, np.array([0.9, 1.01])) == floor


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maks", None, "Did you mean 'mask'"),
        ("mask", {"initial": 1}, "takes no options"),
        ("reject", {"infeasible_rewards": -1}, "Did you mean 'infeasible_reward'"),
        ("reject", {"infeasible_reward": "-1"}, "expected a number"),
        ("reject", {"infeasible_reward": math.nan}, "expected a number or -inf"),
        ("reject", {"infeasible_reward": math.inf}, "expected a number or -inf"),
        ("lagrangian", {"_lambda": 3}, "Unknown option"),
        ("lagrangian", {"target": 1.5}, "from 0 to 1"),
        ("lagrangian", {"learning_rate": -0.1}, ">= 0"),
        ("lagrangian", {"initial": math.inf}, "finite"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(QuantenvError, match=message):
        make_constraint(name, options)


def test_every_constraint_is_made_by_its_name():
    assert [type(make_constraint(name)) for name in CONSTRAINTS] == list(CONSTRAINTS.values())
