"""The registered environment ids: a table. An id's settings are frozen; a change makes a new version."""

from typing import Any

import gymnasium

ENTRY_POINT = "quantenv.envs.environment:QuantizationEnv"
VECTOR_ENTRY_POINT = "quantenv.envs.vector:VectorTableEnv"

#: Keyword arguments of `QuantizationEnv` that each id sets; `gymnasium.make` can override any of them.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    # The search of HAQ (Wang et al., CVPR 2019; mit-han-lab/haq, linear quantization): a layer's weights,
    # then its activations, under a latency budget, projected; reward 0.1 x (accuracy - reference).
    "quantenv/HAQ-v0": {
        "task": "digits",
        "metric": "latency",
        "budget": 0.6,
        "decisions": "weights+activations",
        "observation": "haq",
        "constraint": "project",
        "reward_scale": 0.1,
        "pinned": "first_last",
    },
    # The default benchmark: weight bits of the digits network under a size budget, masked.
    "quantenv/Digits-v0": {"task": "digits", "metric": "size", "budget": 0.4},
}

#: The same of ids over shipped tables, which are vectorised without a loop, too; bits and ties are the table's.
TABLE_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "quantenv/DigitsTable-v0": {"task": "digits_table", "metric": "size", "budget": 0.4},
    "quantenv/ResNet20Table-v0": {"task": "resnet20_table", "metric": "size", "budget": 0.4},
}

#: Ids of the other environment classes of this package: entry point and keyword arguments. Not vectorised by an id of
#: their own: `gymnasium.make_vec` steps copies of them one by one.
OTHER_ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    # A vector of rewards for MO-Gymnasium's agents: accuracy and -size, nothing bounded.
    "quantenv/MODigitsTable-v0": (
        "quantenv.envs.multi_objective:MultiObjectiveEnv",
        {"task": "digits_table", "objectives": ("accuracy", "size")},
    ),
    # HAQ's search with its switches between paper and published code; the defaults are the paper's.
    "quantenv/HAQSwitched-v0": ("quantenv.envs.haq:HAQEnv", {"task": "digits"}),
    # Another size budget in every episode, shown to the agent: one policy for the whole front.
    "quantenv/DigitsTableSweep-v0": ("quantenv.envs.budget_sweep:BudgetSweepEnv", {"task": "digits_table"}),
}


def register_environments() -> None:
    """Registers every id of the tables above with Gymnasium; ids already there are left as they are."""
    for name, kwargs in (ENVIRONMENTS | TABLE_ENVIRONMENTS).items():
        if name not in gymnasium.registry:
            vectorised = VECTOR_ENTRY_POINT if name in TABLE_ENVIRONMENTS else None
            gymnasium.register(id=name, entry_point=ENTRY_POINT, vector_entry_point=vectorised, kwargs=kwargs)
    for name, (entry_point, kwargs) in OTHER_ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            scalar = "multi_objective" not in entry_point  # Gymnasium's checker expects the reward to be a number
            gymnasium.register(id=name, entry_point=entry_point, disable_env_checker=not scalar, kwargs=kwargs)
