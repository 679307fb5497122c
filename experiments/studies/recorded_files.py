"""Every recorded file, in the order in which they are made: what one reads is made before it."""

from typing import Any

from agents.base import BUILT_IN
from experiments.studies.recorded import CARRIERS, Recorded

RESULTS = "experiments/studies/results"
#: Images of task resnet20, in ``$QUANTENV_DATA``.
IMAGES = ("cifar10_jpeg.zip",)
DIGITS = "quantenv/tasks/data/digits.safetensors"
WEIGHTS = {task: f"quantenv/tasks/weights/{task}.safetensors" for task in ("digits", "resnet20")}
#: Prepared under the tasks' own schemes; names end with a hash of what they were prepared from.
PREPARED = {task: f"quantenv/tasks/prepared/{task}-*.safetensors" for task in ("digits", "resnet20")}
#: What evaluations of a task's network stand on.
NETWORK = {
    "digits": (DIGITS, WEIGHTS["digits"], PREPARED["digits"]),
    "resnet20": (WEIGHTS["resnet20"], PREPARED["resnet20"]),
}
TABLES = {task: f"quantenv/evaluation/table/data/{task}.npz" for task in ("digits", "resnet20")}
ALLOCATION = f"{RESULTS}/resnet20_13x.json"
#: What `quantenv benchmark` and agents of ``quantenv[search]`` import.
BENCHMARK, SEARCH = ("pyarrow",), ("cmaes", "optuna")


def _bench(
    bench: str,
    part: str = "",
    kinds: tuple[str, ...] = ("json", "md"),
    arguments: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
    **more: Any,
) -> Recorded:
    """Describes a benchmark, or a part of one, that writes its files by itself."""
    return Recorded(
        name=f"{bench} {part}".strip(),
        files=tuple(f"{RESULTS}/{bench}.{kind}" for kind in kinds),
        arguments=("-m", f"experiments.studies.{bench}", *arguments),
        modules=modules or (f"experiments.studies.{bench}",),
        **more,
    )


def _suite(
    name: str, folder: str, config: str, minutes: float, agents: tuple[str, ...], arguments: tuple[str, ...]
) -> Recorded:
    """Describes what `quantenv benchmark` makes: a leaderboard, which is copied out of its folder.

    The folder is the command's usual one, in which it continues: it keeps a hash of what each search depends on.
    """
    json, table = f"{RESULTS}/{name}.json", f"{RESULTS}/{name}.md"
    return Recorded(
        name=name,
        files=(json, table),
        arguments=("-m", "experiments.cli.main", "benchmark", *arguments),
        modules=("experiments.cli.benchmark",),
        minutes=minutes,
        agents=agents,
        reads=tuple(TABLES.values()),
        needs=BENCHMARK + SEARCH,
        configs=(config,),
        copies={f"{folder}/leaderboard.json": json, f"{folder}/leaderboard.md": table},
        over_tables=True,
    )


def _enumeration(task: str, minutes: float, data: tuple[str, ...]) -> Recorded:
    return Recorded(
        name=f"table of {task}",
        files=(TABLES[task],),
        arguments=("-m", "experiments.cli.main", "enumerate", f"--task={task}", "--output={work}/table.npz"),
        modules=("experiments.cli.enumerate",),
        minutes=minutes,
        reads=NETWORK[task],
        data=data,
        copies={"{work}/table.npz": TABLES[task]},
    )


#: Where evaluations are kept and handed out, of which some parts of `make bench` measure the speed.
_WORKING = tuple(each for each in CARRIERS if each.startswith("quantenv.evaluation."))
#: Each part of `make bench` and its module; with the minutes it took, and what else is to be said of it.
PARTS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "evaluator": ("bench_evaluator", 0.8, {"data": IMAGES}),
    "agreement": ("bench_agreement", 0.2, {"data": IMAGES}),
    "rows": ("bench_rows", 15, {"data": IMAGES, "reads": tuple(TABLES.values())}),
    "prefix": ("bench_prefix", 0.8, {"data": IMAGES}),
    "enumeration": ("bench_enumeration", 0.3, {"carriers": _WORKING}),
    "table_env": ("bench_table_env", 0.2, {"over_tables": True, "reads": tuple(TABLES.values())}),
    "store": ("bench_store", 1.5, {"over_tables": True, "reads": (), "carriers": _WORKING}),
}
_BOTH = (*NETWORK["digits"], *NETWORK["resnet20"])
#: Holds torch to instructions that every x86 machine of ten years has, so that the same bits come out.
_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
_LEARNERS = ("reinforce", "ppo", "ddpg", "random")

