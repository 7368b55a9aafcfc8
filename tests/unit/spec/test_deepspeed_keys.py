"""The lists of keys against the installed DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.spec.deepspeed_keys import BLOCKS, KEYS, NULLABLE

# In a process of its own: DeepSpeed warns when it is imported, and changes what torch does.
PROGRAM = """
import json, os
os.environ["DS_ACCELERATOR"] = "cpu"
from deepspeed.runtime import config, constants
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero import config as zero, offload_config as offload

class Asked(dict):
    names = set()
    def get(self, key, default=None):
        self.names.add(key)
        return super().get(key, default)
    def __contains__(self, key):
        self.names.add(key)
        return super().__contains__(key)
    def keys(self):
        return self
    def __copy__(self):
        return self

config.DeepSpeedConfig(Asked(train_batch_size=1))
removed = {*config._REMOVED_TOP_LEVEL_CONFIG_KEYS, constants.BFLOAT16_OLD}
models = {
    "zero_optimization": zero.DeepSpeedZeroConfig,
    "zero_optimization.offload_optimizer": offload.DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.offload_param": offload.DeepSpeedZeroOffloadParamConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
}
known = {
    path: [key for name, field in model.model_fields.items() for key in (name, field.alias) if key]
    for path, model in models.items()
}
known[""] = sorted(Asked.names - removed)
types = (constants.GRAD_ACCUM_DTYPE, constants.PARAM_DTYPE, constants.BUFFER_DTYPE)
known["data_types"] = [*types, constants.KEEP_IN_FP32_MODULES]
known["optimizer"] = [constants.TYPE, constants.OPTIMIZER_PARAMS, constants.LEGACY_FUSION]
print("\\n" + json.dumps(known))
"""
# ``deepspeed.initialize`` reads these two before it makes its configuration.
READ_ELSEWHERE = {"data_parallel_size", "sequence_parallel_size"}


@pytest.mark.timeout(120)
def test_the_keys_are_those_that_deepspeed_reads() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout.splitlines()[-1])
    assert known.keys() == KEYS.keys()
    assert set(KEYS[""]) == {*known.pop(""), *READ_ELSEWHERE}
    assert {path: sorted(KEYS[path]) for path in known} == {
        path: sorted(keys) for path, keys in known.items()
    }


def test_blocks_and_nullable_values_are_keys_themselves() -> None:
    for path in (*BLOCKS, *NULLABLE):
        above, _, key = path.rpartition(".")
        assert above not in KEYS or key in KEYS[above], path
    assert all(len(set(keys)) == len(keys) for keys in KEYS.values())
