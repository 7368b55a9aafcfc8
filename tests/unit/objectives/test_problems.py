"""Heads that classify: losses are those of Hugging Face's own models, metrics those of the libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.contracts import IGNORE_INDEX, Objective, Row, TokenInfo
from orchestrator.errors import DataError
from orchestrator.models import build_auto_model
from orchestrator.objectives.agreement import mean_correlation, ranks
from orchestrator.objectives.entities import EntityCounter
from orchestrator.objectives.problems import MultiLabel, Regression
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.objectives.token_classification import TokenClassification
from orchestrator.spec.training import SequenceClassificationObjective, TokenClassificationObjective

VOCAB = 40
TOKENS = TokenInfo(VOCAB, 0, 1, None, (0, 1), np.zeros(VOCAB, dtype=bool))
SIZE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZE,
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "distilbert": {"n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32, "max_position_embeddings": 32},
}
NAMES = ("a", "b", "c")
NO_RNG: Any = None


def build(kind: str, objective: Objective, names: Sequence[str]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"model_type": kind, **CONFIGS[kind], "initializer_range": 0.5}
    model = build_auto_model(config, objective.head, TOKENS, tuple(names)).eval()
    model.config.problem_type = objective.problem_type
    return model


def sequence(**keys: Any) -> SequenceClassification:
    section = SequenceClassificationObjective(name="sequence_classification", num_labels=3, **keys)
    return SequenceClassification(section, TOKENS, ())


def rows(labels: Sequence[Any], **fields: Any) -> list[Row]:
    rng = np.random.default_rng(1)
    drawn = [rng.integers(2, VOCAB, 4 + 3 * number % 7) for number in range(len(labels))]
    return [Row(ids, label=label, **fields) for ids, label in zip(drawn, labels, strict=True)]


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


CASES: dict[str, tuple[SequenceClassification, tuple[str, ...], list[Any]]] = {
    "single label": (sequence(), NAMES, [0, 2, 1, 1]),
    "multi-label": (
        sequence(problem="multi_label"),
        NAMES,
        [numbers(0, 1, 1), numbers(0, 0, 0), numbers(1, 1, 1), numbers(1, 0, 0)],
    ),
    "one number": (
        sequence(problem="regression"),
        ("score",),
        [numbers(0.5), numbers(-3), numbers(2), numbers(0)],
    ),
    "two numbers": (
        sequence(problem="regression", num_values=2),
        ("x", "y"),
        [numbers(0.5, 1), numbers(-3, 0), numbers(2, 2), numbers(0, 1)],
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_loss_of_a_text_is_that_of_the_model_itself(case: str, kind: str) -> None:
    objective, names, labels = CASES[case]
    model = build(kind, objective, names)
    batch = objective.collate(rows(labels), NO_RNG)
    own = model(**batch).loss
    (found,), (count,) = objective.loss_sums(model, batch), objective.num_targets(batch)
    torch.testing.assert_close(found / count, own, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert model.config.id2label == dict(enumerate(names))


def words(num_rows: int = 3) -> list[Row]:
    rng = np.random.default_rng(2)
    made = []
    for number in range(num_rows):
        labels = rng.integers(0, 3, 5 + number)
        labels[rng.random(len(labels)) < 0.4] = IGNORE_INDEX
        made.append(Row(rng.integers(2, VOCAB, len(labels)), token_labels=labels))
    return made


def tagger(names: Sequence[str]) -> TokenClassification:
    section = TokenClassificationObjective(name="token_classification", num_labels=len(names))
    return TokenClassification(section, TOKENS, names)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_mean_loss_of_words_is_that_of_the_model_itself(kind: str) -> None:
    objective = tagger(NAMES)
    model = build(kind, objective, NAMES)
    batch = objective.collate(words(), NO_RNG)
    (found,), (count,) = objective.loss_sums(model, batch), objective.num_targets(batch)
    assert count == sum((row.token_labels != IGNORE_INDEX).sum() for row in words())
    torch.testing.assert_close(found / count, model(**batch).loss, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pairs_tell_their_segments_to_models_that_know_them_and_to_no_other() -> None:
    objective = sequence()
    segments = [np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 1])]
    pairs = [Row(np.arange(2, 2 + len(ids)), label=0, segment_ids=ids) for ids in segments]
    # A row of a dataset without pairs is one segment.
    batch = objective.collate([*pairs, Row(np.arange(2, 5), label=1)], NO_RNG)
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
    plain = {name: value for name, value in batch.items() if name != "token_type_ids"}
    for kind, differs in {"bert": True, "gpt2": False, "distilbert": False}.items():
        model = build(kind, objective, NAMES)
        found, without = objective.loss_sums(model, batch), objective.loss_sums(model, plain)
        assert (not torch.equal(found, without)) == differs
        if differs:
            torch.testing.assert_close(found.sum() / 3, model(**batch).loss, rtol=1e-5, atol=1e-6)


def logits_like(labels: Tensor) -> Tensor:
    """Outputs that are right more often than not."""
    noise = torch.from_numpy(np.random.default_rng(3).normal(size=tuple(labels.shape)))
    return (labels.double() * 2 - 1 + 1.5 * noise).float()


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_of_sets_are_those_of_scikit_learn(seed: int) -> None:
    labels = torch.from_numpy((np.random.default_rng(seed).random((50, 4)) < 0.3).astype(np.float32))
    labels[:, 3] = 0
    logits = logits_like(labels)
    logits[:, 3] = -1
    problem = MultiLabel(4)
    parts = [
        problem.statistics(logits[at : at + 20], labels[at : at + 20], len(labels[at : at + 20]))
        for at in (0, 20, 40)
    ]
    found = problem.metrics(torch.stack(parts).sum(0))
    predicted, wanted = (logits > 0).numpy(), labels.numpy() > 0
    expected = {
        "loss": nn.functional.binary_cross_entropy_with_logits(logits, labels).item(),
        "micro_f1": reference.f1_score(wanted, predicted, average="micro", zero_division=0),
        "macro_f1": reference.f1_score(wanted, predicted, average="macro", zero_division=0),
        "exact_match": reference.accuracy_score(wanted, predicted),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["exact_match"] < 1


def test_rows_that_are_not_valid_count_nowhere() -> None:
    labels = torch.ones(4, 2)
    whole = MultiLabel(2).statistics(torch.ones(4, 2), labels, 4)
    assert MultiLabel(2).statistics(torch.ones(4, 2), labels, 0).tolist() == [0.0] * len(whole)
    assert Regression(2).statistics(torch.ones(4, 2), labels, 1).tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_metrics_of_numbers_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 5, size=(60, 2)).astype(np.float32)
    predicted = wanted + rng.normal(size=(60, 2)).astype(np.float32).round(1)
    statistics = Regression(2).statistics(torch.from_numpy(predicted), torch.from_numpy(wanted), 60)
    found = Regression(2).metrics(statistics)
    expected = {
        "loss": reference.mean_squared_error(wanted, predicted),
        "mse": reference.mean_squared_error(wanted, predicted),
        "mae": reference.mean_absolute_error(wanted, predicted),
        "pearson": np.mean([stats.pearsonr(wanted[:, i], predicted[:, i])[0] for i in range(2)]),
        "spearman": np.mean([stats.spearmanr(wanted[:, i], predicted[:, i])[0] for i in range(2)]),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert mean_correlation(np.ones((3, 1)), np.arange(3.0)[:, None]) == 0.0
    assert Regression(1).metrics(torch.zeros(0, 2)) == dict.fromkeys(expected, 0.0)


def test_ranks_of_equal_values_are_their_mean() -> None:
    values = np.random.default_rng(0).integers(0, 4, size=(20, 2)).astype(float)
    expected = np.stack([stats.rankdata(values[:, column]) for column in range(2)], axis=1)
    assert (ranks(values) == expected).all()


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-PER I-PER O", {(1, 3, "PER")}),
        ("B-PER B-PER I-PER", {(0, 1, "PER"), (1, 3, "PER")}),
        ("I-PER I-PER I-LOC", {(0, 2, "PER"), (2, 3, "LOC")}),
        ("B-PER I-LOC O I-LOC", {(0, 1, "PER"), (1, 2, "LOC"), (3, 4, "LOC")}),
        ("O O", set()),
    ],
)
def test_entities_begin_and_end_as_the_conll_script_has_them(tags: str, spans: set[Any]) -> None:
    counter = EntityCounter.of_tags(TAGS)
    assert counter is not None
    kinds = {"LOC": 0, "PER": 1}
    found = counter.spans(np.array([TAGS.index(tag) for tag in tags.split()]))
    assert found == {(start, end, kinds[kind]) for start, end, kind in spans}


def entities_slowly(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The same, word by word."""
    found, start = set(), 0
    for place in range(len(tags) + 1):
        tag = tags[place] if place < len(tags) else "O"
        before = tags[place - 1] if place else "O"
        goes_on = tag.startswith("I-") and before != "O" and before[2:] == tag[2:]
        if before != "O" and not goes_on:
            found.add((start, place, before[2:]))
        if tag != "O" and not goes_on:
            start = place
    return found


