"""The distribution, the directions of imports, and the promises of README and Makefile."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import setuptools
import torch
import yaml
from torch.utils.data import TensorDataset

from experiments.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
SOURCES = sorted(path for package in ("quantenv", "agents", "experiments") for path in (ROOT / package).rglob("*.py"))

#: The house, from the roof down: a module imports from its own storey and from those below.
STOREYS = (
    ("experiments.studies",),
    ("experiments.cli",),
    ("experiments.reports",),
    ("experiments.leaderboard",),
    ("experiments.runs",),
    ("experiments.options", "experiments.configs"),
    ("agents.rl",),
    ("agents.search",),
    ("agents",),
    ("quantenv.envs",),
    ("quantenv.sensitivity",),
    ("quantenv.training",),
    ("quantenv.evaluation",),
    ("quantenv.tasks", "quantenv.hardware"),
    ("quantenv.backends",),
    ("quantenv.quantization",),
    ("quantenv.graph",),
    ("quantenv.core",),
)


def storey(module: str) -> int | None:
    for height, rooms in enumerate(STOREYS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return height
    return None


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether it does so when it is itself imported."""
    found = []
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        found += [(name, id(node) not in late) for name in names]
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_downwards(path):
    here = storey(module_of(path))
    if here is None:
        assert module_of(path) in ("quantenv", "experiments")
        return
    for name, _ in imports(path):
        there = storey(name)
        assert there is None or there >= here, f"{module_of(path)} imports {name}, which is above it"


def test_nothing_imports_the_tests():
    assert not [(path, name) for path in SOURCES for name, _ in imports(path) if name.split(".")[0] == "tests"]


def test_importing_quantenv_loads_no_torch_and_no_sqlalchemy():
    program = "import sys, quantenv, agents; assert not {'torch', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_package_is_installed_but_the_studies():
    found = setuptools.find_packages(ROOT, **PROJECT["tool"]["setuptools"]["packages"]["find"])
    packages = {module_of(path.parent / "__init__.py") for path in SOURCES}
    assert set(found) == {name for name in packages if not name.startswith("experiments.studies")}


def test_nothing_that_is_installed_needs_the_studies():
    installed = [path for path in SOURCES if not module_of(path).startswith("experiments.studies")]
    assert not [
        (path, name) for path in installed for name, _ in imports(path) if name.startswith("experiments.studies")
    ]


def test_every_yaml_file_is_package_data():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("quantenv", "agents", "experiments"):
        for path in (ROOT / package).rglob("*.yaml"):
            assert "*.yaml" in data[".".join(path.parent.relative_to(ROOT).parts)]


def test_what_ships_of_tasks_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["quantenv.tasks"]
    shipped = {path for pattern in patterns for path in (ROOT / "quantenv" / "tasks").glob(pattern)}
    assert shipped == set((ROOT / "quantenv").rglob("*.safetensors"))
    assert {path.parent.name for path in shipped} == {"data", "prepared", "weights"}


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [
        *PROJECT["project"]["dependencies"],
        *(line for name, lines in extras.items() if name not in ("clients", "dev", "docs") for line in lines),
    ]
    declared = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}
    known = {modules.get(name, name.replace("-", "_")) for name in declared}
    used = {name.split(".")[0] for path in SOURCES for name, _ in imports(path)}
    foreign = used - set(sys.stdlib_module_names) - {"quantenv", "agents", "experiments"}
    assert foreign <= known
    # Some are imported by name, and some through another: torch, SQLAlchemy, Optuna.
    assert known - foreign <= {"tensorboard", "torchvision", "psycopg", "cmaes", "plotly", "pyarrow"}


def test_versions_agree():
    import quantenv

    assert PROJECT["project"]["version"] == quantenv.__version__
    assert f"## {quantenv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_license_is_mit():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "The quantenv developers" in text
    assert PROJECT["project"]["license"] == "MIT"


def test_readme_is_short():
    assert len(README.splitlines()) <= 100


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


#: Variables of the Makefile, which make hands down to what it runs.
VARIABLES = ("ARGS", "TASK", "AGENT", "METRIC", "BUDGET", "EVALUATIONS", "SEED", "RUN")


