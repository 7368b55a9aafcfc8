from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from orchestrator.data.cache import COMPLETE, make_folder
from orchestrator.data.catalog import Catalog
from orchestrator.data.tokenizer import (
    for_classification,
    gives_same_tokens,
    load_tokenizer,
    prepare_tokenizer,
    save_tokenizer,
    token_info,
    tokenizer_digest,
)
from orchestrator.errors import DataError, NoRoomError
from orchestrator.spec.datasets import Tokenizer
from tests.unit.data.corpus import make_texts, text_corpus, train_small


def origin(path: Path | str) -> Tokenizer:
    return Tokenizer.model_validate({"from": str(path)})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_trained_bpe_loads_and_restores_any_text(bpe: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bpe)
    assert len(tokenizer) == 400
    for text in (make_texts(1)[0], "  two  spaces\n\ttab", "caf\u00e9 \u4e2d\u6587 \U0001f600"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_trained_bpe_has_the_tokens_that_every_objective_needs(bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.unk_token == "<|endoftext|>"
    tokens = [tokenizer.pad_token, tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token]
    assert tokens == ["<|pad|>", "<|mask|>", "<|cls|>", "<|sep|>"]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]


def test_trained_wordpiece_is_like_bert(wordpiece: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(wordpiece)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == specials
    assert sorted(tokenizer.all_special_tokens) == sorted(specials)
    encoded = tokenizer("ABC def", "ghi")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert [tokens[0], tokens[-1], tokens.count("[SEP]")] == ["[CLS]", "[SEP]", 2]
    assert tokens[1].islower()
    assert max(encoded["token_type_ids"]) == 1
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "abc def ghi"
    assert tokenizer.convert_ids_to_tokens(tokenizer("\u4e2d")["input_ids"]) == ["[CLS]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_training_gives_the_same_bytes_in_another_process(
    folder: Path, algorithm: str, tmp_path: Path
) -> None:
    first = train_small(folder, algorithm, vocab_size=350)
    program = (
        "import sys; from pathlib import Path; from tests.unit.data.corpus import train_small;"
        f" print(train_small(Path(sys.argv[1]), {algorithm!r}, vocab_size=350))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    second = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert second.name == first.name
    assert second.is_relative_to(tmp_path)
    assert contents(first) == contents(second)


def test_training_is_done_once_and_again_only_when_its_inputs_change(folder: Path, bpe: Path) -> None:
    before = (bpe / "tokenizer.json").stat().st_ino
    assert train_small(folder) == bpe
    assert (bpe / "tokenizer.json").stat().st_ino == before
    assert train_small(folder, min_frequency=3) != bpe


def test_damaged_tokenizer_is_named_and_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = train_small(tmp_path)
    expected = contents(made)
    (made / "tokenizer.json").write_bytes(expected["tokenizer.json"][:-9])
    with caplog.at_level(logging.WARNING):
        assert train_small(tmp_path) == made
    assert f"{made}: file tokenizer.json has" in caplog.text
    assert contents(made) == expected


def test_vocab_too_small_or_dataset_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"vocab_size 200 is too small .* 256 bytes \+ 5 special tokens = 261"
    ):
        train_small(tmp_path, vocab_size=200)
    section = Tokenizer.model_validate(
        {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["corpsu"]}}
    )
    with pytest.raises(DataError, match=r"no dataset 'corpsu', .* Did you mean 'corpus'\?"):
        prepare_tokenizer(section, Catalog({"corpus": text_corpus(tmp_path)}, tmp_path / "cache"))


def test_training_does_not_look_at_labels(tmp_path: Path, bpe: Path) -> None:
    labelled = text_corpus(tmp_path, label_column="none")
    training = {"algorithm": "bpe", "vocab_size": 400, "datasets": ["corpus"]}
    section = Tokenizer.model_validate({"train": training})
    assert prepare_tokenizer(section, Catalog({"corpus": labelled}, tmp_path)).name == bpe.name


def test_text_that_cannot_fill_the_vocabulary_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_small(tmp_path, vocab_size=100_000)
    assert "of vocab_size 100000 entries" in caplog.text


def test_loaded_tokenizer_is_kept_by_content_and_works(tmp_path: Path, wordpiece: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(wordpiece, copy)
    made = prepare_tokenizer(origin(wordpiece), Catalog({}, tmp_path))
    assert prepare_tokenizer(origin(copy), Catalog({}, tmp_path)) == made
    text = make_texts(1)[0]
    assert load_tokenizer(made)(text) == load_tokenizer(wordpiece)(text)


def test_saved_folder_does_not_tell_where_the_tokenizer_came_from(tmp_path: Path, bpe: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(bpe, tmp_path / "from" / name)
        save_tokenizer(load_tokenizer(tmp_path / "from" / name), tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_tokenizer_whose_configuration_changes_is_another_one(tmp_path: Path, bpe: Path) -> None:
    loaded = Path(shutil.copytree(bpe, tmp_path / "tk"))
    config = loaded / "tokenizer_config.json"
    catalog = Catalog({}, tmp_path / "cache")
    before = prepare_tokenizer(origin(loaded), catalog)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"split_special_tokens": True}))
    after = prepare_tokenizer(origin(loaded), catalog)
    end = load_tokenizer(before).eos_token
    lengths = [len(load_tokenizer(folder)(end)["input_ids"]) for folder in (before, after)]
    assert lengths[0] == 1 < lengths[1]
    assert not gives_same_tokens(before, after)
    # What no token depends on makes no other one.
    config.write_text(json.dumps(json.loads((bpe / config.name).read_text()) | {"model_max_length": 77}))
    assert prepare_tokenizer(origin(loaded), catalog) == before


def test_a_full_disk_is_said_whoever_finds_it(
    tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(bpe)

    def full(*arguments: object, **settings: object) -> None:
        # As the tokenizers library says it.
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(NoRoomError, match=r"No space left on device: .* bytes are free"):
        make_folder(tmp_path / "made", lambda folder: save_tokenizer(tokenizer, folder))


def test_preset_truncation_and_padding_are_switched_off(tmp_path: Path, wordpiece: Path) -> None:
    preset = tmp_path / "preset"
    shutil.copytree(wordpiece, preset)
    state = json.loads((preset / "tokenizer.json").read_text("utf-8"))
    state["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (preset / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    made = prepare_tokenizer(origin(preset), Catalog({}, tmp_path / "cache"))
    text = " ".join(make_texts(3))
    assert load_tokenizer(made)(text)["input_ids"] == load_tokenizer(wordpiece)(text)["input_ids"]
    for folder in (preset, made):
        backend = load_tokenizer(folder).backend_tokenizer
        assert len(backend.encode(text).ids) == len(load_tokenizer(wordpiece)(text)["input_ids"])
        assert len(backend.encode("a").ids) < 8


def test_tokenizer_without_padding_gets_its_end_token(tmp_path: Path, bpe: Path) -> None:
    backend = load_tokenizer(bpe).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "a"
    )
    tokenizer = load_tokenizer(prepare_tokenizer(origin(tmp_path / "a"), Catalog({}, tmp_path / "cache")))
    assert tokenizer.pad_token == "<|endoftext|>"
    assert token_info(tokenizer).pad_id == token_info(tokenizer).eos_id == 0


def test_tokenizer_without_end_token_is_refused(tmp_path: Path, bpe: Path) -> None:
    backend = load_tokenizer(bpe).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>").save_pretrained(tmp_path / "a")
    with pytest.raises(DataError, match="neither eos_token nor sep_token"):
        prepare_tokenizer(origin(tmp_path / "a"), Catalog({}, tmp_path / "cache"))


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder, and it is no hub id"):
        prepare_tokenizer(origin(tmp_path / "none"), Catalog({}, tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no tokenizer file .* expected tokenizer.json"):
        prepare_tokenizer(origin(tmp_path / "empty"), Catalog({}, tmp_path))
    (tmp_path / "empty" / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match="cannot be loaded"):
        prepare_tokenizer(origin(tmp_path / "empty"), Catalog({}, tmp_path))


def test_digest_is_of_the_tokenizer_files_alone(tmp_path: Path, bpe: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(bpe, weights)
    (weights / COMPLETE).unlink()
    (weights / "model.safetensors").write_bytes(b"weights")
    assert tokenizer_digest(weights) == tokenizer_digest(bpe)
    (weights / "tokenizer.json").write_bytes(b"{}")
    assert tokenizer_digest(weights) != tokenizer_digest(bpe)


def test_token_info_of_bpe(bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    info = token_info(tokenizer)
    assert (info.vocab_size, info.pad_id, info.eos_id, info.mask_id) == (400, 1, 0, 2)
    assert info.special_ids == (0, 1, 2, 3, 4)
    ids = tokenizer("bx\u0101 bx\u0101\nb")["input_ids"]
    words = [tokenizer.decode([token]) for token in ids]
    continues = info.continues_word[ids].tolist()
    assert [word.startswith((" ", "\n")) for word in words] == [not follows for follows in continues]
    assert not info.continues_word[list(info.special_ids)].any()


def test_token_info_of_wordpiece(wordpiece: Path) -> None:
    tokenizer = load_tokenizer(wordpiece)
    info = token_info(tokenizer)
    assert (info.pad_id, info.eos_id, info.mask_id) == (0, 3, 4)
    for token, token_id in tokenizer.get_vocab().items():
        assert info.continues_word[token_id] == token.startswith("##")
    assert info.continues_word.any()


def test_classifier_reads_an_end_token_after_a_plain_text(bpe: Path, tmp_path: Path) -> None:
    plain = load_tokenizer(bpe)
    classifier = for_classification(plain)
    text = make_texts(1)[0]
    ids = plain(text)["input_ids"]
    assert classifier(text)["input_ids"] == [*ids, plain.eos_token_id]
    assert classifier(text, truncation=True, max_length=5)["input_ids"] == [*ids[:4], plain.eos_token_id]
    assert plain(text)["input_ids"] == ids
    save_tokenizer(classifier, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == classifier(text)
    assert for_classification(load_tokenizer(tmp_path))(text) == classifier(text)


def test_end_token_survives_saving_a_tokenizer_class_of_a_model(bpe: Path, tmp_path: Path) -> None:
    state = json.loads((bpe / "tokenizer.json").read_text("utf-8"))
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    GPT2Tokenizer(vocab=state["model"]["vocab"], merges=merges).save_pretrained(tmp_path / "gpt2")
    loaded = load_tokenizer(tmp_path / "gpt2")
    assert type(loaded) is GPT2Tokenizer
    classifier = for_classification(loaded)
    save_tokenizer(classifier, tmp_path / "classifier")
    ids = AutoTokenizer.from_pretrained(tmp_path / "classifier")("some text")["input_ids"]
    assert ids == classifier("some text")["input_ids"] == [*loaded("some text")["input_ids"], 0]


def test_classifier_keeps_the_special_tokens_of_bert(wordpiece: Path) -> None:
    tokenizer = load_tokenizer(wordpiece)
    assert for_classification(tokenizer)("a b") == tokenizer("a b")


def test_classifier_keeps_a_processor_that_adds_nothing(bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B:1", [])
    assert for_classification(tokenizer)("ab")["input_ids"][-1] == tokenizer.eos_token_id
