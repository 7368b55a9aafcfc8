"""The job file as types: one ``Job`` with its resources, datasets, stages, tracking and launcher.

Owns the shape of a job and what a section can check by itself. Reading files, interpolation and
error positions are ``load.py``; checks between sections are ``references.py``; arithmetic is
``plan.py``.
"""

from typing import Annotated, Literal

from orchestrator.errors import PlanError
from orchestrator.spec.datasets import Dataset, Tokenizer
from orchestrator.spec.launchers import Launcher, LocalLauncher
from orchestrator.spec.messages import which_stage
from orchestrator.spec.optimization import Anomalies, Limits, LossScale, Optimizer, Schedule
from orchestrator.spec.remote import require_file_system
from orchestrator.spec.section import ChosenBy, Must, Section, field
from orchestrator.spec.strategies import Strategy
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.trackers import Wandb
from orchestrator.spec.training import Data, Init, Model, Objective, Plugin, Reproducibility

Positive = Annotated[int, Must(ge=1)]
MAX_NAME_LENGTH = 64
Name = Annotated[
    str,
    Must(
        pattern=rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}$",
        hint=f"a name of up to {MAX_NAME_LENGTH} lower-case letters, digits, '.', '_' and '-'",
    ),
]


class WorkerRange(Section):
    """As many workers as there is room for, within bounds."""

    min: Positive
    """Fewest workers that training goes on with."""
    max: Positive
    """Most workers."""

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}; swap them")


NUM_WORKERS = Must(ge=1, hint="a whole number of at least 1, or a range such as {min: 1, max: 4}, min first")


class Resources(Section):
    """What a stage gets, on every launcher."""

    workers: Annotated[int | WorkerRange, NUM_WORKERS] = field(default=1, alias="num_workers")
    """Worker processes; each is one data-parallel rank. ``{min: 1, max: 4}``: as many as there is room for;
    when some leave or come, training goes on with the same rows and global batch."""
    cpus_per_worker: Positive = 1
    """CPU cores per worker; also its number of torch threads."""
    gpus_per_worker: Annotated[int, Must(ge=0, le=1)] = 0
    """GPUs per worker: 0 trains on the CPU."""
    max_failures: Annotated[int, Must(ge=0)] = 3
    """Restarts of the workers after a fault before the run fails; counted anew after each finished stage."""
    hang_timeout_seconds: Annotated[float, Must(gt=0.0)] | None = 30.0
    """Restart workers whose step, wait for data, evaluation or save takes longer than this and than 5 times
    the slowest one so far (the first of each kind may take 600 s); null: wait for ever."""

    @property
    def num_workers(self) -> int:
        """Workers, or the most there may be."""
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def min_workers(self) -> int:
        """Workers, or the fewest there may be."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def is_elastic(self) -> bool:
        """Whether workers may leave and come."""
        return self.min_workers < self.num_workers

    def with_workers(self, num_workers: int) -> "Resources":
        """The same with a fixed number of workers."""
        return self.model_copy(update={"workers": num_workers})


class Evaluation(Section):
    """Evaluation while a stage trains, on the datasets' validation rows."""

    datasets: Annotated[tuple[str, ...], Must(min_length=1)]
    """Datasets whose validation rows are evaluated; each needs a ``validation_fraction``."""
    every_steps: Positive | None = None
    """Optimizer steps between two evaluations; absent: only at the end."""
    max_rows: Positive | None = None
    """Evaluate at most this many rows of each dataset; absent: all."""


class KeepBest(Section):
    """Which evaluation is the best."""

    metric: str
    """A metric of the stage's ``evaluation``, such as ``eval/loss`` or ``eval/accuracy``."""
    mode: Literal["min", "max"] | None = None
    """Whether its lowest or its highest value is the best; needed for metrics of your own objective alone."""


class Checkpoint(Section):
    """When state is saved and how much of it is kept."""

    every_steps: Positive = 500
    """Optimizer steps between two checkpoints; the last step is always saved."""
    keep_last: Annotated[int, Must(ge=2)] = 3
    """Newest checkpoints to keep; at least 2, so that one damaged checkpoint does not end a run."""
    keep_every_steps: Positive | None = None
    """Keep each checkpoint whose step is a multiple of this, too; a multiple of ``every_steps``."""
    keep_best: KeepBest | None = None
    """Keep the checkpoint of the best evaluation, too."""
    weights: Literal["last", "best"] = "last"
    """Of which step ``weights/`` is, which later stages read: the last, or the best by ``keep_best``."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory (on each worker, of the bytes it writes);
    false: training waits, and there is no copy."""
    remote: str | None = None
    """URL of fsspec, such as ``s3://bucket/prefix``, to copy checkpoints to after each save, into
    ``<run>/<stage>``; a start fetches a newer one from there. Absent: they are in the run directory alone."""

    def __post_init__(self) -> None:
        if self.remote is not None:
            require_file_system(self.remote)
        if self.weights == "best" and self.keep_best is None:
            raise ValueError("weights 'best' needs keep_best: {metric: ...} to know which is")
        if self.keep_every_steps and self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} is not a multiple of every_steps"
                f" {self.every_steps}: no checkpoint would have such a step, or not each"
            )


class Logging(Section):
    """How often metrics are written."""

    every_steps: Positive = 10
    """Optimizer steps between two lines of metrics."""


