"""Keys of ``init``, and which parameters are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec.fingerprint import difference, trajectory_keys
from tests.unit.spec.jobs import VALID, complaints, first_stage, load

SET = "stages.pretrain."
INIT = f"{SET}init="


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            INIT + "{checkpoint: ds, format: deepspeed}",
            "needs 'trust_pickle: true', found false: its files are",
        ),
        (
            INIT + "{checkpoint: x, format: dcp, trust_pickle: true}",
            "belongs to format 'deepspeed', found 'dcp'",
        ),
        (INIT + "{checkpoint: x, trust_pickle: true}", "belongs to format 'deepspeed', found 'orchestrator'"),
        (INIT + "{pretrained: x, format: dcp}", "format 'dcp' belongs to 'checkpoint', which is not given"),
        (INIT + "{checkpoint: x, format: megatron}", "'orchestrator', 'deepspeed', 'dcp'"),
        (SET + "freeze=[]", "freeze"),
    ],
)
def test_first_weights_that_contradict_themselves_are_refused(
    override: str, expected: str, tmp_path: Path
) -> None:
    found = complaints(tmp_path, VALID, overrides=(override,))
    assert [problem for problem in found if expected in problem], found


def test_trainable_and_freeze_together_are_refused(tmp_path: Path) -> None:
    overrides = (SET + "freeze=['*.bias']", SET + "trainable=['*.weight', '*ln*']")
    (found,) = complaints(tmp_path, VALID, overrides=overrides)
    assert "give 'trainable' or 'freeze', found both (2 and 1 patterns)" in found


def test_a_flag_that_changes_no_weights_changes_no_trajectory(tmp_path: Path) -> None:
    plain = load(tmp_path, VALID, INIT + "{checkpoint: x}")
    keys = trajectory_keys(first_stage(plain), plain)
    assert not {"format", "trust_pickle"} & keys["stages"]["pretrain"]["init"].keys()
    assert "freeze" not in keys["stages"]["pretrain"]
    other = load(tmp_path, VALID, INIT + "{checkpoint: x, format: dcp}", SET + "freeze=['*.bias']")
    found = difference(keys, trajectory_keys(first_stage(other), other))
    assert found == [
        "stages.pretrain.init.format: absent -> dcp",
        "stages.pretrain.freeze: absent -> ['*.bias']",
    ]
