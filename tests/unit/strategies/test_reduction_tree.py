"""One tree over the micro-batches of a step, whoever holds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.strategies.reduction_tree import TreeSum


def make_leaves(num_micro: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_micro)
    return [torch.randn(64, generator=generator) for _ in range(num_micro)]


def tree_sum(leaves: list[Tensor]) -> Tensor:
    tree, copies = TreeSum(), [leaf.clone() for leaf in leaves]
    for leaf in copies[:-1]:
        tree.add([leaf])
    tree.complete([copies[-1]])
    return copies[-1]


def pairwise(terms: list[Tensor]) -> Tensor:
    """What ranks add in one turn."""
    while len(terms) > 1:
        terms = [left + right for left, right in zip(terms[0::2], terms[1::2], strict=True)]
    return terms[0]


@pytest.mark.parametrize("num_micro", [1, 2, 3, 5, 6, 8, 12, 20, 24, 32])
def test_turns_of_any_power_of_two_of_ranks_are_subtrees_of_one_tree(num_micro: int) -> None:
    leaves = make_leaves(num_micro)
    alone = tree_sum(leaves)
    torch.testing.assert_close(alone, torch.stack(leaves).sum(dim=0))
    for world_size in (2, 4, 8):
        if num_micro % world_size == 0:
            turns = [pairwise(leaves[at : at + world_size]) for at in range(0, num_micro, world_size)]
            assert torch.equal(tree_sum(turns), alone)


def test_adding_one_after_the_other_gives_other_bits() -> None:
    leaves = make_leaves(8)
    in_order = leaves[0].clone()
    for leaf in leaves[1:]:
        in_order += leaf
    assert not torch.equal(in_order, tree_sum(leaves))


def test_a_tree_begins_anew_after_a_step_and_holds_a_sum_for_each_binary_digit() -> None:
    tree = TreeSum()
    for _ in range(2):
        for count in range(1, 32):
            tree.add([torch.ones(1)])
            assert len(tree._partial) == count.bit_count()
        last = torch.ones(1)
        tree.complete([last])
        assert last.item() == 32
        assert tree._partial == []


def test_a_rank_without_gradients_adds_nothing() -> None:
    tree = TreeSum()
    tree.add([])
    tree.complete([])
