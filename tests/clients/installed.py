"""Which clients are installed: the tests of the others are not collected, and the run says so at its end.

`make test-clients` installs all of them and sets `QUANTENV_CLIENTS=all`: what is missing then is an error.
"""

import os
from importlib.metadata import PackageNotFoundError, version

#: The distributions that each module of tests needs.
NEEDS = {
    "test_cleanrl.py": ["gymnasium"],
    "test_gymnasium_torch.py": ["array-api-compat"],
    "test_gymnasium_wrappers.py": ["gymnasium"],
    "test_minari.py": ["minari", "jax"],
    "test_mo_gymnasium.py": ["mo-gymnasium"],
    "test_rl_zoo.py": ["rl_zoo3"],
    "test_rliable.py": ["rliable", "pandas"],
    "test_rllib.py": ["ray", "dm_tree", "lz4", "ormsgpack", "tensorboardX"],
    "test_stable_baselines.py": ["stable-baselines3", "sb3-contrib"],
    "test_tianshou.py": ["tianshou"],
    "test_torchrl.py": ["torchrl"],
}


def found(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


MISSING = {module: [name for name in names if found(name) is None] for module, names in NEEDS.items()}
IGNORED = [] if os.environ.get("QUANTENV_CLIENTS") == "all" else [name for name in MISSING if MISSING[name]]


def summary() -> list[str]:
    """Says which clients are tested, and which are not."""
    here = sorted({f"{name} {found(name)}" for module in NEEDS if module not in IGNORED for name in NEEDS[module]})
    lines = [f"Clients: tests/clients tests {', '.join(here)}."]
    if IGNORED:
        lacking = sorted({name for names in MISSING.values() for name in names})
        lines.append(
            f"Not collected, for want of {', '.join(lacking)}: {', '.join(sorted(IGNORED))}; `make test-clients` "
            "installs and runs them all."
        )
    return lines
