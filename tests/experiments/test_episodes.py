import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.episodes import Episode, EpisodeLog, read_episodes
from quantenv.errors import QuantenvError


def make_episode(evaluation=1, bits=((4, 8), (3, 8)), correct=90, loss=0.25, cost=120.5, feasible=True, reward=-0.05):
    return Episode(evaluation, tuple(bits), correct, 100, loss, reward, {"size": cost}, feasible)


def write(path, episodes):
    path.write_text("".join(episode.to_line() for episode in episodes))


@given(
    loss=st.floats(0, 1e3),
    reward=st.floats(allow_nan=False),
    cost=st.floats(1e-12, 1e12),
    bits=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1),
)
def test_a_line_reads_back_exactly(loss, reward, cost, bits):
    episode = make_episode(loss=loss, reward=reward, cost=cost, bits=bits)
    line = episode.to_line()
    assert line.count("\n") == 1
    assert Episode.from_dict(json.loads(line)) == episode


def test_a_line_torn_at_any_byte_is_left_out(tmp_path):
    path = tmp_path / "episodes.jsonl"
    episodes = [make_episode(1), make_episode(2, correct=91)]
    write(path, episodes)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(first, len(content)):
        path.write_bytes(content[:length])
        assert read_episodes(path) == (episodes[:1], first)
    path.write_bytes(content)
    assert read_episodes(path) == (episodes, len(content))


def test_a_missing_file_holds_no_episodes(tmp_path):
    assert read_episodes(tmp_path / "episodes.jsonl") == ([], 0)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        "\0\0\0",
        make_episode(2).to_line().replace('"bits"', '"bats"').strip(),
        make_episode(2).to_line().replace("90", "190").strip(),
    ],
)
def test_damage_elsewhere_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "episodes.jsonl"
    path.write_text(make_episode(1).to_line() + line + "\n" + make_episode(3).to_line())
    with pytest.raises(QuantenvError, match="line 2, is not a recorded episode"):
        read_episodes(path)


def test_missing_lines_are_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(1), make_episode(3)])
    with pytest.raises(QuantenvError, match="line 2, holds evaluation 3"):
        read_episodes(path)


def test_log_drops_the_torn_line_and_appends_after_the_replay(tmp_path):
    path = tmp_path / "episodes.jsonl"
    episodes = [make_episode(number, correct=80 + number) for number in range(1, 5)]
    write(path, episodes[:2])
    with path.open("a") as file:
        file.write('{"evaluation": 3, "bi')
    recorded, sound = read_episodes(path)
    log = EpisodeLog(path, recorded, sound)
    for episode in episodes:
        log(episode)
    log.close()
    assert read_episodes(path)[0] == episodes


def test_log_hands_every_line_over_at_once(tmp_path):
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    log(make_episode(1))
    assert read_episodes(tmp_path / "episodes.jsonl")[0] == [make_episode(1)]  # before it is closed
    log.close()


def test_a_replay_that_differs_is_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(1)])
    log = EpisodeLog(path, *read_episodes(path))
    with pytest.raises(QuantenvError, match="evaluation 1 replays to other bits"):
        log(make_episode(1, bits=((5, 8), (3, 8))))
    log.close()
    assert read_episodes(path)[0] == [make_episode(1)]