@torch.no_grad()
def test_metrics_of_words_count_tags_and_whole_entities() -> None:
    rng = np.random.default_rng(5)
    counter = EntityCounter.of_tags(TAGS)
    assert counter is not None
    total = np.zeros(3)
    expected = np.zeros(3)
    for _ in range(200):
        wanted = rng.integers(0, 5, 12)
        predicted = np.where(rng.random(12) < 0.7, wanted, rng.integers(0, 5, 12))
        total += counter.count(wanted, predicted)
        first, second = (entities_slowly([TAGS[i] for i in tags]) for tags in (wanted, predicted))
        expected += [len(first & second), len(first), len(second)]
    assert total.tolist() == expected.tolist()
    objective = tagger(TAGS)
    counts = np.array([[3, 1, 1, 0, 0], [4, 2, 1, 1, 0], [4, 1, 2, 1, 0]])
    statistics = torch.tensor([4.0, *counts.ravel(), 6, 8, 12], dtype=torch.float64)
    found = objective.metrics(statistics)
    macro = np.mean([6 / 8, 2 / 3, 2 / 3, 0])
    assert found == pytest.approx(
        {"loss": 0.5, "accuracy": 5 / 8, "macro_f1": macro, "precision": 0.5, "recall": 0.75, "f1": 0.6}
    )


