"""What a run found, layer by layer beside the best uniform allocation, for the terminal and `report.md`."""

from collections.abc import Iterator

from experiments.runs.final_table import Report, Row
from quantenv.core.allocation import MAX_BITS, Allocation

#: Columns that a line takes besides the layer's name.
_BESIDES = MAX_BITS + 20


def allocation_lines(report: Report, width: int = 80, plain: bool = False) -> list[str]:
    """Draws one line per layer: name, a bar of weight bits, weight/activation bits (W/A), and uniform's.

    Args:
        report: The final table.
        width: Columns of the terminal.
        plain: Whether to draw with ASCII characters alone.

    Returns:
        A heading and a line for each layer; nothing if nothing was found.
    """
    found, uniform = (
        _allocation(report.row("found", "post-training")),
        _allocation(report.row("best uniform", "post-training")),
    )
    if found is None:
        return []
    room = max(8, min(max(map(len, found.names)), width - _BESIDES))
    beside = dict(zip(uniform.names, uniform.bits, strict=True)) if uniform else {}
    lines = [f"{'layer':<{room}}  {'':<{MAX_BITS}}   W/A  uniform"]
    for name, (weight, activation) in zip(found.names, found.bits, strict=True):
        other = "{}/{}".format(*beside[name]) if name in beside else "-"
        lines.append(
            f"{_short(name, room, plain):<{room}}  {_bar(weight, plain)}   {weight}/{activation}  {other}".rstrip()
        )
    return lines


def markdown(report: Report) -> str:
    """Returns the same as a section of `report.md`; empty if nothing was found."""
    lines = allocation_lines(report)
    return "\n".join(["", "```text", *lines, "```", ""]) if lines else ""


def next_commands(folder: str, trained: bool) -> Iterator[str]:
    """Says what can be done with a finished run, a command and what it is for in each line."""
    yield f"quantenv finetune --run {folder}  # {'repeats its' if trained else 'quantization-aware'} fine-tuning"
    yield f"quantenv validate {folder}  # evaluates it again and compares"
    yield f"tensorboard --logdir {folder}  # shows its curves"


def _allocation(row: Row | None) -> Allocation | None:
    return None if row is None or row.allocation is None else Allocation.from_dict(row.allocation)


def _bar(bits: int, plain: bool) -> str:
    full, empty = ("#", ".") if plain else ("█", "·")
    return full * bits + empty * (MAX_BITS - bits)


def _short(name: str, room: int, plain: bool) -> str:
    """Cuts a long name's beginning off: modules of one network differ at their ends."""
    dots = "..." if plain else "…"
    return name if len(name) <= room else dots + name[len(name) - room + len(dots) :]
