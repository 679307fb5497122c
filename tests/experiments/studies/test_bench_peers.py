import json

import pytest

from experiments.studies import bench_peers
from experiments.studies.peers.tables import to_markdown
from quantenv.core.errors import QuantenvError

BITS = [8, 4, 2]


@pytest.fixture
def done(monkeypatch, tmp_path):
    """Stands in for the processes; returns the jobs that were done, in order."""
    jobs = []

    def in_process(job):
        jobs.append(job)
        seconds = {"mct": 100.0, "haq": 90.0 * job.episodes, "quantenv": 6.0 + 0.3 * job.episodes}[job.program]
        result = {"phases": {"imports": 1.0, "data": 5.0, "search": seconds, "evaluation": 0.5}, "scheme": "linear"}
        if job.action != "episodes":
            result |= {"weight_bits": BITS, "ratio": 0.4, "correct": 1500, "samples": 2000}
        return result | ({"version": "2.6.1"} if job.program == "mct" else {})

    monkeypatch.setattr(bench_peers, "in_process", in_process)
    monkeypatch.setattr(bench_peers, "_efficientnet", lambda: tmp_path / "efficientnet.pt")
    return jobs


def race(folder, *arguments):
    assert bench_peers.main([f"--output={folder}", *arguments]) == 0
    return json.loads((folder / "bench_peers.json").read_text())["runs"]


def test_every_part_is_raced_and_written(done, tmp_path, capsys):
    runs = race(tmp_path)
    assert list(runs) == list(dict.fromkeys(job.key for job in done))
    table = (tmp_path / "bench_peers.md").read_text()
    assert table == to_markdown(runs)
    assert table in capsys.readouterr().out
    assert table.count("\n## ") == 4
    assert "| 0.5 | MCT | 0.400 | 75.00% | 100.5 | 0.5 | 1.0 | 5.0 | 8 4 2 |" in table
    assert "| 0.5 | MCT's bits, our `linear` | 0.400 | 75.00% |" in table
    assert "| efficientnet | 3 | MCT, GPTQ, 20 epochs, unweighted | 75.00% | 100.5 |" in table
    assert "Standard error of an accuracy: at most 1.1 points." in table


def test_mcts_bits_are_evaluated_by_our_evaluator_too(done, tmp_path):
    race(tmp_path, "--only=mixed", "--ratios=[0.5]", "--mixed_schemes=[linear]")
    assert [(job.program, job.action) for job in done] == [
        ("mct", "mixed"),
        ("quantenv", "mixed"),
        ("quantenv", "mixed"),
        ("quantenv", "evaluate"),
    ]
    assert [job.scheme for job in done[1:]] == [None, "linear", None]
    assert done[-1].weight_bits == tuple(BITS)


def test_ratios_to_haq_spread_preparation_over_600_episodes(done, tmp_path):
    race(tmp_path, "--only=haq")
    table = (tmp_path / "bench_peers.md").read_text()
    assert "| quantenv | 2,000 | none | 0.300 | 6.0 |" in table
    assert "| haq | 10,000 | an epoch on 20,000 images | 90.000 | 0.0 |" in table
    ratio = 600 * 90 / (600 * 0.3 + 6)
    assert (
        f"ours on our default 2,000 images, 600 episodes with our preparation: {ratio:.1f} (target 150: met)." in table
    )


def test_one_program_is_brought_up_to_date_and_the_others_are_kept(done, tmp_path):
    first = race(tmp_path, "--only=mixed,large")
    done.clear()
    runs = race(tmp_path, "--only=mixed", "--programs=quantenv")
    assert {job.program for job in done} == {"quantenv"}
    assert {job.action for job in done} == {"mixed", "evaluate"}
    assert list(runs) == list(first)


def test_mistakes_are_refused(done, tmp_path):
    with pytest.raises(QuantenvError, match=r"part of the race: 'mixd'.*mixed"):
        race(tmp_path, "--only=mixd")
    with pytest.raises(QuantenvError, match=r"program of the race: 'aimet'.*mct"):
        race(tmp_path, "--programs=aimet")
    (tmp_path / "bench_peers.json").write_text('{"runs": []}')
    with pytest.raises(QuantenvError, match="move it away"):
        race(tmp_path)
