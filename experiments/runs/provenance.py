"""What a run's numbers depend on besides its options: `environment.json`."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantenv.core.errors import QuantenvError
from quantenv.core.reading import Schema

#: Distributions whose version can change a number.
PACKAGES = (
    "quantenv",
    "torch",
    "torchvision",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "scikit-learn",
    "scipy",
    "optuna",
    "cmaes",
)


class Environment(Schema, frozen=True):
    """What `environment.json` holds besides its checksum."""

    evaluator_identity: str
    """The evaluator's content hash; empty for a benchmark, which has many."""
    threads: Annotated[int, msgspec.Meta(ge=1)]
    python: str
    packages: dict[str, str | None]
    git_revision: str | None
    system: str
    cpu: str
    tasks: dict[str, str] = msgspec.field(default_factory=dict)
    """Content hash of each task of a benchmark."""


def environment(identity: str, threads: int) -> dict[str, Any]:
    """Describes where a run happens.

    Args:
        identity: The evaluator's content hash of weights, splits, scheme and settings.
        threads: Threads of torch.

    Returns:
        The content of `environment.json`.
    """
    return {
        "evaluator_identity": identity,
        "threads": threads,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_revision": _git_revision(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
    }


def check_identity(recorded: Environment, identity: str) -> None:
    """Checks that a run's evaluator measures the same thing as when it was recorded.

    Args:
        recorded: Content of the run's `environment.json`.
        identity: The evaluator's content hash now.

    Raises:
        QuantenvError: If they differ.
    """
    if recorded.evaluator_identity != identity:
        raise QuantenvError(
            f"The run was evaluated under identity {recorded.evaluator_identity}, but here the evaluator's is "
            f"{identity}: the task's network, data splits, scheme or settings differ, or the run is of a version of "
            "quantenv that told networks apart in another way, so the two cannot be mixed. Start a new run, or restore "
            "what was installed."
        )


def changes(recorded: Environment, now: dict[str, Any]) -> Iterator[str]:
    """Says which versions and which hardware differ from the recorded ones, one text for each."""
    for name, version in now["packages"].items():
        before = recorded.packages.get(name)
        if before != version:
            yield f"{name} {version} instead of {before}"
    for name in ("python", "cpu", "threads"):
        if getattr(recorded, name) != now[name]:
            yield f"{name} {now[name]} instead of {getattr(recorded, name)}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the commit of the checkout that this file lies in, marked if it was changed; None outside of one."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() if tracked.returncode == 0 else None


def _cpu() -> str:
    """Returns the processor's model name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
