"""Presets: named sets of options of `quantenv train`, kept as YAML with a comment on each."""

import importlib.resources
from collections.abc import Sequence
from typing import Any

from experiments.options.parsing import parse_options
from experiments.options.runs import TrainOptions
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.reading import parse_yaml

#: Presets by name: the parts of `configs/haq.yaml` that are laid over each other.
PRESETS = {"haq": ("paper",), "haq-code": ("paper", "code")}

#: Options whose entries are merged, where all others replace each other.
MERGED = ("agent_options", "haq")


def preset_options(name: str, metric: Any) -> dict[str, Any]:
    """Returns the options that a preset sets.

    Args:
        name: A name of `PRESETS`.
        metric: What the budget bounds, which chooses the mode: ``size``, or another one for the hardware mode.

    Raises:
        QuantenvError: If the name is unknown, or the preset is given several budgets.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    if not isinstance(metric, str) or "," in metric:
        raise QuantenvError(f"Preset {name!r} has one budget, not one of {metric!r} each: give one --metric.")
    file = importlib.resources.files("experiments.configs") / "haq.yaml"
    parts = parse_yaml(file.read_bytes(), file.name)
    options: dict[str, Any] = {"preset": name, "metric": metric}
    for part in PRESETS[name]:
        for section in ("all", "size" if metric == "size" else "hardware"):
            for option, value in parts[part].get(section, {}).items():
                options[option] = {**options.get(option, {}), **value} if option in MERGED else value
    return options


def parse_train_options(arguments: Sequence[str]) -> TrainOptions:
    """Fills the options of `quantenv train`; those of a preset stand above the shipped YAML, below everything given.

    Args:
        arguments: The command line after ``train``.

    Raises:
        QuantenvError: As `parse_options` and `preset_options`.
    """
    options = parse_options(TrainOptions, "train", arguments)
    if options.preset is None:
        return options
    return parse_options(TrainOptions, "train", arguments, preset_options(options.preset, options.metric))
