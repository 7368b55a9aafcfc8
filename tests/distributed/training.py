"""Tiny models, batches that depend on their global index alone, and a loop that drives an ``Engine``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.steps import list_steps
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.contracts import IGNORE_INDEX, Engine, EngineSetup
from orchestrator.registry import resolve
from orchestrator.spec.strategies import Strategy
from orchestrator.spec.training import Reproducibility

# Odd on purpose: no shard boundary falls on a row, and every rank's last shard is padded.
VOCAB_SIZE = 509
SEQ_LEN = 16
MICRO_BATCH_SIZE = 2
MAX_GRAD_NORM = 0.5
PEAK_LR = 1e-3
STRATEGY: TypeAdapter[Any] = TypeAdapter(Strategy)


def build_model(kind: str, *, dropout: float = 0.1) -> nn.Module:
    """A model of two blocks, equal on every rank; GPT-2 and BERT tie input and output embeddings."""
    torch.manual_seed(1234)
    shape = {"vocab_size": VOCAB_SIZE, "attn_implementation": "sdpa"}
    if kind == "gpt2":
        rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        size = {"n_positions": SEQ_LEN, "n_embd": 60, "n_layer": 2, "n_head": 4}
        tokens = {"bos_token_id": 0, "eos_token_id": 1}
        return GPT2LMHeadModel(GPT2Config(**shape, **rates, **size, **tokens, use_cache=False))
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": SEQ_LEN}
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                **shape,
                **size,
                hidden_size=56,
                intermediate_size=112,
                num_key_value_heads=2,
                attention_dropout=dropout,
                use_cache=False,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForPreTraining(BertConfig(**shape, **size, **rates, hidden_size=60, intermediate_size=240))


def find_blocks(model: Any) -> list[nn.Module]:
    """The repeated blocks."""
    if isinstance(model, GPT2LMHeadModel):
        return list(model.transformer.h)
    return list(model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers)


def make_batch(kind: str, step: int, micro: int) -> dict[str, Tensor]:
    """Micro-batch ``micro`` of all ranks' of a step; how many targets it has differs from one to the next."""
    generator = torch.Generator().manual_seed(step * 1009 + micro)
    size = (MICRO_BATCH_SIZE, SEQ_LEN)
    ids = torch.randint(2, VOCAB_SIZE, size, generator=generator)
    target = torch.rand(size, generator=generator) < (0.2 if kind == "bert" else 0.3 + 0.2 * micro)
    target[:, 3] = True
    batch = {"input_ids": ids, "labels": torch.where(target, ids, IGNORE_INDEX)}
    if kind == "bert":
        batch["input_ids"] = torch.where(target, 1, ids)
        batch["token_type_ids"] = (torch.arange(SEQ_LEN) >= SEQ_LEN // 2).long().repeat(size[0], 1)
        batch["is_next"] = torch.randint(0, 2, size[:1], generator=generator)
    return batch


def count_targets(kind: str, step: int, num_micro: int) -> dict[str, int]:
    """Targets of a step over all micro-batches of all ranks."""
    batches = [make_batch(kind, step, micro) for micro in range(num_micro)]
    labels = [b["labels"] if kind == "bert" else b["labels"][:, 1:] for b in batches]
    return {
        "tokens": sum(int((label != IGNORE_INDEX).sum()) for label in labels),
        "sequences": num_micro * MICRO_BATCH_SIZE,
    }


def loss_of(model: nn.Module, kind: str, batch: dict[str, Tensor], counts: dict[str, int]) -> Tensor:
    """Sum over targets divided by the global number of targets, of each term."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "is_next")}
    output = model(**inputs)
    if kind != "bert":
        return (
            cross_entropy(
                output.logits[:, :-1].flatten(0, 1).float(),
                batch["labels"][:, 1:].flatten(),
                reduction="sum",
            )
            / counts["tokens"]
        )
    tokens = cross_entropy(
        output.prediction_logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="sum"
    )
    pairs = cross_entropy(output.seq_relationship_logits.float(), batch["is_next"], reduction="sum")
    return tokens / counts["tokens"] + pairs / counts["sequences"]


def make_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the groups a job makes: matrices decay, vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=PEAK_LR, foreach=True)


def build_engine(
    model: nn.Module,
    strategy: dict[str, Any],
    *,
    num_micro: int = 2,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = make_adamw,
    max_grad_norm: float | None = MAX_GRAD_NORM,
    blocks: Sequence[nn.Module] | None = None,
    reproducibility: Reproducibility = "standard",
) -> Engine:
    """The engine of ``strategy``, for ``num_micro`` micro-batches a step over all ranks."""
    section = STRATEGY.validate_python(strategy)
    setup = EngineSetup(
        device=torch.device("cpu"),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        micro_batch_size=MICRO_BATCH_SIZE,
        grad_accum_steps=num_micro // dist.get_world_size(),
        max_grad_norm=max_grad_norm,
        make_optimizer=make_optimizer,
        blocks=find_blocks(model) if blocks is None else blocks,
        reproducibility=reproducibility,
    )
    engine: Engine = resolve("strategy", strategy["name"])(model, section, setup)
    engine.model.train()
    return engine


@dataclass
class Trajectory:
    """What a run of some steps left on one rank."""

    losses: dict[tuple[int, int], float] = field(default_factory=dict)
    """By step and global micro-batch index; this rank's."""
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of rank 0."""


def train(engine: Engine, kind: str, steps: Iterable[int], *, num_micro: int = 2) -> Trajectory:
    """Run ``steps``, dropout seeded by step and global micro-batch index, with a changing learning rate."""
    found = Trajectory()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for step in steps:
        counts = count_targets(kind, step, num_micro)
        for micro in range(rank, num_micro, world_size):
            torch.manual_seed(step * 1_000_003 + micro)
            with engine.micro_step(last=micro + world_size >= num_micro):
                loss = loss_of(engine.model, kind, make_batch(kind, step, micro), counts)
                engine.backward(loss)
            found.losses[step, micro] = loss.item()
        found.norms.append(engine.gradient_norm())
        engine.step(PEAK_LR * min(1.0, (step + 1) / 3) * (1 - step / 40), found.norms[-1])
    found.weights = engine.full_weights() or {}
    return found


def merge(ranks: Sequence[Trajectory]) -> Trajectory:
    """One trajectory from those of all ranks."""
    losses = {key: value for rank in ranks for key, value in rank.losses.items()}
    return Trajectory(dict(sorted(losses.items())), ranks[0].norms, ranks[0].weights)


def end_of(stage: StageLayout) -> dict[str, Tensor]:
    """What a stage has come to: its weights, and its last checkpoint's weights, moments and cursor."""
    (newest,) = [found.path for found in list_steps(stage.checkpoints)][-1:]
    state = seal.read_state(newest)
    tensors = read_tensors(newest)
    assert any(name.startswith("optim.exp_avg_sq.") for name in tensors)
    weights = load_file(stage.weights / "model.safetensors")
    tensors |= {f"weights/{name}": weight for name, weight in weights.items()}
    return tensors | {"cursor": torch.tensor([state["step"], state["rows"]])}


def different(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit what was expected; all, where the names differ."""
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [name for name in expected if not torch.equal(found[name], expected[name])]
