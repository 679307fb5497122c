"""A result that is recorded in the repository: the command that makes it, and what it depends on.

A result depends on the code that its numbers come from: the command's module
and whatever that imports of our packages, one through another (`experiments.source_tree`), and the agents that take
part. `CARRIERS` are left out, which read, keep, send or show numbers and change none; so is prose. A result over tables
depends on the tables' rows instead of the code that evaluates networks (`NETWORKS`), and a network's evaluations depend
on its shipped weights. Data are told by their content, options by their values; versions of Python, of torch and of the
machine are written down, but make nothing stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.base import BUILT_IN

#: Modules that no number comes from.
CARRIERS = (
    "experiments.benchmarks.folder",
    "experiments.benchmarks.identity",
    "experiments.benchmarks.markdown",
    "experiments.benchmarks.parquet",
    "experiments.benchmarks.schemas",
    "experiments.benchmarks.workers",
    "experiments.cli",
    "experiments.command_line",
    "experiments.configs",
    "experiments.console",
    "experiments.continuing",
    "experiments.disks",
    "experiments.folder_lock",
    "experiments.option_files",
    "experiments.option_parser",
    "experiments.option_text",
    "experiments.peers.tables",
    "experiments.progress",
    "experiments.provenance",
    "experiments.report",
    "experiments.reports",
    "experiments.run_folder",
    "experiments.signals",
    "experiments.tensorboard",
    "quantenv.archives",
    "quantenv.arguments",
    "quantenv.arrays",
    "quantenv.env.registration",
    "quantenv.env.rendering",
    "quantenv.errors",
    "quantenv.evaluate.database",
    "quantenv.evaluate.pool",
    "quantenv.evaluate.ray_pool",
    "quantenv.evaluate.row_blocks",
    "quantenv.evaluate.store",
    "quantenv.evaluate.stored",
    "quantenv.evaluate.workers",
    "quantenv.files",
    "quantenv.locks",
    "quantenv.own_code",
    "quantenv.plain_yaml",
    "quantenv.processes",
    "quantenv.reading",
    "quantenv.records",
    "quantenv.schema_errors",
    "quantenv.signals",
    "quantenv.tensor_file",
    "quantenv.typed",
)
#: What evaluates networks, for which the rows of a table stand.
NETWORKS = (
    "quantenv.attention",
    "quantenv.evaluate.haq_finetune",
    "quantenv.evaluate.ptq",
    "quantenv.finetune",
    "quantenv.plain",
    "quantenv.quantize",
    "quantenv.sensitivity.network",
    "quantenv.tasks",
)

#: Names the folder of data that do not ship.
DATA_VARIABLE = "QUANTENV_DATA"


@dataclass(frozen=True)
class Recorded:
    """Files that one command makes."""

    name: str
    """What `make results` calls them."""
    files: tuple[str, ...]
    """The files, from the repository's root; a star stands for what tells one content from another. Other commands may
    write parts of them."""
    arguments: tuple[str, ...]
    """The command, after the name of Python. ``{work}`` stands for a folder that is the command's own and is kept until
    it has succeeded, ``{data}`` for ``$QUANTENV_DATA``."""
    modules: tuple[str, ...]
    """Modules that the numbers come from, with what these import."""
    minutes: float
    """What it took when it was last recorded before there was a record of it; of one core, or of two."""
    agents: tuple[str, ...] = ()
    """Agents that take part."""
    reads: tuple[str, ...] = ()
    """Recorded files that it depends on."""
    data: tuple[str, ...] = ()
    """Files in ``$QUANTENV_DATA`` that it needs."""
    needs: tuple[str, ...] = ()
    """Modules of others that it needs besides quantenv's own dependencies."""
    configs: tuple[str, ...] = ()
    """YAML files of `experiments.configs` that hold its options."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Where the command leaves files, from the root or from ``{work}``, with the names that they are recorded under;
    stars are allowed."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the command."""
    environment: str | None = None
    """Virtual environment that the command runs in, if it is not this one."""
    over_tables: bool = False
    """Whether the numbers come from the rows of tables, and not from networks."""
    carriers: tuple[str, ...] = ()
    """Carriers that it is about, and so depends on."""
    gathers: bool = False
    """Whether the command leaves what its files hold of other cases as it is; begun anew if none of it is fresh."""
    given: bool = False
    """Whether the files are data like any other, which nothing makes stale: made once, and again only on demand."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Modules and packages whose code makes it not stale."""
        kept = tuple(carrier for carrier in CARRIERS if carrier not in self.carriers)
        return kept + (NETWORKS if self.over_tables else ())

    @property
    def roots(self) -> tuple[str, ...]:
        """The modules, and those of the agents."""
        return (*self.modules, *(BUILT_IN[agent].partition(":")[0] for agent in self.agents))


def located(root: Path, name: str) -> Path:
    """Returns where a recorded file is; of a name with a star, the one file that it fits, or else where nothing is."""
    found = sorted(root.glob(name)) if "*" in name else []
    return found[0] if len(found) == 1 else root / name
