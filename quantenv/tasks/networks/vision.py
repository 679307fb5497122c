"""The one place torchvision is imported.

A torchvision wheel built for another accelerator than torch's cannot load its compiled operators, and its import
fails because it registers fake kernels for two of them. Data sets, transforms and models need neither, so their
schemas are defined here, but only after an import has failed for that reason.
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_definitions: list[torch.library.Library] = []


def torchvision() -> ModuleType:
    """Imports torchvision with its ``models``, ``datasets`` and ``transforms``.

    Returns:
        The torchvision package.

    Raises:
        ImportError: If torchvision is not installed.
    """
    try:
        package = importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)
        _definitions.append(library)  # a Library takes its definitions with it when collected
        package = importlib.import_module("torchvision")
    return package
