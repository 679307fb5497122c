"""What an allocation costs on a device: cost tables, device descriptions and budgets.

Everything downstream reads only the tables: `load_device` -> `compile_costs` -> `parse_budgets` -> `check_feasible`.
"""

from quantenv.hardware.budget import Budget, check_feasible, parse_budgets
from quantenv.hardware.costs import METRICS, CostTable, NetworkCosts, compile_costs, overhead_bytes
from quantenv.hardware.devices import Device, device_names, load_device
from quantenv.hardware.memory import PeakMemory
from quantenv.hardware.quantities import format_quantity

__all__ = [
    "METRICS",
    "Budget",
    "CostTable",
    "Device",
    "NetworkCosts",
    "PeakMemory",
    "check_feasible",
    "compile_costs",
    "device_names",
    "format_quantity",
    "load_device",
    "overhead_bytes",
    "parse_budgets",
]