#: All of them, in the order in which they are made: what one reads is made before it.
RECORDED: tuple[Recorded, ...] = (
    Recorded(
        name="images of digits",
        files=(DIGITS,),
        arguments=("-m", "experiments.studies.ship_images"),
        modules=("experiments.studies.ship_images",),
        minutes=0.1,
        given=True,
    ),
    Recorded(
        name="weights of digits",
        files=(WEIGHTS["digits"],),
        arguments=("-m", "experiments.studies.ship_weights", "digits"),
        modules=("experiments.studies.ship_weights",),
        minutes=0.2,
        variables=_AVX2,
        given=True,
    ),
    Recorded(
        name="weights of resnet20",
        files=(WEIGHTS["resnet20"],),
        arguments=("-m", "experiments.studies.ship_weights", "resnet20", "--weights={data}/resnet20_cifar10_jpeg.pt"),
        modules=("experiments.studies.ship_weights",),
        minutes=0.1,
        data=("resnet20_cifar10_jpeg.pt",),
        given=True,
    ),
    Recorded(
        name="prepared networks",
        files=tuple(PREPARED.values()),
        arguments=("-m", "experiments.studies.ship_prepared"),
        modules=("experiments.studies.ship_prepared",),
        minutes=3,
        reads=tuple(WEIGHTS.values()),
        data=IMAGES,
        variables=_AVX2,
        given=True,  # corrected biases are float sums, whose last bits differ between CPUs: the artifact is what counts
    ),
    _enumeration("digits", 0.3, ()),
    _enumeration("resnet20", 120, IMAGES),
    _suite("benchmark", "runs/benchmark/default", "benchmark.yaml", 9, tuple(BUILT_IN), ()),
    _suite(
        "regret",
        "runs/benchmark/regret",
        "regret.yaml",
        33,
        _LEARNERS,
        ("--config=experiments/configs/regret.yaml",),
    ),
    _bench(
        "bench_pareto",
        minutes=10,
        agents=("nsga2", "reinforce", "ppo", "random"),
        reads=tuple(TABLES.values()),
        needs=SEARCH,
        over_tables=True,
    ),
    _bench(
        "bench_transfer",
        minutes=6,
        agents=("reinforce", "ppo"),
        reads=tuple(TABLES.values()),
        over_tables=True,
        gathers=True,
    ),
    _bench("bench_channel_groups", minutes=9, agents=("annealing", "reinforce"), reads=NETWORK["digits"]),
    _bench(
        "bench_sensitivity",
        minutes=15,
        kinds=("json", "md", "png"),
        reads=_BOTH,
        data=IMAGES,
    ),
    _bench("bench_integer", minutes=3, kinds=("json", "md", "png"), reads=NETWORK["resnet20"], data=IMAGES),
    _bench("bench_sensitivity_images", minutes=6, reads=_BOTH, data=IMAGES),
    _bench("bench_correction", minutes=12, agents=("ilp",), reads=_BOTH, data=IMAGES, gathers=True),
    _bench("bench_fidelity", "digits", minutes=2.5, reads=NETWORK["digits"], gathers=True),
    Recorded(
        name="allocation for bench_cifar10",
        files=(ALLOCATION,),
        arguments=(
            "-m",
            "experiments.cli.main",
            "train",
            "--task=resnet20",
            "--scheme=linear+batch-norm",
            "--agent=ilp",
            "--agent_options.sensitivity=hessian",
            "--pinned=first_last",
            "--activation_bits=4",
            "--budget=0.3053",
            "--evaluations=1",
            "--qat.epochs=0",
            "--runs={work}/runs",
        ),
        modules=("experiments.runs.parts",),
        minutes=2,
        agents=("ilp",),
        reads=NETWORK["resnet20"],
        data=IMAGES,
        configs=("train.yaml",),
        copies={"{work}/runs/resnet20/ilp/*/best.json": ALLOCATION},
    ),
    _bench(
        "bench_cifar10",
        # Single precision: without instructions for bfloat16 a step in it takes 2.6 times as long.
        arguments=(f"--allocation={ALLOCATION}", "--uniform=[2]", "--seeds=1", "--qat.epochs=5", "--qat.bf16=false"),
        minutes=20,
        reads=(*NETWORK["resnet20"], ALLOCATION),
        data=IMAGES,
    ),
    _bench("bench_qat", minutes=2),
    *(
        _bench(
            "bench",
            part,
            modules=(f"experiments.studies.{module}",),
            arguments=(f"--only={part}",),
            minutes=minutes,
            **{
                "reads": _BOTH,
                "gathers": True,
                **more,
            },
        )
        for part, (module, minutes, more) in PARTS.items()
    ),
    *(
        _bench(
            "bench_peers",
            program,
            modules=("experiments.studies.bench_peers", f"experiments.studies.peers.{module}"),
            # The other network is trained first, errors weighted by the Hessian take ten times as long, and MCT takes
            # more than nine minutes for ResNet-50 at 224 pixels.
            arguments=(
                f"--programs={program}",
                "--only=mixed,rounding,haq",
                "--networks=[resnet20]",
                "--hessian_epochs=[]",
                # An episode on 10,000 images takes 8 seconds, and an epoch of fine-tuning in each of them minutes.
                *(("--searched_images=[2000]", "--tuned_episodes=[]") if program == "quantenv" else ()),
            ),
            minutes=minutes,
            agents=("ilp", "ddpg") if program == "quantenv" else (),
            reads=NETWORK["resnet20"],
            data=IMAGES,
            needs=("model_compression_toolkit",),
            environment=".venv-peers",
            gathers=True,
        )
        for program, module, minutes in (("mct", "mct", 10), ("haq", "haq", 3), ("quantenv", "own", 10))
    ),
)
