import textwrap

import pytest

from experiments.studies.source_tree import SourceTree, is_within

FILES = {
    "quantenv/__init__.py": "",
    "quantenv/numbers.py": '"""Numbers."""\n\nfrom quantenv.deep import deeper\n\nHALF = 0.5\n',
    "quantenv/deep/__init__.py": "",
    "quantenv/deep/deeper.py": "import json\n",
    "quantenv/deep/settings.yaml": "a: 1  # one\n",
    "quantenv/shown.py": "from quantenv import pictures\n",
    "quantenv/pictures.py": "",
    "quantenv/late.py": "",
    "quantenv/kinds.py": "",
    "quantenv/named.py": "",
    "agents/__init__.py": "",
    "agents/base.py": 'from quantenv import numbers\nKNOWN = {"a": "agents.first:First"}\n',
    "agents/first.py": "",
    "experiments/__init__.py": "",
    "experiments/studies/bench.py": """
        import os
        from typing import TYPE_CHECKING

        import numpy as np

        import agents.base
        import quantenv.shown

        if TYPE_CHECKING:
            from quantenv.kinds import Kind

        REGISTRY = {"x": "quantenv.named:Thing", "y": "not.a.module", "z": "quantenv.deep"}

        def work(kind: "Kind") -> float:
            '''Says quantenv.kinds.'''
            from quantenv.late import anything
            return f"{kind}" f"{np.pi:.3f} and {os.sep!r}"
    """,
}


@pytest.fixture
def tree(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(content))
    return SourceTree(tmp_path)


def test_everything_that_is_imported_is_behind_a_module(tree):
    found = tree.behind(["experiments.studies.bench"])
    assert sorted(found) == [
        "agents.base",
        "experiments.studies.bench",
        "quantenv",
        "quantenv.deep",
        "quantenv.deep.deeper",
        "quantenv.late",
        "quantenv.named",
        "quantenv.numbers",
        "quantenv.pictures",
        "quantenv.shown",
    ]
    assert found["quantenv.deep"] == tree.root / "quantenv" / "deep" / "__init__.py"


def test_what_is_left_out_brings_nothing(tree):
    found = tree.behind(["experiments.studies.bench"], ["quantenv.shown", "quantenv.deep"])
    assert sorted(name for name in found if name.startswith("quantenv.")) == [
        "quantenv.late",
        "quantenv.named",
        "quantenv.numbers",
    ]
    assert is_within("quantenv.deep.deeper", ["quantenv.deep"])
    assert not is_within("quantenv.deeper", ["quantenv.deep"])


def change(tree, name, before, after):
    file = tree.root / name
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


@pytest.mark.parametrize(
    ("name", "before", "after", "package"),
    [
        ("quantenv/numbers.py", "HALF = 0.5", "HALF = 0.25", "quantenv"),
        ("quantenv/numbers.py", "HALF = 0.5", "HALF = 0.5\nMORE = 1", "quantenv"),
        ("quantenv/deep/settings.yaml", "a: 1", "a: 2", "quantenv.deep"),
        ("experiments/studies/bench.py", "{np.pi:.3f}", "{np.pi:.4f}", "experiments.studies"),
        ("experiments/studies/bench.py", "{os.sep!r}", "{os.sep!s}", "experiments.studies"),
        ("quantenv/late.py", "", "import json", "quantenv"),
    ],
)
def test_a_change_of_code_moves_the_hash_of_its_package_alone(tree, name, before, after, package):
    hashes = tree.hashes(["experiments.studies.bench"])
    change(tree, name, before, after) if before else (tree.root / name).write_text(after)
    now = tree.hashes(["experiments.studies.bench"])
    assert {key for key in hashes | now if hashes.get(key) != now.get(key)} == {package}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("quantenv/numbers.py", '"""Numbers."""', '"""Other words."""'),
        ("quantenv/numbers.py", '"""Numbers."""', ""),
        ("quantenv/numbers.py", "HALF = 0.5", 'HALF = (\n    0.5\n)  # a half\n"""Half of one."""'),
        ("quantenv/deep/settings.yaml", "a: 1  # one", "a: 1\n# two"),
        ("experiments/studies/bench.py", "Says quantenv.kinds.", "quantenv.kinds"),
        ("experiments/studies/bench.py", 'f"{kind}" f"', 'f"{kind}'),
        ("agents/first.py", "", "X = 1"),
        ("quantenv/kinds.py", "", "X = 1"),
    ],
)
def test_prose_layout_and_what_is_not_behind_it_move_nothing(tree, name, before, after):
    hashes = tree.hashes(["experiments.studies.bench"])
    change(tree, name, before, after) if before else (tree.root / name).write_text(after)
    assert tree.hashes(["experiments.studies.bench"]) == hashes


def test_a_hash_is_the_same_under_every_python(tree):
    """Python 3.11, 3.12 and 3.13 gave the one on the right."""
    (tree.root / "quantenv" / "pictures.py").write_text(
        'async def f(a, /, *b: int, c=-1.5e-3, **d) -> "x":\n'
        '    match a:\n        case {"k": [1, *rest]}:\n            return f"{a!r:>{c}}" "tail" or {*b}\n'
    )
    assert tree.hashes(["quantenv.pictures"]) == {"quantenv": "d86aa3a93f47f0e1"}
