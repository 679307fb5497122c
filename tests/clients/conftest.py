"""Collects the tests of the clients that are installed, and says at the end which are and which are not.

`make test-clients` installs all of them and sets `QUANTENV_CLIENTS=all`: what is missing then is an error, not an
omission.
"""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest

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
collect_ignore = [] if os.environ.get("QUANTENV_CLIENTS") == "all" else [name for name in MISSING if MISSING[name]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    here = sorted({f"{name} {found(name)}" for names in NEEDS.values() for name in names if found(name)})
    terminalreporter.write_line(f"Clients tested here: {', '.join(here)}.")
    if collect_ignore:
        lacking = sorted({name for names in MISSING.values() for name in names})
        terminalreporter.write_line(
            f"Not collected, for want of {', '.join(lacking)}: {', '.join(sorted(collect_ignore))}. "
            "`make test-clients` installs and tests them all."
        )
