"""Training a vocabulary with the ``tokenizers`` library: byte-level BPE and WordPiece.

The same texts in the same order give the same bytes. Special tokens are chosen so that every
objective works with either algorithm.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.errors import DataError
from orchestrator.spec.datasets import TokenizerTraining

END, PAD, MASK, CLS, SEP = "<|endoftext|>", "<|pad|>", "<|mask|>", "<|cls|>", "<|sep|>"
BPE_SPECIALS = {
    "bos_token": END,
    "eos_token": END,
    "unk_token": END,
    "pad_token": PAD,
    "mask_token": MASK,
    "cls_token": CLS,
    "sep_token": SEP,
}
# The order of bert-base-uncased: padding has id 0.
WORDPIECE_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# 1000: the limit that BERT's own vocabularies were trained with; rarer characters become [UNK].
MAX_ALPHABET = 1000

log = logging.getLogger(__name__)

Batches = Callable[[], Iterable[list[str]]]


def train_tokenizer(section: TokenizerTraining, batches: Batches) -> Any:
    """Train a tokenizer.

    Args:
        section: Algorithm and size.
        batches: Starts a pass over the texts, batch by batch; WordPiece needs two passes.

    Returns:
        A ``PreTrainedTokenizerFast``.

    Raises:
        DataError: ``vocab_size`` cannot hold the bytes and special tokens of BPE.
    """
    train = {"bpe": _train_bpe, "wordpiece": _train_wordpiece}[section.algorithm]
    tokenizer = train(section, batches)
    if len(tokenizer) < section.vocab_size:
        log.warning(
            "tokenizer.train: the text yields only %d of vocab_size %d entries with min_frequency %d",
            len(tokenizer),
            section.vocab_size,
            section.min_frequency,
        )
    return tokenizer


def _train_bpe(section: TokenizerTraining, batches: Batches) -> Any:
    """Byte-level BPE, as GPT-2 (Radford et al. 2019, section 2.2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = list(dict.fromkeys(BPE_SPECIALS.values()))
    if section.vocab_size < len(alphabet) + len(specials):
        raise DataError(
            f"tokenizer.train: vocab_size {section.vocab_size} is too small for algorithm 'bpe',"
            f" which needs {len(alphabet)} bytes + {len(specials)} special tokens"
            f" = {len(alphabet) + len(specials)}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(batches(), trainer)
    # GPT-2 reads token_type_ids as tokens and would add their embeddings, so none are offered.
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **BPE_SPECIALS)


def _train_wordpiece(section: TokenizerTraining, batches: Batches) -> Any:
    """WordPiece, as BERT (Devlin et al. 2018, section 3)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=section.lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocab = _wordpiece_vocab(section, batches, normalizer, pre_tokenizer)
    backend = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(WORDPIECE_SPECIALS.values()))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **WORDPIECE_SPECIALS,
    )


def _wordpiece_vocab(
    section: TokenizerTraining, batches: Batches, normalizer: Any, pre_tokenizer: Any
) -> dict[str, int]:
    """Token to id, the same for the same texts.

    The trainer numbers characters inside words in the order of a hash map that differs from process
    to process, and breaks ties between merges by these numbers. So all of them are numbered here,
    in the one way the trainer offers: as special tokens, which a fresh tokenizer then does not
    have.
    """
    from tokenizers import Tokenizer, models, trainers

    specials = list(WORDPIECE_SPECIALS.values())
    limit = min(MAX_ALPHABET, (section.vocab_size - len(specials)) // 2)
    alphabet = _alphabet(batches, normalizer, limit)
    inside_words = [
        f"##{character}"
        for character in alphabet
        if len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1
    ]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[*specials, *alphabet, *inside_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(batches(), trainer)
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    return vocab


def _alphabet(batches: Batches, normalizer: Any, limit: int) -> list[str]:
    """The ``limit`` most frequent characters, sorted; between equals the lower code point wins."""
    counts: Counter[str] = Counter()
    for batch in batches():
        for text in batch:
            counts.update(normalizer.normalize_str(text))
    characters = [character for character in counts if not character.isspace()]
    return sorted(sorted(characters, key=lambda c: (-counts[c], c))[:limit])
