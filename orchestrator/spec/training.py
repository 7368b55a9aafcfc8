"""The parts of a training stage: objective, model, first weights and data."""

from datetime import date
from typing import Annotated, Any, Literal

from orchestrator.spec.messages import MAX_CHOICES, shown
from orchestrator.spec.section import ChosenBy, Must, Section, field, require_one

Positive = Annotated[int, Must(ge=1)]
Probability = Annotated[float, Must(ge=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16", "float16"]
MixtureUnit = Literal["rows", "tokens"]
Reproducibility = Literal["standard", "exact"]
Packing = Literal["cut", "best_fit", "none"]
PLUGIN_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
PLUGIN = Must(pattern=PLUGIN_PATTERN, hint="your own 'package.module:Name'")
FACTORY = Must(pattern=rf"^auto$|{PLUGIN_PATTERN}", hint="'auto' or your own 'package.module:Name'")


class Plugin(Section):
    """The user's own plug-in."""

    name: Annotated[str, PLUGIN]
    """``package.module:Name`` of the user's own code."""
    options: dict[str, Any] = field(default_factory=dict)
    """Whatever the plug-in takes; it checks them itself."""


class CausalLMObjective(Section):
    """Predict the next token."""

    name: Literal["causal_lm"]
    """Predict the next token."""


class MaskedLMObjective(Section):
    """Predict masked tokens (Devlin et al. 2018, section 3.1)."""

    name: Literal["masked_lm"]
    """Predict masked tokens."""
    mlm_probability: Annotated[float, Must(gt=0.0, lt=1.0)] = 0.15
    """Fraction of tokens chosen for prediction; of these 80% masked, 10% random, 10% kept."""
    whole_word: bool = False
    """Choose whole words instead of single tokens."""
    next_sentence: bool = False
    """Also predict whether the second segment follows the first (``BertForPreTraining``)."""


class SequenceClassificationObjective(Section):
    """Predict the label of a text or of a pair of texts; or several labels, or numbers."""

    name: Literal["sequence_classification"]
    """Predict the label of a text or of a pair of texts."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """One label a row; any number of labels a row; or one number or several a row."""
    num_labels: Annotated[int, Must(ge=2)] = 2
    """Number of labels; a row with another label is an error. Not used by ``regression``."""
    num_values: Positive = 1
    """Numbers that a row of ``regression`` holds."""

    def __post_init__(self) -> None:
        if self.problem != "regression" and self.num_values != 1:
            raise ValueError(
                f"num_values {self.num_values} belongs to problem 'regression', found '{self.problem}';"
                " leave it out, or set the problem"
            )

    @property
    def num_outputs(self) -> int:
        """Outputs of the head."""
        return self.num_values if self.problem == "regression" else self.num_labels


class TokenClassificationObjective(Section):
    """Predict a tag for every word, such as the parts of names."""

    name: Literal["token_classification"]
    """Predict a tag for every word."""
    num_labels: Annotated[int, Must(ge=2)]
    """Number of tags; a word with another tag is an error."""

    @property
    def num_outputs(self) -> int:
        """Outputs of the head."""
        return self.num_labels


class SupervisedFinetuningObjective(Section):
    """Predict the next token of an assistant's turns in conversations."""

    name: Literal["supervised_finetuning"]
    """Predict the next token of an assistant's turns."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens with a loss: those of the assistant's turns with the token that ends each, or all."""
    chat_template: str | None = None
    """How conversations become text: ``plain`` (role, colon, content), ``chatml``, or a Jinja file;
    absent: the tokenizer's own, or that of the stage whose weights it starts from."""
    chat_date: str | None = None
    """The day, such as ``2026-12-31``, that a template is told which asks for today's (``strftime_now``, as
    Llama 3's do); required for those, since the rows would differ from day to day."""

    def __post_init__(self) -> None:
        if self.chat_date is None:
            return
        try:
            date.fromisoformat(self.chat_date)
        except ValueError as error:
            raise ValueError(
                f"chat_date: expected a day such as '2026-12-31', found {self.chat_date!r}"
            ) from error


Objective = Annotated[
    CausalLMObjective
    | MaskedLMObjective
    | SequenceClassificationObjective
    | TokenClassificationObjective
    | SupervisedFinetuningObjective
    | Plugin,
    ChosenBy("name"),
]


class Model(Section):
    """A model from scratch, described by its Hugging Face configuration."""

    config: dict[str, Any]
    """Keys of the Hugging Face configuration; ``model_type`` names the architecture."""
    factory: Annotated[str, FACTORY] = "auto"
    """``auto``: the Hugging Face auto classes; or the user's own ``package.module:Name``."""

    def __post_init__(self) -> None:
        kind = self.config.get("model_type")
        if self.factory == "auto" and not isinstance(kind, str):
            keys = ", ".join(sorted(self.config)[:MAX_CHOICES]) or "none"
            raise ValueError(
                "config needs 'model_type', a name such as 'gpt2', 'llama' or 'bert', found"
                f" {shown(kind)} (its keys: {keys})"
            )


class Init(Section):
    """Where a stage's first weights come from; exactly one of the three."""

    stage: str | None = None
    """Another stage of this job."""
    pretrained: str | None = None
    """A Hugging Face model: folder or hub id."""
    checkpoint: str | None = None
    """A checkpoint folder of another run (its weights only); ``format`` says who wrote it."""
    format: Literal["orchestrator", "deepspeed", "dcp"] = "orchestrator"
    """Who wrote ``checkpoint``: this program; DeepSpeed (ZeRO 1 to 3: the folder with the file ``latest``, or
    one step in it); or ``torch.distributed.checkpoint`` (the folder with the file ``.metadata``)."""
    trust_pickle: bool = False
    """Unpickle the files of a DeepSpeed checkpoint, which may run any code that is in them."""
    revision: str | None = None
    """Commit, tag or branch of the hub id."""
    trust_remote_code: bool = False
    """Run Python code that comes with the hub model; needs a pinned ``revision``."""

    def __post_init__(self) -> None:
        require_one(self, "stage", "pretrained", "checkpoint")
        if self.format != "orchestrator" and self.checkpoint is None:
            raise ValueError(f"format '{self.format}' belongs to 'checkpoint', which is not given")
        if self.format == "deepspeed" and not self.trust_pickle:
            raise ValueError(
                "format 'deepspeed' needs 'trust_pickle: true', found false: its files are pickles, which may"
                " run any code; set it for a checkpoint that you or someone you trust wrote"
            )
        if self.trust_pickle and self.format != "deepspeed":
            raise ValueError(
                f"trust_pickle: true belongs to format 'deepspeed', found '{self.format}', which is read"
                " without running code; leave it out"
            )
        if self.trust_remote_code and not self.revision:
            raise ValueError(
                "trust_remote_code: true needs a pinned 'revision', the commit whose code may run here,"
                f" found {shown(self.revision)}"
            )


class Data(Section):
    """What a stage reads."""

    mixture: Annotated[dict[str, Annotated[float, Must(gt=0.0)]], Must(min_length=1)]
    """Datasets and their weights; any 10,000 consecutive rows hold each to 1/10,000."""
    mixture_unit: MixtureUnit = "rows"
    """What weights count; ``tokens``: divided by a dataset's mean tokens per row, exact in the mean."""
    on_exhausted: Literal["repeat", "stop"] = "repeat"
    """A dataset was read through: begin it again, or end the stage before it would begin again."""
    after: str | None = None
    """A stage that this one's weights come from: go on in its datasets where it ended; absent: begin anew."""
    seq_len: Annotated[int, Must(ge=2)]
    """Tokens per row."""
    packing: Packing | bool = True
    """``cut`` or true: join documents with an end token and cut at ``seq_len``; ``best_fit``: put whole
    documents side by side, cut only those longer than a row; ``none`` or false: one document per row.
    Conversations have a row each unless it is ``best_fit``; classification always has one text a row."""
    document_mask: bool | None = None
    """Keep attention inside a document and let positions begin anew in each; default: with ``best_fit``."""

    def __post_init__(self) -> None:
        if self.document_mask and self.packing_mode == "none":
            one = "document_mask: true needs rows of several documents, and packing none puts one in each"
            raise ValueError(f"{one}; set packing to 'best_fit' or 'cut', or leave document_mask out")

    @property
    def packing_mode(self) -> Packing:
        """``packing`` as a word."""
        if isinstance(self.packing, bool):
            return "cut" if self.packing else "none"
        return self.packing

    @property
    def confines_documents(self) -> bool:
        """``document_mask``, with its default filled in."""
        return self.packing_mode == "best_fit" if self.document_mask is None else self.document_mask
