"""The integer backend exists only where the CPU has its kernels; that it is refused elsewhere is tested everywhere."""

from quantenv.quantize.integer import integer_obstacle

collect_ignore = ["test_integer.py"] if integer_obstacle() else []
