"""`measure`: the sensitivity of a task or a table, of any kind."""

from typing import TYPE_CHECKING, Union

import numpy as np

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.sensitivity.kinds import DEFAULT, KINDS, TABLE_KINDS, Progress, Sensitivity, Settings
from quantenv.sensitivity.table_rows import Tabulated, measure_table

if TYPE_CHECKING:
    from quantenv.evaluation.post_training import PTQEvaluator
    from quantenv.tasks import Task

Subject = Union["Task", "PTQEvaluator", Tabulated]


def kinds(subject: Subject | None = None) -> tuple[str, ...]:
    """Returns the kinds of sensitivity, the default first.

    Args:
        subject: Only those that can be measured on it; None means all.
    """
    if isinstance(subject, Tabulated):
        return TABLE_KINDS
    return (DEFAULT, *(kind for kind in KINDS if kind != DEFAULT))


def measure(
    subject: Subject,
    kind: str | None = None,
    settings: Settings | None = None,
    progress: Progress = lambda done, total, what: None,
    offered: np.ndarray | None = None,
) -> Sensitivity:
    """Measures how much each layer alone harms the network at each bit-width, or reads what was measured before.

    One layer at a time deviates from 8-bit weights and activations everywhere, on the search split. The kinds accuracy,
    loss, kl and sqnr come from the same outputs, as a post-training evaluator computes them: by the task's whole
    scheme, on the same backend, so that harms are differences of its evaluations. Everything measured on a task is
    kept, a few layers at a time, in one file per network, splits, scheme, backend and settings in the cache directory:
    a measurement that was interrupted goes on where it ended, and one of other bits reads those that are there.

    Args:
        subject: A task; the post-training evaluator to measure it through
            (`quantenv.evaluation.post_training.PTQEvaluator`), by default a new one; or a table of a task
            (`quantenv.evaluation.table.evaluation_table.EvaluationTable`), whose rows are looked up.
        kind: One of `kinds` of the subject; None means the first of them, the default.
        settings: How a network is measured; tables are not.
        progress: Told how far it is.
        offered: Which bits are measured of each layer of a network, bool (2, L, 8) = [weights or activations, layer,
            bits - 1]; others may be NaN. By default all are.

    Returns:
        The sensitivity.

    Raises:
        QuantenvError: If there is no such kind, a table does not tell it, the subject is neither task nor table, or the
            cache directory cannot be written.
        UnsupportedLayerError: If the network cannot be quantized.
    """
    kind = kinds(subject)[0] if kind is None else kind
    if kind not in KINDS:
        raise unknown_name("kind of sensitivity", kind, KINDS)
    if isinstance(subject, Tabulated):
        return measure_table(subject, kind)
    if not hasattr(subject, "splits") and not hasattr(subject, "logits"):
        raise QuantenvError(
            f"Cannot measure the sensitivity of {subject!r}: expected a Task, a PTQEvaluator or an evaluation table; "
            "`quantenv.evaluation.table.shipped.resolve_task` finds tasks and tables by name."
        )
    from quantenv.sensitivity.network import measure_network  # torch, which tables do without

    return measure_network(subject, kind, settings or Settings(), offered, progress)