@torch.no_grad()
@pytest.mark.parametrize("names", [TAGS[:3], ("NOUN", "VERB", "DET")])
def test_statistics_of_words_add_up_and_equal_scikit_learn(names: Sequence[str]) -> None:
    objective = tagger(names)
    model = build("bert", objective, names)
    made = words(6)
    whole = objective.statistics(model, objective.collate(made, NO_RNG), 6)
    parts = [objective.statistics(model, objective.collate(made[at : at + 2], NO_RNG), 2) for at in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-5)
    batch = objective.collate(made, NO_RNG)
    is_word = batch["labels"] != IGNORE_INDEX
    predicted = objective._logits(model, batch).argmax(-1)[is_word]
    wanted = batch["labels"][is_word]
    found = objective.metrics(whole)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(wanted, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(wanted, predicted, average="macro"))
    assert ("recall" in found) == (names[0] == "O")
    assert objective.statistics(model, batch, 0).sum() == 0


def test_more_labels_than_outputs_are_refused() -> None:
    with pytest.raises(DataError, match=r"4 tags .*objective\.num_labels is 3; set num_labels to 4"):
        TokenClassification(
            TokenClassificationObjective(name="token_classification", num_labels=3),
            TOKENS,
            ("a", "b", "c", "d"),
        )
    section = SequenceClassificationObjective(name="sequence_classification", problem="regression")
    with pytest.raises(DataError, match=r"2 labels .*objective\.num_values is 1; set num_values to 2"):
        SequenceClassification(section, TOKENS, ("x", "y"))
