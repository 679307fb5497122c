import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from agents.rl.reinforce import Policy, ReinforceAgent, ReinforceConfig
from tests.agents.searches import make_env


def _small(**options):
    return ReinforceConfig(hidden=8, **options)


def test_network_is_the_seeds():
    policy = Policy(5, 7, ReinforceConfig())
    assert (policy.lstm.num_layers, policy.lstm.hidden_size, policy.head.out_features) == (2, 300, 7)


def test_step_by_step_and_whole_sequence_agree():
    env = make_env()
    agent = ReinforceAgent(env, 0, _small(episodes_per_update=4))
    agent.learn(8, lambda metrics: None)
    episodes = agent._run(3)
    log_probs, entropy, _ = agent._evaluate(episodes)
    state = None
    for step in range(4):
        observations, masks = episodes.observations[:, step], episodes.masks[:, step]
        logits, state = agent._logits(observations, masks, state)
        for copy, mask in enumerate(masks):
            alone = Categorical(logits=torch.as_tensor(logits[copy][mask]))
            index = torch.as_tensor(mask[: episodes.actions[copy, step]].sum())
            assert log_probs[copy, step].item() == pytest.approx(alone.log_prob(index).item(), abs=1e-5)
            assert entropy[copy, step].item() == pytest.approx(alone.entropy().item(), abs=1e-5)


def test_first_policy_is_uniform_over_the_allowed_actions():
    agent = ReinforceAgent(make_env(), 0, _small())
    mask = np.array([True, False, True, True, False, False, False])
    logits, _ = agent._logits(np.zeros((1, agent.policy.lstm.input_size), np.float32), mask[None], None)
    probabilities = np.exp(logits[0])
    np.testing.assert_allclose(probabilities / probabilities.sum(), mask / 3, atol=1e-12)


def test_gumbel_draws_follow_the_softmax():
    env = make_env(count=1, budget=1.0)
    agent = ReinforceAgent(env, 0, _small(episodes_per_update=10**6))
    bias = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.0, -2.0])
    agent.policy.head.bias.data = bias
    agent.learn(1000, lambda metrics: None)
    counts = np.bincount(np.array(env.taken)[:, 0], minlength=7)
    np.testing.assert_allclose(counts / 1000, torch.softmax(bias, 0).numpy(), atol=0.05)


def test_plain_update_follows_the_score_function_gradient():
    """Alone and in its first step, the policy loss has the gradient -mean(advantage * grad log pi)."""
    env = make_env(budget=1.0)
    config = _small(baseline_weight=0.0, entropy_bonus=0.0, max_gradient_norm=1e9, updates_per_batch=1)
    agent = ReinforceAgent(env, 0, config)
    batch = agent._run(5)
    total = 0.0
    returns = batch.totals
    advantages = (returns - returns.mean()) / returns.std(ddof=1) * np.sqrt((5 * 4 - 1) / (5 * 4 - 4))
    for observations, actions, advantage in zip(batch.observations, batch.actions, advantages, strict=True):
        logits, _, _ = agent.policy(torch.as_tensor(observations)[None], torch.ones(1, 4, 7, dtype=bool))
        chosen = Categorical(logits=logits[0]).log_prob(torch.as_tensor(actions))
        total = total - advantage * chosen.mean() / 5
    expected = torch.autograd.grad(total, agent.policy.head.bias)[0]
    agent._update([batch])
    torch.testing.assert_close(agent.policy.head.bias.grad, expected, rtol=1e-4, atol=1e-6)


def test_further_steps_on_a_batch_are_clipped():
    """However many steps a batch serves, no probability ratio with a good action runs away."""
    env = make_env(budget=1.0)
    agent = ReinforceAgent(env, 0, _small(updates_per_batch=200, entropy_bonus=0.0, learning_rate=0.01))
    batch = agent._run(8)
    before = agent._evaluate(batch)[0].detach()
    agent._update([batch])
    ratios = (agent._evaluate(batch)[0].detach() - before).exp()
    free = ReinforceAgent(env, 0, _small(updates_per_batch=200, entropy_bonus=0.0, learning_rate=0.01, clip_range=1e9))
    free._update([batch])
    unclipped = (free._evaluate(batch)[0].detach() - before).exp()
    assert ratios.max() < 3 < unclipped.max()


def test_baseline_learns_what_the_decisions_lead_one_to_expect():
    env = make_env(budget=1.0)
    agent = ReinforceAgent(env, 0, _small(updates_per_batch=1, learning_rate=0.01, entropy_bonus=0.0))
    batch = agent._run(40)
    losses = [agent._update([batch])["train/baseline_loss"] for _ in range(150)]
    assert losses[0] == pytest.approx(1.0, abs=1e-4)  # it starts at zero, and returns have unit spread
    assert losses[-1] < 0.7


def test_networks_layers_are_told_apart_from_the_start():
    env = make_env(count=6)
    agent = ReinforceAgent(env, 0)
    hidden, _ = agent.policy.lstm(torch.as_tensor(agent._run(1).observations))
    assert hidden[0].std(0).mean() > 0.04


def test_learns_from_the_executed_actions():
    env = make_env(constraint="project", budget=0.3)
    agent = ReinforceAgent(env, 0, _small(episodes_per_update=100))
    agent.learn(10, lambda metrics: None)
    executed = [info["executed_actions"].tolist() for info in env.infos]
    assert executed != env.taken
    assert [actions for episodes in agent._batch for actions in episodes.actions.tolist()] == executed
