"""Results of small commands, for tests in a folder of their own; importing it loads no torch."""

from experiments.studies.recorded import Recorded

FILES = {
    "quantenv/__init__.py": "",
    "quantenv/numbers.py": '"""Numbers."""\nFACTOR = 2\n',
    "agents/__init__.py": "",
    "agents/base.py": "",
    "experiments/__init__.py": "",
    "experiments/shown.py": "WIDTH = 80\n",
    "experiments/first.py": """
        import os, sys
        from pathlib import Path
        from experiments import shown
        from quantenv.numbers import FACTOR

        with open("log.txt", "a") as log:
            log.write("first\\n")
        Path("out").mkdir(exist_ok=True)
        value = int((Path(os.environ["QUANTENV_DATA"]) / "value.txt").read_text())
        Path("out/first.json").write_text(str(FACTOR * value))
    """,
    "experiments/second.py": """
        import os, signal, sys
        from pathlib import Path

        with open("log.txt", "a") as log:
            log.write("second\\n")
        work = Path(sys.argv[1])
        before = work / "halfway"
        went_on = before.exists()
        before.touch()
        if os.environ.get("FAIL") == "child" and not went_on:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("FAIL") == "parent" and not went_on:
            Path("child").write_text(str(os.getpid()))
            os.kill(os.getppid(), int(os.environ["SIGNAL"]))
            signal.pause()
        if os.environ.get("FAIL") == "nothing":
            sys.exit(0)
        (work / "made").mkdir(exist_ok=True)
        words = [Path("out/first.json").read_text(), str(went_on), os.environ["WORD"]]
        (work / "made" / "second.txt").write_text(" ".join(words))
    """,
    "experiments/part.py": """
        import json, sys
        from pathlib import Path

        file = Path("out/parts.json")
        parts = json.loads(file.read_text()) if file.exists() else {}
        parts[sys.argv[1]] = 1
        file.write_text(json.dumps(parts))
    """,
}
TABLE = (
    Recorded(
        "first", ("out/first.json",), ("-m", "experiments.first"), ("experiments.first",), 0.1, data=("value.txt",)
    ),
    Recorded(
        "second",
        ("out/second.txt",),
        ("-m", "experiments.second", "{work}"),
        ("experiments.second",),
        0.1,
        reads=("out/first.json",),
        copies={"{work}/ma*/second.txt": "out/second.txt"},
        variables={"WORD": "word"},
    ),
    Recorded("third", ("out/third",), ("-m", "none"), ("experiments.shown",), 0.1, needs=("no_such_module",)),
    *(
        Recorded(f"part {name}", ("out/parts.json",), ("-m", "experiments.part", name), (), 0.1, gathers=True)
        for name in ("a", "b")
    ),
)
MADE = TABLE[:2]
