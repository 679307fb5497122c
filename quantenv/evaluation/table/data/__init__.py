"""Package data: the shipped evaluation tables, one npz each, which `quantenv.evaluation.table.shipped` reads."""
