"""The comparison that every run ends with: what was found against the best uniform allocation under the same budget."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import structs

from experiments.runs.final_table import Row
from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.envs.environment import QuantizationEnv
from quantenv.envs.masks import within
from quantenv.evaluation.base import Evaluation, Evaluator
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.evaluator import TableEvaluator
from quantenv.evaluation.table.optimum import optimum, standard_error
from quantenv.tasks import Task
from quantenv.training import FinetuneResult

POST_TRAINING, QAT = "post-training", "QAT"
#: Bits of an IEEE single: weights and activations of the float network.
FLOAT_BITS = 32

#: Fine-tunes an allocation for the row of that name.
FineTune = Callable[[str, Allocation], FinetuneResult]


def uniform_allocations(env: QuantizationEnv) -> list[Allocation]:
    """Lists the uniform allocations that meet every budget.

    Args:
        env: Gives the bits to choose from, what the device supports, the pinned layers and the budgets.

    Returns:
        Every allocation with the same bits in all layers that are decided, and the pinned bits in the others.
    """
    decided = np.isin(env.walk.group_of, env.walk.groups)
    everywhere = env.allowed[decided].all(axis=0)
    allocations = []
    for weight, activation in np.argwhere(everywhere) + 1:
        bits = np.array([np.argwhere(layer)[0] + 1 for layer in env.allowed])
        bits[decided] = weight, activation
        allocation = Allocation.make(env.layers, bits[:, 0].tolist(), bits[:, 1].tolist())
        if meets_budgets(env, costs_of(env, allocation)):
            allocations.append(allocation)
    return allocations


def best_uniform(env: QuantizationEnv, evaluator: Evaluator) -> Allocation | None:
    """Finds the feasible uniform allocation that is best on the search split: by accuracy, then loss, then bits.

    Args:
        env: See `uniform_allocations`.
        evaluator: The evaluator of the search.

    Returns:
        The allocation, or None if none is feasible.
    """
    candidates = uniform_allocations(env)
    if not candidates:
        return None
    evaluations = evaluator.evaluate(candidates)
    ranked = sorted(
        zip(candidates, evaluations, strict=True),
        key=lambda pair: (-pair[1].accuracy, pair[1].loss, sum(map(sum, pair[0].bits))),
    )
    return ranked[0][0]


def costs_of(env: QuantizationEnv, allocation: Allocation) -> dict[str, float]:
    """Returns an allocation's cost in every metric of the device, in SI units."""
    costs = env.network_costs.of(np.array(allocation.bits))  # as in an episode: the same to the last digit
    return dict(zip(env.tables, costs.tolist(), strict=True))


def meets_budgets(env: QuantizationEnv, costs: dict[str, float]) -> bool:
    """Whether costs meet every budget, by the environment's own comparison."""
    return within(np.array([costs[budget.metric] for budget in env.budgets]), np.array([b.limit for b in env.budgets]))


def post_training(task: Task | EvaluationTable, evaluator: str) -> PTQEvaluator | TableEvaluator:
    """Returns what evaluates the post-training rows of the final table, the float network's included."""
    if isinstance(task, EvaluationTable):
        return TableEvaluator(task)
    return PTQEvaluator(task, {"ptq-float": "float", "ptq-integer": "integer"}.get(evaluator, "auto"))


def chance_note(labels: Sequence[int], reference: Evaluation) -> str | None:
    """Says if the float network is no better than always naming one class: a search would be about noise.

    Args:
        labels: Labels of the search split.
        reference: The float network's evaluation on it.

    Returns:
        A sentence, or None if it is better by more than two standard errors.
    """
    (most,) = Counter(labels).most_common(1)
    share = most[1] / len(labels)
    if reference.accuracy > share + 2 * math.sqrt(share * (1 - share) / len(labels)):
        return None
    return (
        f"The float network is right on {reference.accuracy:.1%} of the search split, which is not beyond doubt better "
        f"than to name the same class always ({share:.1%}): check that its weights, the order of the classes and the "
        "normalisation of the inputs belong together."
    )


def regret_of(env: QuantizationEnv, found: float | None) -> float | None:
    """Returns how much accuracy on the search split, 0-1, was missed; None if no table knows or nothing was found."""
    if env.table is None or found is None:
        return None
    return optimum(env.table, env.budgets, env.tables, allowed=env.allowed).best.evaluation.accuracy - found


def regret_note(env: QuantizationEnv, found: float | None) -> str | None:
    """Says how far what was found is from the best feasible allocation, which only a table knows.

    Args:
        env: The environment of the search.
        found: Accuracy of the found allocation on the search split, if anything was found.

    Returns:
        A sentence, or None if the environment is over no table.
    """
    if env.table is None:
        return None
    best = optimum(env.table, env.budgets, env.tables, allowed=env.allowed)
    accuracy, error = best.best.evaluation.accuracy, standard_error(best.best.evaluation)
    regret = "" if found is None else f", so the regret of found is {100 * (accuracy - found):.2f} points"
    return (
        f"The best of all {best.feasible:,} feasible allocations in the table has accuracy {accuracy:.2%} on the "
        f"search split, binomial standard error {100 * error:.2f} points{regret}."
    )


def float_costs(env: QuantizationEnv) -> dict[str, float]:
    """Returns the float network's size and memory in bytes and BOPs; devices say nothing of its latency and energy."""
    macs = sum(layer.macs for layer in env.layers) + env.activations.macs
    return {
        "size": sum(layer.params for layer in env.layers) * FLOAT_BITS / 8,
        "bops": float(macs * FLOAT_BITS**2),
        "memory": env.tables["memory"].reference * FLOAT_BITS / MAX_BITS,
    }


