"""Package data: the shipped evaluation tables, one npz each; `quantenv.evaluate.tables` names and reads them."""
