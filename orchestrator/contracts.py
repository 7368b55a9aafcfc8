"""What the rooms of a worker promise each other; the composition root joins them through these alone.

Data gives ``Row``s, an ``Objective`` turns rows into a batch and a batch into loss sums, an ``Engine`` moves
gradients and shards, a ``Tracker`` records. Legend of shapes: B rows of a micro-batch, S tokens of a row,
T terms of the loss, K statistics of an evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from orchestrator.spec.optimization import LossScale
    from orchestrator.spec.training import Data, Reproducibility

IGNORE_INDEX = -100
Head = Literal["causal_lm", "masked_lm", "pretraining", "sequence_classification", "token_classification"]
DocumentKind = Literal["text", "words", "conversation"]


@dataclass(frozen=True)
class RowLayout:
    """How documents become rows.

    ``packed``: documents joined with an end token and cut at ``seq_len``; ``best_fit``: whole documents
    side by side, only those longer than ``seq_len`` cut; ``documents``: one document a row, cut at
    ``seq_len``; ``pairs``: two segments of one document, or of two (next-sentence prediction).
    """

    kind: Literal["packed", "best_fit", "documents", "pairs"]
    seq_len: int
    framed: bool
    """Rows begin with the classification token and segments end with the separator, as BERT expects;
    in ``best_fit`` rows every document does."""
    labelled: bool
    """Every row carries a label; where documents are words, every word does."""
    document: DocumentKind = "text"
    """What a document is made from: a text (or two, where rows are labelled and the dataset has pairs), a
    list of words, or a conversation."""
    labels: Literal["class", "classes", "numbers"] = "class"
    """What a label is: one class, a set of classes, or numbers."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Which tokens of a conversation are learned."""
    chat_date: str | None = None
    """The day that a chat template is told when it asks for today's."""


@dataclass(frozen=True)
class TokenInfo:
    """What an objective must know of the tokenizer."""

    vocab_size: int
    pad_id: int
    eos_id: int
    mask_id: int | None
    special_ids: tuple[int, ...]
    continues_word: np.ndarray
    """bool ``(vocab_size,)``: the token continues the word of the token before it."""


@dataclass(frozen=True)
class Row:
    """One row, special tokens included and nothing padded."""

    input_ids: np.ndarray
    """int64 ``(S,)``."""
    label: int | np.ndarray | None = None
    """A class; or float32 ``(C,)``, 1 for each class of the row and 0 for others, or the row's numbers."""
    labels: np.ndarray | None = None
    """int64 ``(D,)``: class of each document of a row that tells its documents apart."""
    segment_ids: np.ndarray | None = None
    """int64 ``(S,)``, 0 in the first and 1 in the second segment of a pair."""
    is_next: bool | None = None
    """The second segment of a pair really follows the first."""
    document_ids: np.ndarray | None = None
    """int64 ``(S,)``, 0 in the first document of the row, 1 in the next and so on. Where a row has them,
    attention stays inside a document, positions begin anew in each, and none predicts the next one."""
    token_labels: np.ndarray | None = None
    """int64 ``(S,)``, the class of the word that begins with a token, ``IGNORE_INDEX`` at other tokens."""
    is_learned: np.ndarray | None = None
    """bool ``(S,)``, the tokens of a conversation that are to be predicted."""


class EqualRows(Sequence[Row]):
    """Rows of nothing but tokens, all of one length: one array, so that a batch is made without a loop."""

    def __init__(self, input_ids_BS: np.ndarray) -> None:
        """Hold rows.

        Args:
            input_ids_BS: int64 ``(B, S)``; nobody else's, so that a batch may keep it.
        """
        self.input_ids_BS = input_ids_BS

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids_BS)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> EqualRows: ...
    def __getitem__(self, index: int | slice) -> Row | EqualRows:
        """One row, or some of them."""
        chosen = self.input_ids_BS[index]
        return EqualRows(chosen) if isinstance(index, slice) else Row(chosen)


Batch = dict[str, "Tensor"]


