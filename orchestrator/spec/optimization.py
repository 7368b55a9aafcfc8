"""The ``optimizer``, ``schedule``, ``limits``, ``loss_scale`` and ``anomalies`` of a training stage."""

import math
from typing import Annotated, Literal

from orchestrator.spec.section import ChosenBy, Must, Section, require_one

NonNegative = Annotated[float, Must(ge=0.0)]
Beta = Annotated[float, Must(ge=0.0, lt=1.0)]
AnomalyAction = Literal["stop", "skip", "rollback"]
UndecayedKind = Literal["norm", "bias", "embedding"]


class OptimizerSection(Section):
    """Keys that every optimizer shares."""

    lr: Annotated[float, Must(gt=0.0)]
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Weight decay of the parameters that have one."""
    no_decay: tuple[UndecayedKind, ...] = ("norm", "bias", "embedding")
    """Kinds of parameters without weight decay."""
    max_grad_norm: Annotated[float, Must(gt=0.0)] | None = 1.0
    """Clip gradients to this global L2 norm; null: no clipping."""


class AdamW(OptimizerSection):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    """AdamW with decoupled weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: Annotated[float, Must(gt=0.0)] = 1e-8
    """Term added to the denominator."""
    fused: bool = False
    """torch's fused kernel: faster, but not bit-identical between strategies on odd shapes."""


class SGD(OptimizerSection):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    """Stochastic gradient descent."""
    momentum: Beta = 0.9
    """Momentum; 0: none."""
    nesterov: bool = False
    """Nesterov's momentum; needs a momentum above 0."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError(
                f"nesterov: true needs a momentum above 0, found {self.momentum:g}; give one, such as"
                " 'momentum: 0.9', or leave nesterov out"
            )


class Adafactor(OptimizerSection):
    """Adafactor (Shazeer and Stern 2018), as in torch.optim."""

    name: Literal["adafactor"]
    """Second moments factored into rows and columns; not under ZeRO 1 to 3, which flatten them."""
    beta2_decay: Annotated[float, Must(le=0.0)] = -0.8
    """Exponent of the second moment's decay."""
    clip_threshold: Annotated[float, Must(gt=0.0)] = 1.0
    """Largest root mean square of an update."""


Optimizer = Annotated[AdamW | SGD | Adafactor, ChosenBy("name")]


class ScheduleSection(Section):
    """Keys that every schedule shares."""

    warmup_steps: Annotated[int, Must(ge=0)] = 0
    """Steps of linear rise from 0 to the peak."""


class Constant(ScheduleSection):
    """The peak learning rate after the warm-up."""

    name: Literal["constant"]
    """The peak learning rate after the warm-up."""


class Cosine(ScheduleSection):
    """Half a cosine down to a fraction of the peak (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"]
    """Half a cosine from the peak to ``min_lr_ratio``."""
    min_lr_ratio: Annotated[float, Must(ge=0.0, le=1.0)] = 0.1
    """Last learning rate as a fraction of the peak."""


class Linear(ScheduleSection):
    """A straight line down to a fraction of the peak."""

    name: Literal["linear"]
    """A straight line from the peak to ``min_lr_ratio``."""
    min_lr_ratio: Annotated[float, Must(ge=0.0, le=1.0)] = 0.0
    """Last learning rate as a fraction of the peak."""


class WarmupStableDecay(ScheduleSection):
    """Warm-up, a plateau, then a straight line down (Hu et al. 2024, MiniCPM)."""

    name: Literal["wsd"]
    """Warm-up, plateau, linear decay."""
    decay_steps: Annotated[int, Must(ge=1)]
    """Length of the decay at the end."""
    min_lr_ratio: Annotated[float, Must(ge=0.0, le=1.0)] = 0.0
    """Last learning rate as a fraction of the peak."""


Schedule = Annotated[Constant | Cosine | Linear | WarmupStableDecay, ChosenBy("name")]


class Limits(Section):
    """How long a stage trains; exactly one of the three."""

    max_steps: Annotated[int, Must(ge=1)] | None = None
    """Optimizer steps."""
    max_tokens: Annotated[int, Must(ge=1)] | None = None
    """Token positions (rows times ``seq_len``), rounded up to whole steps."""
    max_epochs: Annotated[float, Must(gt=0.0)] | None = None
    """Passes over all rows of the mixture, rounded down to whole steps."""

    def __post_init__(self) -> None:
        require_one(self, "max_steps", "max_tokens", "max_epochs")


class LossScale(Section):
    """The factor of the loss in float16, without which small gradients become 0 (Micikevicius 2017)."""

    initial: Annotated[float, Must(ge=1.0, le=2.0**32)] = 65536.0
    """Factor at the first step; a power of two. A step whose gradients overflow is left out and halves it."""
    growth_interval: Annotated[int, Must(ge=1)] = 2000
    """Good steps in a row after which it doubles."""

    def __post_init__(self) -> None:
        below = 2.0 ** math.floor(math.log2(self.initial))
        if below != self.initial:
            raise ValueError(
                f"initial {self.initial:g} is not a power of two, so that scaling would round gradients."
                f" Nearest: {below:.0f} or {2 * below:.0f}"
            )


class LossSpike(Section):
    """A step whose loss is far above that of the steps before it."""

    action: AnomalyAction = "rollback"
    """As for ``nonfinite``."""
    factor: Annotated[float, Must(gt=1.0)] = 2.0
    """A spike is a loss above this many times the mean of the steps before."""
    window: Annotated[int, Must(ge=1)] = 50
    """Steps in that mean; before there are as many, nothing is a spike."""


class Anomalies(Section):
    """What happens at a step whose loss or gradients cannot be right, before its update is made."""

    nonfinite: AnomalyAction = "stop"
    """A loss or gradient norm of NaN or infinity: ``stop``, the state before the step saved; ``skip`` the
    step, its rows passed over; ``rollback`` to the newest checkpoint, all rows since passed over. In float16
    such a norm alone halves the loss scale first, as long as that is above 1."""
    loss_spike: LossSpike | None = None
    """Treat a jump of the loss likewise; absent: do not."""
    max_in_a_row: Annotated[int, Must(ge=1)] = 5
    """Skips or rollbacks with no good step between them before the run stops after all."""