def make(*arguments: str) -> str:
    # The tests themselves may run under make, whose flags, level and variables would change what this one prints.
    handed = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", *VARIABLES}
    plain = {key: value for key, value in os.environ.items() if key not in handed}
    return subprocess.run(["make", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, env=plain).stdout


def test_readme_s_make_commands_exist():
    commands = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("make")]
    assert len(commands) >= 6
    for command in commands:
        make("--dry-run", *shlex.split(command)[1:])


def test_readme_names_every_subcommand_and_no_other():
    assert all(name in README for name in COMMANDS)
    for name in re.findall(r"`quantenv ([a-z]+)", README):
        assert name in COMMANDS


def test_readme_s_python_example_runs(tmp_path):
    example = blocks("python")[0]
    assert len(example.splitlines()) <= 22
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert "bytes: weight bits" in result.stdout


def test_readme_s_own_network_is_searched(capsys):
    rng = np.random.default_rng(0)
    inputs, labels = torch.tensor(rng.random((300, 1, 8, 8)), dtype=torch.float32), torch.arange(300) % 3
    network = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    names = {
        "network": torch.nn.Sequential(*network).eval(),
        "train_data": TensorDataset(inputs[:200], labels[:200]),
        "held_out_data": TensorDataset(inputs[200:], labels[200:]),
    }
    _, example = blocks("python")
    assert len(example.splitlines()) <= 6
    exec(example.replace("evaluations=500", "evaluations=20"), names)
    found = names["found"]
    assert len(found.episodes) == 20
    assert found.best.weight_bits == found.top.best.allocation(found.setting.env.layers).weight_bits
    assert found.report.row("found", "QAT") is not None
    assert f"{found.report.rows[-1].accuracy:.2%}" in capsys.readouterr().out


def test_readme_says_that_names_may_clash():
    assert "`agents` and `experiments`" in README
    assert "clash" in README


def test_readme_s_entry_point_group_is_the_one_that_is_read():
    from agents.base import ENTRY_POINTS

    (example,) = blocks("toml")
    assert list(tomllib.loads(example)["project"]["entry-points"]) == [ENTRY_POINTS]


def test_make_alone_is_help():
    text = make()
    for target in ("train-agent", "finetune", "validate", "tensorboard", "test", "check", "help"):
        assert f"make {target}" in text


def test_make_hands_on_only_what_is_set():
    command = make("--dry-run", "train-agent", "AGENT=ppo", "SEED=3").splitlines()[-1]
    assert shlex.split(command)[1:] == ["train", "--agent", "ppo", "--seed", "3"]
    everything = "train-agent AGENT=ppo TASK=digits METRIC=bops BUDGET=0.35 EVALUATIONS=500 SEED=3 ARGS=--top_k=2"
    command = make("--dry-run", *everything.split()).splitlines()[-1]
    words = shlex.split(command)[2:]
    assert words == [
        *("--task", "digits", "--agent", "ppo", "--metric", "bops"),
        *("--budget", "0.35", "--evaluations", "500", "--seed", "3", "--top_k=2"),
    ]


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = subprocess.run(
        ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "train-agent"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stdout + result.stderr
    assert not (tmp_path / "venv").exists()


def test_pip_always_gets_the_constraints():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t$(PIP)")]
    assert len(lines) == 4
    assert all("-c constraints.txt" in line for line in lines)


def test_continuous_integration_runs_make_check():
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert script.stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert "\nmake check" in text


def test_pre_commit_runs_the_same_tools():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].split()[0] for hook in repository["hooks"]] == [
        ".venv/bin/ruff",
        ".venv/bin/ruff",
        ".venv/bin/mypy",
    ]


def test_make_benchmark_installs_what_every_agent_of_its_suite_needs():
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "'.[benchmark" in line]
    extras = line.split("[")[1].split("]")[0].split(",")
    packages = {requirement for extra in extras for requirement in PROJECT["project"]["optional-dependencies"][extra]}
    assert {"optuna", "cmaes", "pyarrow", "plotly"} <= {re.split(r"[<>=]", requirement)[0] for requirement in packages}
