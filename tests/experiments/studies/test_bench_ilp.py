import json

from experiments.studies import bench_ilp


def test_every_kind_of_work_is_timed(capsys):
    assert bench_ilp.main(["--layers=4", "--problems=2", "--top=5"]) == 0
    seconds = json.loads(capsys.readouterr().out)["seconds"]
    assert list(seconds) == ["optimum, network", "optimum, unstructured", "5 best, network"]
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in seconds.values())
