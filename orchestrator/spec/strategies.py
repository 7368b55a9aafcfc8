"""How a training stage is shared out over workers."""

from typing import Annotated, Literal

from orchestrator.spec.section import ChosenBy, Section
from orchestrator.spec.training import Dtype, Plugin, Positive


class DDPStrategy(Section):
    """Replicate the model on every worker (torch DistributedDataParallel)."""

    name: Literal["ddp"]
    """Replicate the model on every worker."""
    param_dtype: Dtype = "float32"
    """Compute dtype; ``bfloat16`` and ``float16`` are autocast with float32 weights."""
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
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
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

    def __post_init__(self) -> None:
        if (self.device == "nvme") != (self.nvme_path is not None):
            raise ValueError(
                f"nvme_path belongs to device 'nvme' and is needed there; device is '{self.device}'"
            )


class ZeROStrategy(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    name: Literal["zero"]
    """DeepSpeed ZeRO."""
    stage: Literal[0, 1, 2, 3] = 2
    """0: nothing sharded; 1: optimizer state; 2: and gradients; 3: and parameters."""
    param_dtype: Dtype = "float32"
    """Dtype of the working weights, beside float32 masters; bfloat16 needs stage 2 or 3, float16 1 to 3."""
    offload_optimizer: Offload | None = None
    """Keep optimizer state outside device memory; needs stage 1 or more."""
    offload_param: Offload | None = None
    """Keep parameters outside device memory; needs stage 3."""
    config: str | None = None
    """A DeepSpeed JSON file; its ``"auto"`` values are filled in, contradictions are refused."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile with torch.compile."""

    def __post_init__(self) -> None:
        if self.param_dtype == "bfloat16" and self.stage < 2:
            raise ValueError(
                f"param_dtype bfloat16 needs stage 2 or 3, found stage {self.stage}: below that"
                " DeepSpeed keeps no float32 master weights the checkpoint could hold"
            )
        if self.param_dtype == "float16" and self.stage == 0:
            raise ValueError(
                "param_dtype float16 needs stage 1, 2 or 3, found stage 0, whose gradients DeepSpeed cannot"
                " sum in float32; set a stage, or strategy ddp"
            )
        if self.offload_optimizer and self.stage < 1:
            raise ValueError(f"offload_optimizer needs stage 1, 2 or 3, found stage {self.stage}")
        if self.offload_optimizer and self.offload_optimizer.device == "nvme":
            # Swapped out, gradients cannot be clipped and optimizer state cannot be saved in place.
            raise ValueError(
                "offload_optimizer.device: expected 'cpu', found 'nvme': on NVMe neither the clip nor a"
                " checkpoint can reach gradients and optimizer state; offload_param may be on nvme"
            )
        if self.offload_param and self.stage != 3:
            raise ValueError(f"offload_param needs stage 3, found stage {self.stage}")


Strategy = Annotated[DDPStrategy | FSDP2Strategy | ZeROStrategy | Plugin, ChosenBy("name")]
