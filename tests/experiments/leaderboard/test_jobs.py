"""One search: what is recorded of it, and that it can be told apart from others."""

import dataclasses

import numpy as np
import pytest

from agents.search.random import RandomAgent
from experiments.leaderboard import identity, jobs
from experiments.leaderboard.jobs import bits_text, parse_bits, run_job
from experiments.leaderboard.suite import BenchmarkOptions, Job
from experiments.leaderboard.suite import jobs as suite_jobs
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.table.shipped import resolve_task
from quantenv.sensitivity import measure


@pytest.fixture
def job(table_file):
    return Job(str(table_file), "size", 0.6, "random", 3, 10)


def test_a_search_is_the_same_again_and_another_with_another_seed(job):
    first, again = run_job(job), run_job(job)
    for field in dataclasses.fields(first):
        if not field.name.endswith("_seconds"):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert run_job(dataclasses.replace(job, seed=4)).bits != first.bits


def test_infeasible_evaluations_have_no_regret_that_counts(job):
    record = run_job(dataclasses.replace(job, budget=0.3, constraint="reject", evaluations=40))
    assert not record.feasible.all()
    assert np.isinf(record.regret[~record.feasible]).all()


def test_an_agent_that_stops_early_is_refused(job, monkeypatch):
    class Lazy(RandomAgent):
        def learn(self, evaluations, log):
            super().learn(evaluations - 1, log)

    monkeypatch.setattr(jobs, "make_agent", lambda name, env, seed, config: Lazy(env, seed))
    with pytest.raises(QuantenvError, match="9 episodes instead of 10"):
        run_job(job)


def test_what_an_agent_measured_besides_is_kept(job, monkeypatch):
    monkeypatch.setattr(RandomAgent, "equivalent_evaluations", 2.5, raising=False)
    assert run_job(job).equivalent_evaluations == 2.5


def test_what_observations_showed_counts_for_agents_that_read_them(job):
    table = resolve_task(job.task)
    found = {
        name: run_job(dataclasses.replace(job, agent=name)).equivalent_evaluations
        for name in ("random", "uniform", "ilp", "reinforce", "reinforce-warm")
    }
    shown, proxy = len(table.layers) + 1, measure(table).evaluations
    assert found == {
        "random": 0,
        "uniform": 0,
        "ilp": proxy,
        "reinforce": shown,
        "reinforce-warm": proxy + shown,
    }


def test_bits_are_written_and_read():
    assert bits_text(((2, 8), (4, 6))) == "24/86"
    assert parse_bits("24/86") == ((2, 4), (8, 6))


def test_searches_are_ordered_so_that_an_interrupted_suite_has_seeds_of_everything():
    options = BenchmarkOptions(agents=["random", "ppo"], tasks=["digits_table"], budgets=[0.4], seeds=2)
    assert [(job.agent, job.seed) for job in suite_jobs(options)] == [
        ("random", 0),
        ("ppo", 0),
        ("random", 1),
        ("ppo", 1),
    ]


def test_the_key_depends_on_everything_that_a_result_does(job, monkeypatch):
    def key(job=job, task="task", versions="1"):
        return identity.job_key(job, task, {"numpy": versions})

    changes = {"seed": 9, "budget": 0.5, "evaluations": 11, "agent": "ppo", "agent_options": {"a": 1}}
    keys = {key(), key(task="other"), key(versions="2")}
    keys |= {key(dataclasses.replace(job, **{name: value})) for name, value in changes.items()}
    monkeypatch.setattr(identity, "agent_source", lambda name: "changed")
    keys.add(key())
    assert len(keys) == 9
    assert key() == key()


def test_the_source_of_an_agent_is_its_own_and_what_it_imports():
    found = identity._closure("agents.rl.ddpg", {"agents"})
    assert {"agents.rl.ddpg", "agents.base", "agents.checkpoint"} <= set(found)
    assert "agents.rl.ppo" not in found
    assert all(name.startswith("agents") for name in found)
