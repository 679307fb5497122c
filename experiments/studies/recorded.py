"""A result that is recorded in the repository: the command that makes it, and what it depends on.

A result depends on the code that its numbers come from: the command's module
and whatever that imports of our packages, one through another (`experiments.studies.source_tree`), and the agents that
take part. `CARRIERS` are left out, which read, keep, send or show numbers and change none; so is prose. A result over
tables depends on the tables' rows instead of the code that evaluates networks (`NETWORKS`), and a network's evaluations
depend on its shipped weights. Data are told by their content, options by their values; versions of Python, of torch and
of the machine are written down, but make nothing stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.base import BUILT_IN

#: Modules that no number comes from.
CARRIERS = (
    "experiments.leaderboard.folder",
    "experiments.leaderboard.identity",
    "experiments.leaderboard.markdown",
    "experiments.leaderboard.parquet",
    "experiments.leaderboard.schemas",
    "experiments.leaderboard.workers",
    "experiments.cli.main",
    "experiments.options.parsing",
    "experiments.configs",
    "experiments.options.console",
    "experiments.runs.continuing",
    "experiments.options.disks",
    "experiments.runs.folder_lock",
    "experiments.options.files",
    "experiments.options.parser",
    "experiments.options.text",
    "experiments.studies.peers.tables",
    "experiments.runs.progress",
    "experiments.runs.provenance",
    "experiments.runs.final_table",
    "experiments.reports",
    "experiments.runs.run_folder",
    "experiments.options.signals",
    "experiments.runs.tensorboard",
    "quantenv.core.archives",
    "quantenv.core.arguments",
    "quantenv.core.arrays",
    "quantenv.envs.registration",
    "quantenv.envs.rendering",
    "quantenv.core.errors",
    "quantenv.evaluation.store.database",
    "quantenv.evaluation.pool.pool",
    "quantenv.evaluation.pool.ray",
    "quantenv.evaluation.table.row_blocks",
    "quantenv.evaluation.store.store",
    "quantenv.evaluation.store.stored",
    "quantenv.evaluation.pool.workers",
    "quantenv.core.files",
    "quantenv.core.locks",
    "quantenv.core.own_code",
    "quantenv.core.plain_yaml",
    "quantenv.core.processes",
    "quantenv.core.reading",
    "quantenv.core.records",
    "quantenv.core.schema_errors",
    "quantenv.core.signals",
    "quantenv.core.tensor_file",
    "quantenv.core.typed",
)
#: What evaluates networks, for which the rows of a table stand.
NETWORKS = (
    "quantenv.graph.attention",
    "quantenv.training.haq",
    "quantenv.evaluation.post_training",
    "quantenv.training",
    "quantenv.graph",
    "quantenv.quantization",
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