class TrainStage(Section):
    """A stage that trains a model."""

    name: Name
    """Name of the stage and of its folder."""
    kind: Literal["train"] = "train"
    """This stage trains a model."""
    objective: Objective
    """What is learned."""
    init: Init | None = None
    """Where the first weights come from; absent: from scratch, as ``model`` says."""
    model: Model | None = None
    """The model from scratch; ``init.stage`` and ``init.pretrained`` bring their own instead."""
    trainable: Annotated[tuple[str, ...], Must(min_length=1)] | None = None
    """Train these parameters alone: patterns over their names, where ``*`` stands for anything, such as
    ``transformer.h.1.*``; absent: all."""
    freeze: Annotated[tuple[str, ...], Must(min_length=1)] | None = None
    """Leave these parameters as they are and train the others; patterns as in ``trainable``."""
    data: Data
    """What is read."""
    global_batch_size: Positive
    """Sequences per optimizer step, over all workers."""
    micro_batch_size: Positive
    """Sequences per worker per forward pass; accumulation is derived."""
    strategy: Strategy
    """How the workers share the model."""
    optimizer: Optimizer
    """How weights are updated."""
    schedule: Schedule
    """Learning rate as a function of the step."""
    limits: Limits
    """How long it trains."""
    loss_scale: LossScale | None = None
    """How the loss is scaled, with ``param_dtype: float16`` alone; absent: as ``torch.amp`` does it."""
    anomalies: Anomalies = field(default_factory=Anomalies)
    """What happens at a step with a loss or gradients that cannot be right."""
    evaluation: Evaluation | None = None
    """Evaluation while training; absent: none."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """When state is saved."""
    logging: Logging = field(default_factory=Logging)
    """How often metrics are written."""

    @property
    def may_roll_back(self) -> bool:
        """Whether an anomaly may need a checkpoint to go back to."""
        spike = self.anomalies.loss_spike
        return "rollback" in (self.anomalies.nonfinite, spike.action if spike else None)

    def __post_init__(self) -> None:
        brings_model = self.init is not None and self.init.checkpoint is None
        if brings_model == (self.model is not None):
            found = "both" if brings_model else "neither"
            raise ValueError(
                "give 'model' (from scratch, or the shape of init.checkpoint) or init.stage /"
                f" init.pretrained (which bring their own model), found {found}"
            )
        if self.trainable is not None and self.freeze is not None:
            raise ValueError(
                f"give 'trainable' or 'freeze', found both ({len(self.trainable)} and {len(self.freeze)}"
                " patterns); each says what becomes of all parameters"
            )


class EvaluateStage(Section):
    """A stage that evaluates another stage's weights."""

    name: Name
    """Name of the stage and of its folder."""
    kind: Literal["evaluate"]
    """This stage evaluates another stage's weights."""
    from_: str = field(alias="from")
    """The training stage whose weights are evaluated."""
    datasets: Annotated[tuple[str, ...], Must(min_length=1)]
    """Datasets to evaluate on, each apart."""
    split: Literal["train", "validation", "test"] = "test"
    """Rows held out by ``test_fraction`` or ``validation_fraction``, or the training rows."""
    micro_batch_size: Positive = 16
    """Sequences per worker per forward pass."""
    max_rows: Positive | None = None
    """Evaluate at most this many rows of each dataset; absent: all."""


class ExportStage(Section):
    """A stage that writes another stage's weights in another form."""

    name: Name
    """Name of the stage and of its folder."""
    kind: Literal["export"]
    """This stage writes another stage's weights in another form."""
    from_: str = field(alias="from")
    """The training stage whose weights are written."""
    formats: Annotated[tuple[Literal["safetensors"], ...], Must(min_length=1)] = ("safetensors",)
    """File formats to write."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the written weights."""
    max_shard_gigabytes: Annotated[float, Must(gt=0.0)] = 5.0
    """Largest size of one file, in gigabytes (10^9 bytes)."""


Stage = Annotated[TrainStage | EvaluateStage | ExportStage, ChosenBy("kind", default="train")]


class Tracking(Section):
    """Experiment trackers besides metrics.jsonl, which is always written."""

    wandb: Wandb | None = None
    """Weights & Biases; absent: not used."""
    plugins: tuple[Plugin, ...] = ()
    """The user's own trackers."""


class Job(Section):
    """One training job."""

    name: Name
    """Run directory, W&B group and cluster job name: lower-case letters, digits, ``._-``."""
    seed: Annotated[int, Must(ge=0, lt=2**32)] = 0
    """Seed of everything random."""
    reproducibility: Reproducibility = "standard"
    """``standard``: bit-identical wherever a step adds two micro-batches, up to the order of summation
    (about 1e-6) otherwise; ``exact``: gradients are added in one fixed tree, so that weights are
    bit-identical on every strategy and number of workers, which must be a power of two. It costs time."""
    resources: Resources = field(default_factory=Resources)
    """What a stage gets, on every launcher."""
    tokenizer: Tokenizer | None = None
    """The tokenizer of stages that start from scratch; others bring their own."""
    datasets: dict[Name, Dataset] = field(default_factory=dict)
    """Datasets by name."""
    stages: Annotated[tuple[Stage, ...], Must(min_length=1)]
    """The stages; each runs after those it names."""
    tracking: Tracking = field(default_factory=Tracking)
    """Experiment trackers."""
    launcher: Launcher = field(default_factory=LocalLauncher)
    """Where the job runs; the ``--launcher`` flag overrides it."""
    sweep: Sweep | None = None
    """Runs of this job that differ in some keys; absent: it is one run."""

    def stage(self, name: str) -> TrainStage | EvaluateStage | ExportStage:
        """The stage called ``name``.

        Raises:
            PlanError: There is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        hint = which_stage(name, [stage.name for stage in self.stages])
        raise PlanError(f"job '{self.name}' has no stage '{name}'.{hint}")
