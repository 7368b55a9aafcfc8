"""The parts of a training stage: objective, model, strategy, optimizer, schedule, limits, intervals."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from orchestrator.spec.section import Section

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16"]
PLUGIN_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _named(value: Any) -> str:
    """Discriminator of sections chosen by ``name``; a ``package.module:Name`` is a plug-in."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "plugin" if isinstance(name, str) and ":" in name else str(name)


class Plugin(Section):
    """The user's own plug-in."""

    name: Annotated[str, Field(pattern=PLUGIN_PATTERN)]
    """``package.module:Name`` of the user's own code."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Whatever the plug-in takes; it checks them itself."""


class CausalLMObjective(Section):
    """Predict the next token."""

    name: Literal["causal_lm"]
    """Predict the next token."""


class MaskedLMObjective(Section):
    """Predict masked tokens (Devlin et al. 2018, section 3.1)."""

    name: Literal["masked_lm"]
    """Predict masked tokens."""
    mlm_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Fraction of tokens chosen for prediction; of these 80% masked, 10% random, 10% kept."""
    whole_word: bool = False
    """Choose whole words instead of single tokens."""
    next_sentence: bool = False
    """Also predict whether the second segment follows the first (``BertForPreTraining``)."""


class SequenceClassificationObjective(Section):
    """Predict one label per row."""

    name: Literal["sequence_classification"]
    """Predict one label per row."""
    num_labels: Annotated[int, Field(ge=2)] = 2
    """Number of labels; a row with another label is an error."""


Objective = Annotated[
    Annotated[CausalLMObjective, Tag("causal_lm")]
    | Annotated[MaskedLMObjective, Tag("masked_lm")]
    | Annotated[SequenceClassificationObjective, Tag("sequence_classification")]
    | Annotated[Plugin, Tag("plugin")],
    Discriminator(_named),
]


class Model(Section):
    """A model from scratch, described by its Hugging Face configuration."""

    config: dict[str, Any]
    """Keys of the Hugging Face configuration; ``model_type`` names the architecture."""
    factory: Annotated[str, Field(pattern=rf"^auto$|{PLUGIN_PATTERN}")] = "auto"
    """``auto``: the Hugging Face auto classes; or the user's own ``package.module:Name``."""

    @model_validator(mode="after")
    def _has_type(self) -> Self:
        if self.factory == "auto" and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs 'model_type', for example 'gpt2', 'llama' or 'bert'")
        return self


class Init(Section):
    """Where a stage's first weights come from; exactly one of the three."""

    stage: str | None = None
    """Another stage of this job."""
    pretrained: str | None = None
    """A Hugging Face model: folder or hub id."""
    checkpoint: str | None = None
    """A checkpoint folder of another run (its weights only)."""
    revision: str | None = None
    """Commit, tag or branch of the hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with the hub model; needs a pinned ``revision``."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ("stage", "pretrained", "checkpoint") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'stage', 'pretrained' and 'checkpoint', found {given or 'none'}")
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code: true needs a pinned 'revision' (a commit)")
        return self


class Data(Section):
    """What a stage reads."""

    mixture: Annotated[dict[str, Annotated[float, Field(gt=0.0)]], Field(min_length=1)]
    """Datasets and their weights, in rows."""
    seq_len: Annotated[int, Field(ge=2)]
    """Tokens per row."""
    packing: bool = True
    """Language modelling: join documents with an end token and cut at ``seq_len``; false: one document per row."""


class DDPStrategy(Section):
    """Replicate the model on every worker (torch DistributedDataParallel)."""

    name: Literal["ddp"]
    """Replicate the model on every worker."""
    param_dtype: Dtype = "float32"
    """Compute dtype; ``bfloat16`` is autocast with float32 weights."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile with torch.compile."""


class FSDP2Strategy(Section):
    """Shard parameters, gradients and optimizer state (torch ``fully_shard``)."""

    name: Literal["fsdp2"]
    """Shard parameters, gradients and optimizer state."""
    param_dtype: Dtype = "float32"
    """Compute dtype of a block; the sharded weights stay float32."""
    reduce_dtype: Dtype = "float32"
    """Dtype in which gradients are summed over workers."""
    reshard_after_forward: bool = True
    """Free a block's full weights after its forward pass; false: faster, more memory."""
    replicate_degree: Positive = 1
    """Copies of the sharded model (HSDP); workers must be a multiple of it."""
    cpu_offload: bool = False
    """Keep shards and optimizer state in host memory."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile each block with torch.compile."""


class Offload(Section):
    """Where ZeRO puts what it offloads."""

    device: Literal["cpu", "nvme"]
    """Host memory, or a local disk."""
    nvme_path: str | None = None
    """Folder on the local disk, for ``nvme``."""
    pin_memory: bool = False
    """Use page-locked host memory."""

    @model_validator(mode="after")
    def _nvme_needs_path(self) -> Self:
        if (self.device == "nvme") != (self.nvme_path is not None):
            raise ValueError(f"nvme_path belongs to device 'nvme' and is needed there; device is '{self.device}'")
        return self


class ZeROStrategy(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    name: Literal["zero"]
    """DeepSpeed ZeRO."""
    stage: Literal[0, 1, 2, 3] = 2
    """0: nothing sharded; 1: optimizer state; 2: and gradients; 3: and parameters."""
    param_dtype: Dtype = "float32"
    """Dtype of the working weights; the master weights stay float32. ``bfloat16`` needs stage 2 or 3."""
    offload_optimizer: Offload | None = None
    """Keep optimizer state outside device memory; needs stage 1 or more."""
    offload_param: Offload | None = None
    """Keep parameters outside device memory; needs stage 3."""
    config: str | None = None
    """A DeepSpeed JSON file; ``"auto"`` values are filled in, and what contradicts the job is refused."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile with torch.compile."""

    @model_validator(mode="after")
    def _stage_allows(self) -> Self:
        if self.param_dtype == "bfloat16" and self.stage < 2:
            raise ValueError(
                f"param_dtype bfloat16 needs stage 2 or 3, found stage {self.stage}: below that DeepSpeed keeps"
                " no float32 master weights the checkpoint could hold"
            )
        if self.offload_optimizer and self.stage < 1:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3, found stage 0")
        if self.offload_param and self.stage != 3:
            raise ValueError(f"offload_param needs stage 3, found stage {self.stage}")
        return self


Strategy = Annotated[
    Annotated[DDPStrategy, Tag("ddp")]
    | Annotated[FSDP2Strategy, Tag("fsdp2")]
    | Annotated[ZeROStrategy, Tag("zero")]
    | Annotated[Plugin, Tag("plugin")],
    Discriminator(_named),
]
