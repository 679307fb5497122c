"""Devices: what hardware can do and what that costs there, described by YAML files in this folder or by users' own."""

from quantenv.hardware.devices.description import Device
from quantenv.hardware.devices.loading import device_names, load_device

__all__ = ["Device", "device_names", "load_device"]