class Objective(ABC):
    """What the loss is. A subclass is built with its section of the job, ``TokenInfo`` and label names."""

    head: Head
    terms: tuple[str, ...]
    """Names of the terms of the loss; each is summed and divided by its own number of targets."""
    problem_type: str | None = None
    """What Hugging Face calls the problem of a classification head, for the model's configuration."""
    evaluates: Literal["sums", "rows"] = "sums"
    """Whether ``statistics`` are sums, or a line for each row where metrics need all rows at once."""

    @abstractmethod
    def __init__(self, section: Any, tokens: TokenInfo, label_names: Sequence[str]) -> None:
        """Check that the section fits the tokenizer and the labels."""

    @classmethod
    @abstractmethod
    def row_layout(cls, section: Any, data: Data) -> RowLayout:
        """The rows it needs."""

    @abstractmethod
    def collate(self, rows: Sequence[Row], rng: np.random.Generator) -> Batch:
        """Pad and mask rows into tensors whose first dimension is B; chance comes from ``rng`` alone."""

    @abstractmethod
    def num_targets(self, batch: Batch) -> Tensor:
        """Targets of each term, int64 ``(T,)``."""

    @abstractmethod
    def loss_sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of each term summed over its targets, float32 ``(T,)``."""

    @abstractmethod
    def statistics(self, model: nn.Module, batch: Batch, num_valid: int) -> Tensor:
        """What metrics need of the first ``num_valid`` rows, float64.

        ``(K,)`` sums, which add up over batches and ranks; or ``(num_valid, K)`` where it ``evaluates``
        rows, which are put together in their order.
        """

    @abstractmethod
    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Evaluation metrics from the statistics of all rows."""


@dataclass(frozen=True)
class EngineSetup:
    """What a strategy needs to know besides the model and its own section."""

    device: torch.device
    rank: int
    world_size: int
    micro_batch_size: int
    grad_accum_steps: int
    max_grad_norm: float | None
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    blocks: Sequence[nn.Module]
    """The repeated blocks of the model, in order."""
    reproducibility: Reproducibility = "standard"
    """``exact``: gradients are added in one order, whatever the number of ranks."""
    loss_scale: LossScale | None = None
    """How the training loop scales the loss; ``None``: it does not, as nothing is computed in float16."""


class Engine(ABC):
    """How gradients and shards move.

    One optimizer step is, for each micro-batch, ``with engine.micro_step(last=...)`` around the forward
    pass and ``backward``, then ``gradient_norm`` and one of ``step`` and ``skip_step``. The loss given to
    ``backward`` is already divided by the global number of targets; gradients are summed over ranks. In
    float16 it is multiplied by a scale, and ``unscale`` comes before ``gradient_norm``.
    """

    model: nn.Module
    """What the objective calls."""

    @abstractmethod
    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Wrap ``model`` (float32, on the CPU, equal on all ranks) and build its optimizer."""

    @abstractmethod
    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch's forward and backward; ``last``: gradients are complete after it."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""

    def unscale(self, loss_scale: float) -> None:
        """Divide the complete gradients by ``loss_scale``, which the losses were multiplied by.

        Called before ``gradient_norm``, and only of strategies that compute in float16.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compute in float16")

    @abstractmethod
    def gradient_norm(self) -> float:
        """The global norm of the complete gradients, NaN or infinite where they are; equal on all ranks.

        Collective; nothing has moved yet.
        """

    @abstractmethod
    def step(self, lr: float, norm: float) -> None:
        """Clip gradients of the global norm ``norm``, update the weights with ``lr`` and clear gradients."""

    @abstractmethod
    def skip_step(self) -> None:
        """Clear gradients; weights and optimizer state stay as they are. Collective."""

    @abstractmethod
    def neutral_state(self) -> dict[str, Tensor]:
        """Views of this rank's part of the state, by strategy-neutral name.

        ``model.<name>`` (float32), ``optim.<slot>.<name>`` and ``optim.step.<name>`` for every parameter
        name; plain tensors where replicated, DTensors or ``FlatRanges`` where sharded. Filling them in
        place and then
        calling ``neutral_state_loaded`` restores the engine.
        """

    @abstractmethod
    def neutral_state_loaded(self, state: dict[str, Tensor]) -> None:
        """Take over what was loaded into the tensors of ``neutral_state``."""

    @abstractmethod
    def full_weights(self) -> dict[str, Tensor] | None:
        """All parameters in float32 on the CPU, by name, on rank 0; ``None`` elsewhere. Collective."""


class Tracker(Protocol):
    """Records a stage's metrics; used by rank 0 alone."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of one step."""

    def finish(self, outcome: Literal["finished", "stopped", "failed"]) -> None:
        """Close the record."""
