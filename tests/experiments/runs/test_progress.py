import io

from rich.console import Console

from experiments.runs.progress import ProgressView, Rate, summary
from experiments.runs.top_k import TopK
from quantenv.hardware import Budget
from tests.experiments.runs.test_episodes import make_episode


def show(total, **console):
    stream = io.StringIO()
    with ProgressView(Console(file=stream, width=120, **console), "search", total) as view:
        for done in range(1, total + 1):
            view.show(done, f"text {done}")
    return stream.getvalue()


def test_a_log_gets_a_few_plain_lines_and_no_control_codes():
    text = show(95)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1] == "search 95/95  text 95"


def test_a_short_task_shows_every_step():
    assert show(3).splitlines() == [f"search {n}/3  text {n}" for n in (1, 2, 3)]


def test_a_terminal_gets_a_bar():
    text = show(3, force_terminal=True)
    assert "3/3" in text
    assert "text 3" in text


def test_summary_tells_reward_best_share_and_speed():
    budgets = (Budget("size", 241.0),)
    top = TopK(1, budgets)
    assert "best none feasible" in summary(make_episode(), top, budgets, 10.0)
    top(make_episode(correct=97))
    text = summary(make_episode(), top, budgets, 12.3)
    for part in ("reward -0.0500", "best 97.00%", "size 0.50", "12 evaluations/s"):
        assert part in text


def test_rate_is_positive():
    assert Rate().tick() > 0
