"""Every error a user can cause, as one tree.

    OrchestratorError
      SpecError         the job file: unknown key, wrong type, two keys that contradict each other
      PlanError         the job file against the machine: batch arithmetic, workers, devices
      DataError         datasets and tokenizers: a missing column or label, an empty corpus
        SourceMissingError  the files are not there
      ModelError        a model that cannot be built, or that does not fit its tokenizer or rows
      CheckpointError   saving, verifying or loading state
        ReplacedError     other workers have taken the stage over
      TrainingError     a loss, gradients or weights with which training cannot go on
      TrackingError     an experiment tracker that cannot start
      LaunchError       Ray, SLURM and processes: no room in the cluster, a worker that failed

A message says where, what was found, what was expected and what to do. The command line prints it
without a traceback.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


class OrchestratorError(Exception):
    """Base of everything raised on purpose; ``exit_code`` is what the command ends with."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a job file: where it stands and what to do about it."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        """The problem as one line: ``file:line: key: message``."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The problem for ``--json``."""
        return asdict(self)


class SpecError(OrchestratorError):
    """The job file is wrong; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        """Join ``problems`` into one message, one line each."""
        # What several stages take from one line of defaults is wrong once.
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PlanError(OrchestratorError):
    """What the job asks cannot be carried out on the workers or devices it names."""


class DataError(OrchestratorError):
    """A dataset or tokenizer is missing, empty, damaged, or not what the job says it is."""


class SourceMissingError(DataError):
    """A dataset's files, folder or distribution are not where the job says."""


class NoRoomError(DataError):
    """A disk or a quota is full."""

    exit_code = 1


class ModelError(OrchestratorError):
    """The model cannot be built, or does not fit its tokenizer or its rows."""


class CheckpointError(OrchestratorError):
    """State could not be saved, or what was found does not verify."""

    exit_code = 1


class ReplacedError(CheckpointError):
    """Another group of workers writes the stage by now."""


class TrainingError(OrchestratorError):
    """Training cannot go on from here by itself: its loss, gradients or weights are not finite, or jumped."""

    exit_code = 1


class TrackingError(OrchestratorError):
    """A tracker the job asks for cannot start."""


class LaunchError(OrchestratorError):
    """The place where the job should run refused it, or a process of it failed."""

    exit_code = 1
