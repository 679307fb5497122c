"""What TensorBoard shows of a run. The x axis is evaluations, but for the fine-tuning curves: epochs."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from experiments.options.parsing import flatten
from experiments.options.runs import TrainOptions
from experiments.runs.episodes import Episode
from experiments.runs.final_table import Report
from experiments.runs.progress import Rate
from experiments.runs.top_k import TopK
from quantenv.core.allocation import MAX_BITS
from quantenv.core.layers import LayerSpec
from quantenv.envs.figures import CARD, LABEL, TICK, TITLE, allocation_figure, figure_pixels, named_layers
from quantenv.envs.rendering import allocation_text
from quantenv.hardware import Budget

#: Options that the table of hyper-parameters shows first.
FIRST = ("seed", "task", "metric", "budget", "agent")
#: Heat maps drawn over a run, each of the whole run so far, and the fewest evaluations between two: one takes 0.2 s.
HEAT_MAPS, EVALUATIONS_BETWEEN = 10, 50

EVENTS = "events.out.tfevents.*"
#: Folder of the fine-tunings' event files, in a run folder.
FINE_TUNING = "qat"


def hyper_parameters(options: TrainOptions, agent_config: Any) -> dict[str, Any]:
    """Returns options by dotted name; those of the agent as one, with its defaults.

    TensorBoard takes its columns from one run, so agents' options in columns of their own would be missing of others.

    Args:
        options: Resolved options of the run.
        agent_config: The agent's options in force, a dataclass.
    """
    return flatten(options) | {"agent_options": dataclasses.asdict(agent_config)}


class TensorBoard:
    """Writes a run's curves, heat maps, best allocation and hyper-parameters."""

    def __init__(
        self, folder: Path, layers: Sequence[LayerSpec], budgets: Sequence[Budget], evaluations: int, top: TopK
    ) -> None:
        """Opens a new event file; those of an earlier part of the run go, since a resumed run is replayed whole.

        Args:
            folder: The run folder.
            layers: The network's layers.
            budgets: The budgets.
            evaluations: Evaluations of the whole search.
            top: The best allocations; must have seen an episode before this object does.
        """
        for old in (*folder.glob(EVENTS), *folder.glob(f"{FINE_TUNING}/*/{EVENTS}")):
            old.unlink()
        self._folder = folder
        self._writer = SummaryWriter(str(folder))
        self._layers, self._budgets, self._top = layers, budgets, top
        self._every = max(EVALUATIONS_BETWEEN, evaluations // HEAT_MAPS)
        self._bits: list[tuple[tuple[int, int], ...]] = []
        self._best: Episode | None = None
        self._rate = Rate()
        self._step = 0
        self._fine_tunings: dict[str, SummaryWriter] = {}
        self._numbers: dict[str, float] = {}  # of this step, not yet written

    def __call__(self, episode: Episode) -> None:
        """Writes an episode's curves, and now and then the heat map."""
        self._write_numbers()
        self._step = episode.evaluation
        scalars = {
            "rollout/reward": episode.reward,
            "rollout/accuracy": episode.accuracy,
            "rollout/loss": episode.loss,
            "rollout/feasible": float(episode.feasible),
            "time/evaluations_per_second": self._rate.tick(),
        }
        for budget in self._budgets:
            scalars[f"rollout/cost_over_budget_{budget.metric}"] = episode.costs[budget.metric] / budget.limit
        if episode.penalty_lambda is not None:
            scalars["rollout/lambda"] = episode.penalty_lambda
        if self._top.best is not None:
            scalars["rollout/best_accuracy"] = self._top.best.accuracy
            scalars["rollout/best_loss"] = self._top.best.loss
        self.log(scalars)
        self._bits.append(episode.bits)
        if self._step % self._every == 0:
            self._draw()

    def log(self, metrics: Mapping[str, float]) -> None:
        """Writes numbers at the present evaluation; agents log their own through this.

        A curve has one value at a step: of those that an agent logs between two evaluations, the last.
        """
        self._numbers |= metrics

    def _write_numbers(self) -> None:
        for name, value in self._numbers.items():
            self._writer.add_scalar(name, value, self._step)
        self._numbers = {}

    def fine_tuning(self, name: str) -> Callable[[int, Mapping[str, float]], None]:
        """Returns the callback that writes the curves of one allocation's fine-tuning.

        Each allocation is a run of its own to TensorBoard, ``<run folder>/qat/<name>``, and tags are the same: so their
        curves lie over each other.
        """

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            if name not in self._fine_tunings:
                self._fine_tunings[name] = SummaryWriter(str(self._folder / FINE_TUNING / name))
            for key, value in metrics.items():
                self._fine_tunings[name].add_scalar(key, value, epoch)

        return log

    def finish(self, options: Mapping[str, Any], report: Report, regret: float | None = None) -> None:
        """Writes the last heat map, the hyper-parameters and the final results, and closes the files.

        Args:
            options: As `hyper_parameters` returns them.
            report: The final table.
            regret: Of what was found, in accuracy on the search split; None if it is not known.
        """
        if self._bits and self._step % self._every:
            self._draw()
        results = {f"test/{row.name} {row.stage}".strip().replace(" ", "_"): row.accuracy for row in report.rows}
        if regret is not None:
            results = {"search/regret": regret, **results}
        self.log(results)
        self._write_numbers()
        values = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for name, value in options.items()
        }
        experiment, *session = hparams(values, dict.fromkeys(results))
        metadata = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(metadata.content)
        for info in content.experiment.hparam_infos:
            info.differs = info.name in FIRST  # which TensorBoard shows first, before it sorts by name
        metadata.content = content.SerializeToString()
        file_writer = self._writer._get_file_writer()
        for summary in (experiment, *session):
            file_writer.add_summary(summary)
        for writer in (self._writer, *self._fine_tunings.values()):
            writer.flush()  # raises what its thread met, which `close` does not
            writer.close()

    def _draw(self) -> None:
        bits = np.array(self._bits)
        self._image("allocation/weight_bits", bits_figure(self._layers, bits[:, :, 0], "weight bits"))
        if len(np.unique(bits[:, :, 1])) > 1:
            self._image("allocation/activation_bits", bits_figure(self._layers, bits[:, :, 1], "activation bits"))
        best = self._top.best
        if best is not None and best is not self._best:
            self._best = best
            title = f"best: {best.accuracy:.2%} on search, evaluation {best.evaluation}"
            self._image("allocation/best", allocation_figure(self._layers, np.array(best.bits), title))
            text = f"{title}\n{allocation_text(self._layers, np.array(best.bits))}"
            block = "\n".join(f"    {line}" for line in text.splitlines())  # four blanks: verbatim in Markdown
            self._writer.add_text("allocation/best", block, self._step)

    def _image(self, tag: str, figure: Figure) -> None:
        self._writer.add_image(tag, figure_pixels(figure), self._step, dataformats="HWC")


def bits_figure(layers: Sequence[LayerSpec], bits: np.ndarray, title: str) -> Figure:
    """Draws bits per layer over the episodes as a heat map.

    Args:
        layers: The network's layers, L.
        bits: Bits of each episode's layers, int (N, L).
        title: What the bits are of.

    Returns:
        The figure, with an Agg canvas: a row per layer, a column per episode; of many layers, some are named.
    """
    figure = Figure(figsize=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        bits.T,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=1,
        vmax=MAX_BITS,
        extent=(0.5, len(bits) + 0.5, len(layers) - 0.5, -0.5),
    )
    axes.set_yticks(*named_layers(layers), fontsize=TICK)
    axes.tick_params(axis="x", labelsize=TICK)
    axes.set_xlabel("evaluation", fontsize=LABEL)
    axes.set_title(title, fontsize=TITLE)
    bar = figure.colorbar(image, ax=axes, ticks=range(1, MAX_BITS + 1))
    bar.ax.tick_params(labelsize=TICK)
    bar.set_label("bits", fontsize=LABEL)
    return figure
