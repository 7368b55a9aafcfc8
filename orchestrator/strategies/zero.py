"""DeepSpeed ZeRO, stages 0 to 3.

DeepSpeed partitions, reduces and gathers; norm, clip and checkpoint are ours, so that all stages are on one
trajectory with ``ddp`` and read each other's state. Stage 0 partitions nothing and is a ``PlainEngine``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.contracts import Engine, EngineSetup
from orchestrator.errors import CheckpointError, PlanError
from orchestrator.spec.strategies import ZeROStrategy
from orchestrator.strategies.clip import clip, norm_of, sum_of_squares, sum_over_ranks, unscale
from orchestrator.strategies.exact_norm import exact_sum_of_squares
from orchestrator.strategies.flat_ranges import FlatRanges
from orchestrator.strategies.optimizer_state import materialized_state
from orchestrator.strategies.plain import PlainEngine
from orchestrator.strategies.zero_config import averages
from orchestrator.strategies.zero_driver import DeepSpeedDriver
from orchestrator.strategies.zero_partitions import GroupPartitions, ParameterPartitions, Partitions
from orchestrator.strategies.zero_sum import PartitionedSum


class ZeROEngine(Engine):
    """What the registry names; building it gives the engine of the section's stage."""

    def __new__(cls, model: nn.Module, section: Any, setup: EngineSetup) -> Any:
        """Replicated parameters at stage 0, partitioned ones above."""
        if cls is not ZeROEngine:
            return super().__new__(cls)
        return super().__new__(PartitionedZeRO if section.stage else ReplicatedZeRO)

    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Start DeepSpeed around ``model`` as the ``zero`` section says.

        Raises:
            PlanError: Version, operators, configuration, optimizer or compiler do not allow it.
        """
        self._driver = DeepSpeedDriver(model, section, setup)
        self.model = self._driver.engine

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Reduce gradients for the update in the last micro-batch alone."""
        return self._driver.micro_step(last=last)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        self._driver.backward(loss)

    def skip_step(self) -> None:
        """Let DeepSpeed end its step without an update."""
        self._driver.skip()


