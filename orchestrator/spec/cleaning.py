"""Sections of a dataset that say which rows are unfit to train on."""

from typing import Annotated

from orchestrator.counts import counted
from orchestrator.spec.section import Must, Section

Share = Annotated[float, Must(ge=0.0, le=1.0)]
Shares = tuple[Share, ...]


class Quality(Section):
    """Rules that tell prose from noise in any language that puts spaces between words.

    Defaults are those published: "Rae" is Rae et al. 2021 (Gopher), appendix A.1.1 and table A1; "Raffel"
    is Raffel et al. 2020 (C4), section 2.2; "Penedo" is Penedo et al. 2024 (FineWeb).
    """

    min_words: Annotated[int, Must(ge=0)] | None = 50
    """Fewest words, as spaces part them; null: any number (Rae)."""
    max_words: Annotated[int, Must(ge=1)] | None = 100_000
    """Most words; null: any number (Rae)."""
    min_mean_word_length: Annotated[float, Must(ge=0.0)] | None = 3.0
    """Least mean characters of a word; null: any (Rae)."""
    max_mean_word_length: Annotated[float, Must(gt=0.0)] | None = 10.0
    """Greatest mean characters of a word; null: any, as for scripts without spaces (Rae)."""
    max_symbol_to_word_ratio: Annotated[float, Must(ge=0.0)] | None = 0.1
    """Most hash signs, and most ellipses, for each word; null: any (Rae)."""
    min_alphabetic_word_fraction: Share | None = 0.8
    """Least fraction of words that hold a letter; null: any (Rae)."""
    max_bullet_line_fraction: Share | None = 0.9
    """Greatest fraction of lines that begin with a bullet; null: any (Rae)."""
    max_ellipsis_line_fraction: Share | None = 0.3
    """Greatest fraction of lines that end with an ellipsis; null: any (Rae)."""
    max_duplicate_line_fraction: Share | None = 0.3
    """Greatest fraction of lines that repeat an earlier line; null: any (Rae)."""
    max_duplicate_line_character_fraction: Share | None = 0.2
    """Greatest fraction of characters in such lines; null: any (Rae)."""
    max_duplicate_paragraph_fraction: Share | None = 0.3
    """Greatest fraction of paragraphs that repeat an earlier one; null: any (Rae)."""
    max_duplicate_paragraph_character_fraction: Share | None = 0.2
    """Greatest fraction of characters in such paragraphs; null: any (Rae)."""
    max_top_ngram_character_fractions: Shares = (0.20, 0.18, 0.16)
    """Greatest fraction of characters in the most frequent n-gram of 2, 3, 4 words; []: any (Rae)."""
    max_duplicate_ngram_character_fractions: Shares = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Greatest fraction of characters in n-grams of 5 to 10 words that occurred before; []: any (Rae)."""
    banned_texts: tuple[str, ...] = ("lorem ipsum", "{")
    """Placeholder text and code: a row that holds one of these, in any case, is dropped (Raffel)."""
    min_punctuated_line_fraction: Share | None = 0.12
    """Least fraction of lines that end with a punctuation mark; null: any (Penedo)."""
    max_short_line_fraction: Share | None = 0.67
    """Greatest fraction of lines of at most 30 characters; null: any (Penedo)."""

    def __post_init__(self) -> None:
        for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is above {high} {most}, which leaves no row")
        sizes = (("max_top_ngram_character_fractions", 3), ("max_duplicate_ngram_character_fractions", 6))
        for key, size in sizes:
            found = len(getattr(self, key))
            if found not in (0, size):
                numbers = counted(found, "number")
                raise ValueError(f"{key} has {numbers}, expected {size}, or [] to leave it out")


class NearDuplicates(Section):
    """Rows that repeat most of an earlier row's words are dropped (Lee et al. 2022; MinHash: Broder 1997)."""

    threshold: Annotated[float, Must(ge=0.3, le=0.95)] = 0.8
    """Estimated Jaccard similarity of two rows' n-grams from which they are near duplicates."""
    ngram: Annotated[int, Must(ge=1)] = 5
    """Words of an n-gram, in lower case and without punctuation."""
    num_hashes: Annotated[int, Must(ge=64, le=1024)] = 128
    """Hashes of a MinHash signature, 4 bytes each; 128 estimate a similarity of 0.8 to 0.035."""


class Decontamination(Section):
    """Training rows that share an n-gram with evaluation rows are dropped (Brown et al. 2020, appendix C)."""

    against: Annotated[tuple[str, ...], Must(min_length=1)]
    """Datasets whose validation and test rows must not be trained on; all rows of one that holds out none."""
    ngram: Annotated[int, Must(ge=4)] = 13
    """Words of an n-gram, in lower case and without punctuation; a shorter text counts as one n-gram."""
