"""The additive proxy of an environment: the harm that each group's bits do, summed over the groups.

Nothing is evaluated in the environment. What measuring a sensitivity costs, in evaluations, is
`quantenv.sensitivity.Sensitivity.evaluations`: once for a task, whatever is searched in it and however often.
"""

import gymnasium
import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.core.errors import QuantenvError
from quantenv.envs.decisions import FIXED_ACTIVATIONS
from quantenv.envs.environment import QuantizationEnv
from quantenv.sensitivity import Sensitivity

#: Bits at which a single number for a layer is taken to be its harm: `quantenv.sensitivity.layer_sensitivity`'s.
PROBE_BITS = 3


def group_harms(env: gymnasium.Env, kind: str | None = None) -> np.ndarray:
    """Returns the harm of each group's bits, relative to 8 bits; those of tied layers are summed.

    The harms are those that `quantenv.sensitivity.measure` finds in the environment's task or table. Where there is
    neither, but an evaluator object with one number for each layer's sensitivity, that number is the harm of 3 bits, in
    weights and activations alike, and of other bits by the law of uniform quantization, whose noise power falls by four
    with each bit (Bennett, Bell System Technical Journal 27, 1948).

    Args:
        env: A QuantizationEnv, wrapped or not.
        kind: A kind of sensitivity; None means the default for the task.

    Returns:
        Float64 (G, 8, 8) = [group, weight bits - 1, activation bits - 1], or [layer, centre - 1, spread - 1] in the
        hierarchical mode (`quantenv.envs.walk.Walk.allowed`); inf where the walk does not allow it. What of a layer is
        not decided does no harm.

    Raises:
        QuantenvError: If the kind is unknown, cannot be measured here, or does not tell the harm of bits that a
            decision can give.
    """
    inner: QuantizationEnv = env.unwrapped  # type: ignore[assignment]
    walk = inner.walk
    offered = _on_offer(inner)
    weights, activations = (
        np.where(several.any(axis=1, keepdims=True), harms, 0.0)
        for several, harms in zip(offered, _layer_harms(inner, kind), strict=True)
    )
    harms = walk.group_costs(weights[:, :, None] + activations[:, None, :])
    harms = np.where(walk.allowed, harms, np.inf)
    unknown = [group for group in np.unique(walk.groups) if np.isnan(harms[group]).any()]
    if unknown:
        raise QuantenvError(
            f"The sensitivity of layer {inner.layers[walk.members[unknown[0]][0]].name!r} is not known for all bits on "
            f"offer{f' by {kind!r}' if kind else ''}: offer fewer, or choose another kind of sensitivity or task."
        )
    return harms


def measuring_cost(env: gymnasium.Env, kind: str | None = None) -> float:
    """Returns what measuring the sensitivities behind `group_harms` takes, in evaluations' worth of work.

    Args:
        env: A QuantizationEnv, wrapped or not.
        kind: A kind of sensitivity; None means the default for the task.
    """
    inner: QuantizationEnv = env.unwrapped  # type: ignore[assignment]
    return measured_sensitivity(inner, kind).evaluations if inner.subject.measurable else 0.0


def measured_sensitivity(env: QuantizationEnv, kind: str | None = None) -> Sensitivity:
    """Measures what the decisions of an environment are about, or reads what was measured before.

    Args:
        env: The environment.
        kind: A kind of sensitivity; None means the default for the task.

    Returns:
        The sensitivity, of bits that layers can have where there are several; others may be NaN.

    Raises:
        QuantenvError: As `quantenv.sensitivity.measure`.
    """
    return env.subject.measure(kind, _on_offer(env))


def _on_offer(env: QuantizationEnv) -> np.ndarray:
    """Returns which bits each layer can have where it can have several, bool (2, L, 8) = [part, layer, bits - 1]."""
    offered = np.stack([env.allowed.any(axis=2), env.allowed.any(axis=1)])
    if env.walk.mode in FIXED_ACTIVATIONS:
        offered[1] = False
    return offered & (offered.sum(axis=2, keepdims=True) > 1)


def _layer_harms(env: QuantizationEnv, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the harms of weights and of activations at [layer, bits - 1], float64 (L, 8) each."""
    if env.subject.measurable:
        measured = measured_sensitivity(env, kind)
        return measured.weights, measured.activations
    if env.sensitivity is None or kind is not None:
        raise QuantenvError(
            f"The proxy needs {'a sensitivity' if kind is None else f'the sensitivity {kind!r}'}, and there is no task "
            "to measure it on: make the environment with a task, or with sensitivity= and no kind."
        )
    noise = 4.0 ** (PROBE_BITS - np.arange(1, MAX_BITS + 1))
    harms = np.asarray(env.sensitivity, dtype=np.float64)[:, None] * (noise - noise[-1])
    return harms, harms