class ReplicatedZeRO(ZeROEngine, PlainEngine):
    """Stage 0: DeepSpeed sums gradients, torch's optimizer holds the parameters."""

    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Take the optimizer, which DeepSpeed hands back as it was."""
        super().__init__(model, section, setup)
        self._adopt(model, self._driver.engine.optimizer, setup)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        super().backward(loss)
        if self._fixed_sum is not None:
            self._fixed_sum.add(last=self._driver.last)

    def _update(self) -> None:
        """Move the weights and clear gradients."""
        self._driver.update()


class PartitionedZeRO(ZeROEngine):
    """Stages 1 to 3: master weights and optimizer state in flat tensors."""

    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Find DeepSpeed's flat tensors, and put back float32 values that it rounded."""
        assert isinstance(section, ZeROStrategy)
        # What DeepSpeed casts to 16 bits before it makes float32 masters of it, or keeps no master of.
        is_cast = section.param_dtype != "float32"
        originals = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if is_cast or not parameter.requires_grad
        }
        super().__init__(model, section, setup)
        kind = ParameterPartitions if section.stage == 3 else GroupPartitions
        self._module = model
        self._setup = setup
        self._averaged_over = setup.world_size if averages(section) else 1
        self._optimizer: torch.optim.Optimizer = self._driver.engine.optimizer.optimizer
        self._partitions: Partitions = kind(self._driver.engine.optimizer)
        self._frozen = {
            name: self._partitions.hold_frozen(parameter, originals[name])
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        }
        self._check_fragments(section)
        self._fixed_sum = self._make_sum() if setup.reproducibility == "exact" else None
        if is_cast:
            self._restore_masters(originals)

    def _check_fragments(self, section: ZeROStrategy) -> None:
        """Compare master weights, where they are thought to be, with working weights; collective.

        Some of DeepSpeed's settings and versions lay out flat tensors otherwise, and say nothing: training is
        right then, and checkpoints are wrong.

        Raises:
            PlanError: On every rank: a master weight is not where it should be.
        """
        misplaced = [
            name
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad and not self._is_in_place(parameter)
        ]
        count = torch.tensor(float(len(misplaced)), device=self._setup.device)
        if sum_over_ranks(count).item() > 0:
            raise PlanError(
                f"strategy zero, stage {section.stage}: DeepSpeed keeps {int(count.item())} parameters"
                f" elsewhere than expected, here {misplaced[:3]}; checkpoints would be wrong. Drop settings"
                f" of the layout, such as round_robin_gradients, from strategy.config {section.config}"
            )

    def _is_in_place(self, parameter: nn.Parameter) -> bool:
        """Whether the master weights of a parameter are its working weights, up to rounding."""
        fragment = self._partitions.fragment(parameter)
        if fragment is None:
            return True
        working = self._partitions.working(parameter, fragment)
        flat = self._partitions.flats[fragment.flat].detach()
        master = flat.narrow(0, fragment.offset, fragment.numel)
        rounded = master.to(working)
        # As bytes, so that NaN equals itself.
        return not working.numel() or torch.equal(rounded.view(torch.uint8), working.view(torch.uint8))

    def _restore_masters(self, originals: dict[str, Tensor]) -> None:
        """Set this rank's master weights; the working weights are these values rounded already."""
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                for start, master in self._ranges(parameter, self._partitions.flats).ranges:
                    master.copy_(originals[name].view(-1)[start : start + master.numel()])

    def _make_sum(self) -> PartitionedSum:
        """What adds gradients in one order."""
        self._partitions.reduce_in_tree()
        return PartitionedSum(self._partitions)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        super().backward(loss)
        if self._fixed_sum is not None:
            self._fixed_sum.add(last=self._driver.last)

    def _global_squares(self, gradients: Sequence[Tensor]) -> Tensor:
        """Sum of squares of the whole model's gradients, of which this rank holds some."""
        device = self._setup.device
        if self._fixed_sum is None:
            return sum_over_ranks(sum_of_squares(gradients, device))
        shapes = [self._partitions.shape(p) for p in self._module.parameters() if p.requires_grad]
        numel = sum(shape.numel() for shape in shapes)
        return exact_sum_of_squares(gradients, numel, device, num_holders=self._setup.world_size)

    def unscale(self, loss_scale: float) -> None:
        """Divide the parts that this rank holds by ``loss_scale``."""
        unscale(self._partitions.gradients(), loss_scale, averaged_over=self._averaged_over)

    def gradient_norm(self) -> float:
        """The global norm, of the parts that ranks hold."""
        return norm_of(self._global_squares(self._partitions.gradients()))

    def step(self, lr: float, norm: float) -> None:
        """Clip, update with ``lr``, clear gradients."""
        clip(self._partitions.gradients(), norm, self._setup.max_grad_norm)
        for group in self._driver.engine.optimizer.param_groups:
            group["lr"] = lr
        self._driver.update()

    def skip_step(self) -> None:
        """Clear gradients, and let DeepSpeed end its step without an update."""
        self._partitions.zero_gradients()
        super().skip_step()

    def _flat_states(self) -> list[dict[str, Tensor]]:
        """Optimizer state of each flat tensor, created where the optimizer has not done so."""
        group = self._optimizer.param_groups[0]
        return [materialized_state(self._optimizer, group, flat) for flat in self._partitions.flats]

    def neutral_state(self) -> dict[str, Tensor]:
        """Views of this rank's ranges, by neutral name."""
        flats, states = self._partitions.flats, self._flat_states()
        slots = [slot for slot in states[0] if slot != "step"]
        state: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                state[f"model.{name}"] = self._frozen[name]
                continue
            state[f"model.{name}"] = self._ranges(parameter, flats)
            for slot in slots:
                values = [flat_state[slot] for flat_state in states]
                state[f"optim.{slot}.{name}"] = self._ranges(parameter, values)
            if "step" in states[0]:
                state[f"optim.step.{name}"] = states[0]["step"].detach().cpu().clone()
        return state

    def _ranges(self, parameter: nn.Parameter, flats: list[Tensor]) -> FlatRanges:
        """The range of one parameter, a view into the flat tensor that holds it."""
        fragment = self._partitions.fragment(parameter)
        shape = self._partitions.shape(parameter)
        if fragment is None:
            return FlatRanges(shape, [])
        view = flats[fragment.flat].detach().narrow(0, fragment.offset, fragment.numel)
        return FlatRanges(shape, [(fragment.start, view)])

    def neutral_state_loaded(self, state: dict[str, Tensor]) -> None:
        """Set step counts, and bring working weights up to the loaded master weights; collective.

        Raises:
            CheckpointError: Parameters differ in their step count, which one flat tensor cannot hold.
        """
        steps = {value.item() for name, value in state.items() if name.startswith("optim.step.")}
        if len(steps) > 1:
            raise CheckpointError(
                f"parameters with different step counts {sorted(steps)}, expected one: ZeRO updates them"
                " together; resume with the strategy that wrote the checkpoint"
            )
        for flat_state in self._flat_states():
            if "step" in flat_state:
                flat_state["step"].fill_(next(iter(steps)))
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                self._partitions.restore_frozen(parameter, self._frozen[name])
        self._partitions.masters_changed()

    def full_weights(self) -> dict[str, Tensor] | None:
        """All parameters on rank 0, gathered one at a time."""
        weights = {}
        flats = self._partitions.flats
        for name, parameter in self._module.named_parameters():
            held = self._ranges(parameter, flats) if parameter.requires_grad else self._frozen[name]
            whole = collect(held, self._setup.device) if isinstance(held, FlatRanges) else held
            if dist.get_rank() == 0:
                weights[name] = whole.clone()
        return weights if dist.get_rank() == 0 else None


def collect(ranges: FlatRanges, device: torch.device) -> Tensor:
    """The whole float32 tensor of which each rank holds ``ranges``, on the CPU of rank 0; collective."""
    # Added as integers: what a rank does not hold is 0, and every bit arrives, the sign of -0.0 too.
    bits = torch.zeros(ranges.shape.numel(), dtype=torch.int32, device=device)
    for start, elements in ranges.ranges:
        bits[start : start + elements.numel()] = elements.view(torch.int32).to(device)
    if dist.get_world_size() > 1:
        dist.reduce(bits, dst=0)
    return bits.cpu().view(torch.float32).view(ranges.shape)
