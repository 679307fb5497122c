"""The registered environment ids: a table. An id's settings are frozen; a change makes a new version."""

from typing import Any

import gymnasium

ENTRY_POINT = "quantenv.env.environment:QuantizationEnv"

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


def register_environments() -> None:
    """Registers every id of `ENVIRONMENTS` with Gymnasium; ids already there are left as they are."""
    for name, kwargs in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=ENTRY_POINT, kwargs=kwargs)