def float_row(env: QuantizationEnv, evaluation: Evaluation) -> Row:
    """Makes the row of the float network."""
    costs = float_costs(env)
    defined = all(budget.metric in costs for budget in env.budgets)
    return _row("float", "", evaluation, costs, meets_budgets(env, costs) if defined else None, None)


def quantized_row(name: str, stage: str, env: QuantizationEnv, allocation: Allocation, evaluation: Evaluation) -> Row:
    """Makes the row of an allocation."""
    costs = costs_of(env, allocation)
    return _row(name, stage, evaluation, costs, meets_budgets(env, costs), allocation)


def fine_tuned_row(name: str, env: QuantizationEnv, allocation: Allocation, result: FinetuneResult) -> Row:
    """Makes the row of an allocation after fine-tuning, which says how that went."""
    row = quantized_row(name, QAT, env, allocation, result.test)
    # Sorted, as a checkpoint of the fine-tuning has them: a resumed run's report is the same to the byte.
    epochs = tuple({key: each[key] for key in sorted(each) if math.isfinite(each[key])} for each in result.history)
    return structs.replace(row, best_epoch=result.best_epoch, diverged=result.diverged, epochs=epochs)


def compare(
    env: QuantizationEnv,
    ptq: Evaluator,
    float_evaluation: Evaluation,
    uniform: Allocation | None,
    found: Allocation | None,
    fine_tune: FineTune | None,
) -> tuple[Row, ...]:
    """Makes the final table's rows, all on the test split.

    Args:
        env: The environment of the search.
        ptq: Evaluates post-training.
        float_evaluation: The float network on the test split.
        uniform: Best feasible uniform allocation, if any.
        found: What the search found, if anything.
        fine_tune: Fine-tunes an allocation, given the row's name too; None leaves QAT out.

    Returns:
        float, uniform 8 (unless a table does not hold it), best uniform (post-training, QAT), found (post-training,
        QAT).
    """
    rows = [float_row(env, float_evaluation)]
    table = env.table
    if table is None or (MAX_BITS in table.bits and table.activation_bits == MAX_BITS):
        eight = Allocation.make(env.layers, MAX_BITS, MAX_BITS)
        (evaluation,) = ptq.evaluate([eight], "test")
        rows.append(quantized_row("uniform 8", POST_TRAINING, env, eight, evaluation))
    for name, allocation in (("best uniform", uniform), ("found", found)):
        if allocation is None:
            continue
        (evaluation,) = ptq.evaluate([allocation], "test")
        rows.append(quantized_row(name, POST_TRAINING, env, allocation, evaluation))
        if fine_tune is not None:
            rows.append(fine_tuned_row(name, env, allocation, fine_tune(name, allocation)))
    return tuple(rows)


def verdicts(rows: Sequence[Row]) -> tuple[str, ...]:
    """Says, for each stage in the table, whether mixed precision beat the best feasible uniform allocation."""
    by_key = {(row.name, row.stage): row for row in rows}
    uniform, found = (by_key.get((name, POST_TRAINING)) for name in ("best uniform", "found"))
    if found is None:
        return ("The search found no feasible allocation.",)
    if uniform is None:
        return ("No uniform allocation meets the budget, so only mixed precision does.",)
    sentences = []
    for stage in (POST_TRAINING, QAT):
        if ("found", stage) in by_key:
            sentences.append(_verdict(stage, by_key["found", stage], by_key["best uniform", stage]))
    return tuple(sentences)


def _verdict(stage: str, found: Row, uniform: Row) -> str:
    where = "Post-training" if stage == POST_TRAINING else "After QAT"
    diverged = [row for row in (found, uniform) if row.diverged]
    if diverged:
        names = " and of ".join(f"{row.title} (its row is epoch {row.best_epoch})" for row in diverged)
        return (
            f"{where}, there is no verdict: training of {names} diverged. Lower --qat.learning_rate or set --qat.clip."
        )
    if found.untrained and uniform.untrained:
        return f"{where}, there is no verdict: no epoch of training was better than none, for found and for uniform."
    against = f"the best feasible uniform allocation ({uniform.title.removeprefix('best uniform ')})"
    scores = f"{found.accuracy:.2%} against {uniform.accuracy:.2%} of {found.samples} test images"
    if found.correct == uniform.correct:
        return f"{where}, mixed precision tied with {against}: {scores}."
    # Two proportions of one sample size. Both are of the same images, which makes this error too large, if anything.
    variance = sum(row.accuracy * (1 - row.accuracy) / row.samples for row in (found, uniform))
    points, error = 100 * (found.accuracy - uniform.accuracy), 100 * math.sqrt(variance)
    verb = "beat" if points > 0 else "lost to"
    noise = "" if abs(points) > 2 * error else ", so within the noise of this test split"
    return (
        f"{where}, mixed precision {verb} {against} by {abs(points):.2f} percentage points: {scores}, "
        f"binomial standard error of the difference {error:.2f} points{noise}."
    )


def _row(
    name: str,
    stage: str,
    evaluation: Evaluation,
    costs: dict[str, float],
    within_budget: bool | None,
    allocation: Allocation | None,
) -> Row:
    content = None if allocation is None else allocation.to_dict()
    loss = evaluation.loss if math.isfinite(evaluation.loss) else None
    return Row(name, stage, evaluation.correct, evaluation.samples, loss, costs, within_budget, content)
