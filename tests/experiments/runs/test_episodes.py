import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.runs.episodes import Episode, EpisodeLog, read_episodes
from quantenv.core.errors import QuantenvError
from tests.resealing import change_lines


def make_episode(evaluation=1, bits=((4, 8), (3, 8)), correct=90, loss=0.25, cost=120.5, feasible=True, reward=-0.05):
    return Episode(evaluation, tuple(bits), correct, 100, loss, reward, {"size": cost}, feasible)


def write(path, episodes):
    log = EpisodeLog(path)
    for episode in episodes:
        log(episode)
    log.close()


@given(
    loss=st.floats(0, 1e3),
    reward=st.floats(allow_nan=False, allow_infinity=False) | st.just(-math.inf),
    cost=st.floats(1e-12, 1e12),
    bits=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1),
)
def test_a_line_reads_back_exactly(tmp_path_factory, loss, reward, cost, bits):
    path = tmp_path_factory.mktemp("line") / "episodes.jsonl"
    episode = make_episode(loss=loss, reward=reward, cost=cost, bits=bits)
    write(path, [episode])
    assert path.read_text().count("\n") == 1
    assert "Infinity" not in path.read_text()
    assert read_episodes(path) == ([episode], path.stat().st_size)


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


@pytest.mark.parametrize("line", ["{", "[]", "{}", "\0\0\0", "", "[" * 5000, '{"a": 1, "a": 1}', "NaN"])
def test_a_line_that_is_no_episode_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(number) for number in (1, 2, 3)])
    first, _, last = path.read_text().splitlines(keepends=True)
    path.write_text(first + line + "\n" + last)
    with pytest.raises(QuantenvError, match=r"episodes\.jsonl, line 2, .*delete that line and all after it"):
        read_episodes(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": [[4.9, 8], [3, 8]]}, r"bits\[0\]\[0\] is 4.9; expected a whole number"),
        ({"bits": [[8_000_000, 8], [3, 8]]}, "is 8000000; expected a whole number of at most 8"),
        ({"bits": [[True, 8], [3, 8]]}, "is true; expected a whole number"),
        ({"bits": [[0, 8], [3, 8]]}, "is 0; expected a whole number of at least 1"),
        ({"bits": [[4, 8, 8], [3, 8]]}, "3 entries; expected 2"),
        ({"bits": [[4, 8]]}, "other layers, samples or costs than the first line"),
        ({"bits": []}, "0 entries"),
        ({"loss": "0.25"}, "loss is '0.25'; expected a number"),
        ({"correct": None}, "correct is null; expected a whole number"),
        ({"loss": -0.1}, "loss is -0.1; expected a number of at least 0"),
        ({"correct": 90.0}, "correct is 90.0; expected a whole number"),
        ({"correct": 101}, "101 correct of 100 samples"),
        ({"samples": 99}, "other layers, samples or costs"),
        ({"feasible": 1}, "feasible is 1; expected true or false"),
        ({"feasible": "yes"}, "expected true or false"),
        ({"reward": True}, "reward is true; expected a number"),
        ({"costs": {}}, "costs has 0 entries"),
        ({"costs": {"size": "1"}}, r"costs\.size is '1'; expected a number"),
        ({"costs": {"bops": 1.0}}, "other layers, samples or costs"),
        ({"penalty_lambda": -1.0}, "penalty_lambda is -1.0; expected a number of at least 0"),
        ({"evaluation": 3}, "line 2, holds evaluation 3"),
        ({"evaluation": 2.0}, "evaluation is 2.0; expected a whole number"),
        ({"mood": "good"}, "unknown key 'mood'"),
    ],
)
def test_a_value_out_of_its_range_is_refused_even_with_a_right_checksum(tmp_path, change, said):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(number) for number in (1, 2, 3)])
    change_lines(path, lambda number, content: content.update(change if number == 2 else {}))
    with pytest.raises(QuantenvError, match=f"line 2, .*{said}|{said}"):
        read_episodes(path)


def test_changed_missing_repeated_and_swapped_lines_are_refused(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(number, correct=80 + number) for number in range(1, 6)])
    one, two, three, four, five = path.read_text().splitlines(keepends=True)
    renumbered = three.replace('"evaluation": 3', '"evaluation": 2')
    for number, lines in {
        2: [one, three, four, five],
        3: [one, two, two, three],
        1: [two, one, three],
        4: [one, two, three, four.replace("0.25", "0.26"), five],
    }.items():
        path.write_text("".join(lines))
        with pytest.raises(QuantenvError, match=f"line {number}, (does not match its checksum|holds)"):
            read_episodes(path)
    path.write_text(one + renumbered + four)
    with pytest.raises(QuantenvError, match="line 2, does not match its checksum"):
        read_episodes(path)


def test_no_flipped_bit_is_accepted(tmp_path):
    path = tmp_path / "episodes.jsonl"
    episodes = [make_episode(number) for number in (1, 2)]
    write(path, episodes)
    sound, rng = path.read_bytes(), random.Random(0)
    for place in range(len(sound) - 1):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            read, length = read_episodes(path)
        except QuantenvError:
            continue
        # A space that became another one, or a line end that a crash could have left out.
        assert read == episodes[: len(read)]
        assert length == len(sound) or len(read) < 2


def test_a_loss_that_is_no_number_is_null(tmp_path):
    path = tmp_path / "episodes.jsonl"
    write(path, [make_episode(1, loss=math.nan), make_episode(2)])
    assert '"loss": null' in path.read_text()
    (first, second), _ = read_episodes(path)
    assert math.isnan(first.loss)
    assert second == make_episode(2)
    log = EpisodeLog(path, *read_episodes(path))
    log(make_episode(1, loss=math.nan))  # replays as it was recorded
    log.close()


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    with pytest.raises(QuantenvError, match="a number that is not finite"):
        log(make_episode(cost=math.inf))
    log.close()
    assert (tmp_path / "episodes.jsonl").read_bytes() == b""


def test_log_drops_the_torn_line_and_appends_after_the_replay(tmp_path):
    path = tmp_path / "episodes.jsonl"
    episodes = [make_episode(number, correct=80 + number) for number in range(1, 5)]
    write(path, episodes[:2])
    with path.open("a") as file:
        file.write('{"evaluation": 3, "bi')  # torn
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
