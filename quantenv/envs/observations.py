"""What an agent sees before a decision: the features, each named and sourced in one place.

Every feature is in [0, 1]. Sources: HAQ (Wang et al., CVPR 2019, section 3.1, the 10 entries of its state
vector); blog (the 8-feature state of a tutorial on HAQ); AMC (He et al., ECCV 2018, its
state's "reduced" and "rest").

Features of the layer are normalised over the network's layers, (x - min) / (max - min) as HAQ does, 0 where
all layers agree. Features of the episode count what is settled: costs of layers all of whose bits are decided
or pinned, and of tensors that several layers read what is certain. Tied layers are one layer here: with the geometry
of their first, with the sum of their parameters, costs and sensitivities, and with the group's place among the groups
as their index.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from quantenv.core.arguments import one_of, plain
from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.errors import QuantenvError, shown
from quantenv.core.layers import LayerSpec
from quantenv.envs.costs import EpisodeCosts
from quantenv.envs.walk import Walk
from quantenv.hardware.budget import TOLERANCE

if TYPE_CHECKING:
    from quantenv.envs.shown_sensitivity import ShownSensitivity

#: Features of a layer, from its description and its index.
LAYER_FEATURES: dict[str, Callable[[LayerSpec, int], float]] = {
    "layer_index": lambda layer, index: index,  # HAQ k; blog depth
    "in_channels": lambda layer, index: layer.in_channels,  # HAQ, blog c_in
    "out_channels": lambda layer, index: layer.out_channels,  # HAQ, blog c_out
    "kernel_size": lambda layer, index: layer.kernel_size[0],  # HAQ, blog
    "stride": lambda layer, index: layer.stride[0],  # HAQ, blog; 0 for linear layers
    "feature_map_size": lambda layer, index: _positions(layer),  # HAQ s_feat: height x width of the input
    "parameters": lambda layer, index: layer.params,  # HAQ n_params
    "depthwise": lambda layer, index: layer.depthwise,  # HAQ i_dw; constant features become 0
}

#: The other features of each observation; `full` adds two for each budgeted metric.
HAQ = (
    *LAYER_FEATURES,
    "decides_weights",  # HAQ i_w/a: 1 for weights (or both), 0 for activations alone
    "previous_bits",  # HAQ a_(k-1): executed bits / most bits; 1 at the first decision; joint: mean of both
)
BLOG = (
    "layer_index",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "sensitivity",  # of the layer to quantization, log scale, see `sensitivity_feature`
    "size_so_far",  # size of settled layers / the network's 8-bit size
    "latency_so_far",  # the same of latency; 0 if the device has no latency model
)
OBSERVATIONS = ("haq", "blog", "full")

#: Sensitivities below this share of the greatest count as this share.
SENSITIVITY_FLOOR = 1e-6


def feature_names(observation: str, budgeted: Sequence[str]) -> tuple[str, ...]:
    """Returns the features of an observation, in order.

    `full` is `haq` and `blog` without repetition and, for each budgeted metric,
    ``budget_left_<metric>``: what the budget leaves above the cheapest completion, as a share of that at the
    episode's start; and ``reducible_<metric>``: dearest less cheapest completion, as a share of that at the
    start (AMC's "rest"). Where the first is as large as the second, nothing needs saving any more.

    Args:
        observation: A name of `OBSERVATIONS`.
        budgeted: Metrics that have a budget.

    Raises:
        QuantenvError: If the name is unknown.
    """
    one_of(observation, "observation", OBSERVATIONS)
    if observation != "full":
        return HAQ if observation == "haq" else BLOG
    episode = (f"{kind}_{metric}" for metric in budgeted for kind in ("budget_left", "reducible"))
    return (*dict.fromkeys(HAQ + BLOG), *episode)


def normalise(values: np.ndarray) -> np.ndarray:
    """Maps values (L,) onto [0, 1] by their least and greatest; all zeros if these are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def describe_groups(layers: Sequence[LayerSpec], walk: Walk) -> tuple[LayerSpec, ...]:
    """Describes each of the walk's groups as one layer: the first's name and geometry, the sum of what adds up.

    The channel groups of one layer are described as that layer.

    Args:
        layers: The network's layers, length L.
        walk: The decisions.

    Returns:
        G layers, the given ones where nothing is tied; parameters, biases and MACs are summed over a group.
    """
    wholes = {indices: whole(layers[indices[0]]) for indices in parts_of(layers)}

    def described(indices: tuple[int, ...]) -> LayerSpec:
        group = [layers[index] for index in indices]
        return dataclasses.replace(
            group[0],
            params=sum(layer.params for layer in group),
            bias_params=sum(layer.bias_params for layer in group),
            macs=sum(layer.macs for layer in group),
        )

    return tuple(wholes[indices] if indices in wholes else described(indices) for indices in walk.members)


def check_sensitivity(sensitivity: np.ndarray, layers: Sequence[LayerSpec]) -> np.ndarray:
    """Returns sensitivities, any unit, as float64 (L,).

    Raises:
        QuantenvError: If there is not one finite number >= 0 per layer.
    """
    try:
        values = np.asarray(plain(sensitivity), dtype=np.float64)
    except (TypeError, ValueError):  # text, complex numbers, rows of different lengths
        raise QuantenvError(
            f"sensitivity is {shown(sensitivity)}: expected one number per quantizable layer, ({len(layers)},)."
        ) from None
    if values.shape != (len(layers),):
        raise QuantenvError(
            f"sensitivity has shape {values.shape}: expected one number per quantizable layer, ({len(layers)},)."
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise QuantenvError("sensitivity holds a negative number, NaN or infinity: expected finite numbers >= 0.")
    return values


def sensitivity_feature(sensitivity: np.ndarray) -> np.ndarray:
    """Normalises sensitivities, which span decades, on a log scale.

    Args:
        sensitivity: Harm of quantizing each group, any unit, >= 0, float64 (G,).

    Returns:
        float64 (G,) in [0, 1]: `normalise` of the logarithm, after raising what lies below
        `SENSITIVITY_FLOOR` times the greatest to it.
    """
    if sensitivity.max() == 0:
        return sensitivity
    return normalise(np.log10(np.maximum(sensitivity / sensitivity.max(), SENSITIVITY_FLOOR)))


class Observer:
    """Writes observations: float32 (F,) in [0, 1]. What does not depend on the episode is worked out once."""

    def __init__(
        self,
        names: Sequence[str],
        layers: Sequence[LayerSpec],
        walk: Walk,
        costs: EpisodeCosts,
        limits: dict[str, float],
        sensitivity: "ShownSensitivity | None",
        references: Mapping[str, float],
    ) -> None:
        """Prepares the features.

        Args:
            names: Features, from `feature_names`.
            layers: The walk's groups as `describe_groups` describes them.
            walk: The decisions.
            costs: The sums that are kept while an episode runs, R; the order is that of `observe`'s `spent`.
            limits: Budgets by metric.
            sensitivity: Measures that of the groups when the first observation is read; None if it is not among the
                names.
            references: The network's 8-bit costs by metric.
        """
        self.names = tuple(names)
        self.space = spaces.Box(0.0, 1.0, (len(names),), dtype=np.float32)
        self._most_bits = walk.bits[-1]
        columns = {name: column for column, name in enumerate(names)}
        self._previous = columns.get("previous_bits")
        self._sensitivity, self._sensitivity_column = sensitivity, columns.get("sensitivity", 0)
        self._groups = walk.groups

        # A feature is base[decision, settled weight bits] + slope * spent[metric]: slope 0 if it is one of the layer.
        decisions = walk.n_decisions
        static = np.zeros((decisions, len(names)))
        for name in columns.keys() & LAYER_FEATURES.keys():
            values = np.array([float(LAYER_FEATURES[name](layer, index)) for index, layer in enumerate(layers)])
            static[:, columns[name]] = normalise(values)[walk.groups]
        if "decides_weights" in columns:
            static[:, columns["decides_weights"]] = [kind != "activations" for kind in walk.kinds]
        self._base = np.repeat(static[np.minimum(np.arange(decisions + 1), decisions - 1), None], 9, axis=1)
        self._slope = np.zeros(len(names))
        self._metric = np.zeros(len(names), dtype=np.int64)
        self._peaks: list[_Peak] = []
        for name, column in columns.items():
            if not name.startswith(("size_so", "latency_so", "budget_left", "reducible")):
                continue
            metric = name.removesuffix("_so_far").removeprefix("budget_left_").removeprefix("reducible_")
            if metric not in costs.places:
                continue
            places = costs.places[metric]
            self._metric[column] = places[0]
            if name.endswith("_so_far"):
                self._slope[column] = 1 / references[metric]
                continue
            completions = [_completions(walk, costs, row) for row in places.tolist()]
            least, most = (np.stack(each) for each in zip(*completions, strict=True))
            peak = _Peak(name.startswith("reducible"), column, places, limits[metric], least, most, costs.start[places])
            if len(places) > 1:
                self._peaks.append(peak)
            elif peak.reducible:
                self._base[:, :, column] = _share((most - least)[0], peak.at_start)
            elif peak.at_start > TOLERANCE * limits[metric]:
                self._base[:, :, column] = (limits[metric] - least[0]) / peak.at_start
                self._slope[column] = -1 / peak.at_start

    def observe(
        self, decision: int | np.ndarray, weight_bits: int, previous_bits: float | np.ndarray, spent: np.ndarray
    ) -> np.ndarray:
        """Returns the observation before a decision, or after the last; or those of N episodes at once.

        Args:
            decision: Index of the decision; T after the last, whose group is then described once more. One for all, or
                int64 (N,).
            weight_bits: The weight bits of the decision's group if they are settled and its activations are
                not, else 0.
            previous_bits: Bits of the previous decision, the mean of both if it was joint; not read before the
                first. One number, or (N,).
            spent: Every sum over all settled groups, float64 (R,) or (N, R).

        Returns:
            float32 (F,) or (N, F).
        """
        if self._sensitivity is not None and self._sensitivity.read:
            self._show_sensitivity(self._sensitivity)
        features = spent.take(self._metric, axis=-1)
        features *= self._slope
        features += self._base[decision, weight_bits]
        for peak in self._peaks:
            features[..., peak.column] = peak.share(decision, weight_bits, spent)
        np.maximum(features, 0.0, out=features)
        np.minimum(features, 1.0, out=features)
        if self._previous is not None:
            if isinstance(decision, np.ndarray):
                features[:, self._previous] = np.where(decision, previous_bits / self._most_bits, 1.0)
            else:
                features[..., self._previous] = previous_bits / self._most_bits if decision else 1.0
        return features.astype(np.float32)

    def _show_sensitivity(self, sensitivity: "ShownSensitivity") -> None:
        """Writes the sensitivities into all observations from now on: until they are read, they are 0."""
        shown = sensitivity_feature(sensitivity.of_groups)[self._groups]
        self._base[:, :, self._sensitivity_column] = np.append(shown, shown[-1])[:, None]
        self._sensitivity = None


@dataclass(frozen=True, eq=False)
class _Peak:
    """The features about the budget of one metric: the greatest of S sums, or one sum."""

    reducible: bool
    """Whether it is about what is reducible; otherwise about what is left."""
    column: int
    """Place among the features."""
    places: np.ndarray
    """Rows of the sums, int64 (S,)."""
    limit: float
    """The budget."""
    least: np.ndarray
    """What the cheapest completion adds to each sum, float64 (S, T + 1, 9) = [sum, decision, settled weight bits]."""
    most: np.ndarray
    """The same of the dearest."""
    start: np.ndarray
    """The sums at the episode's start, float64 (S,)."""

    @cached_property
    def at_start(self) -> float:
        """What is left or reducible at an episode's start."""
        return float(self._value(0, 0, self.start))

    def share(self, decision: int | np.ndarray, weight_bits: int, spent: np.ndarray) -> Any:
        """Returns the feature, a share of that at the start; `spent` is all sums, (..., R)."""
        value = self._value(decision, weight_bits, spent[..., self.places])
        return value / self.at_start if self.at_start > TOLERANCE * self.limit else 0.0 * value

    def _value(self, decision: int | np.ndarray, weight_bits: int, spent: np.ndarray) -> Any:
        least = (spent + np.moveaxis(self.least[:, decision, weight_bits], 0, -1)).max(axis=-1)
        if not self.reducible:
            return self.limit - least
        return (spent + np.moveaxis(self.most[:, decision, weight_bits], 0, -1)).max(axis=-1) - least


def _completions(walk: Walk, costs: EpisodeCosts, row: int) -> tuple[np.ndarray, np.ndarray]:
    """What the cheapest and the dearest completion add to a sum, each float64 (T + 1, 9): [decision, weight bits].

    Terms add to the dearest one what they would if none of their units were settled before.
    """
    values = costs.rows.values[row]
    least, most = np.where(walk.allowed, values, np.inf), np.where(walk.allowed, values, -np.inf)
    highest = np.where(walk.allowed, np.arange(walk.allowed.shape[-1]), -1).max(axis=(1, 2))
    low, high = np.zeros((walk.n_decisions + 1, 9)), np.zeros((walk.n_decisions + 1, 9))
    for decision in range(walk.n_decisions):
        group = walk.groups[decision]
        later = np.unique(walk.groups[walk.groups > group])
        low[decision] = least[later].min(axis=(1, 2)).sum()
        high[decision] = most[later].max(axis=(1, 2)).sum()
        for term, reached in zip(costs.rows.terms, costs.start_reached, strict=True):
            left = highest[[unit for unit in term.units if unit >= group]].max(initial=reached)
            high[decision] += term.values[row, left] - term.values[row, reached]
        if walk.kinds[decision] != "activations":
            low[decision] += least[group].min()
            high[decision] += most[group].max()
            continue
        settled = walk.allowed[group].any(axis=1)
        low[decision, 1:][settled] += least[group].min(axis=1)[settled]
        high[decision, 1:][settled] += most[group].max(axis=1)[settled]
    return low, high


def _share(part: np.ndarray, whole: float) -> np.ndarray:
    return part / whole if whole > 0 else np.zeros_like(part)


def _positions(layer: LayerSpec) -> int:
    return math.prod(layer.input_shape[:-1] if layer.kind == "linear" else layer.input_shape[1:])
