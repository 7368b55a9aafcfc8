"""What stages and datasets say of datasets: names that are there, held-out rows, columns and labels.

The split of a row is chosen by a hash of what is read of it, so a dataset that is read as rows of two kinds
is split in two ways; ``check_kinds`` refuses that where what one way holds out is learned from in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.spec.job import EvaluateStage, Job, Stage, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.packing_rules import CLASSIFICATION
from orchestrator.spec.plan import input_stage
from orchestrator.spec.reads import RowKind, row_kind, whole_kind
from orchestrator.spec.training import SupervisedFinetuningObjective, TokenClassificationObjective
from orchestrator.spec.tree import KeyPath

Complaint = tuple[KeyPath, str]
SMALLEST_WEIGHT = 0.5 / 10_000
"""Of a mixture in rows, so that it is a row in 10,000 when rounded."""
MISTAKEN_REGIONS = {"UK": "GB", "EL": "GR"}
"""Codes that are in use for countries beside those of ISO 3166-1."""


def check_decontamination(job: Job) -> Iterator[Complaint]:
    """What a dataset is compared with is not the rows that are compared."""
    for name, dataset in job.datasets.items():
        for index, other in enumerate(dataset.decontaminate.against if dataset.decontaminate else ()):
            path: KeyPath = ("datasets", name, "decontaminate", "against", index)
            if other == name and dataset.validation_fraction + dataset.test_fraction == 0.0:
                yield (
                    path,
                    f"dataset '{name}' holds out no rows, so all of its training rows would be dropped."
                    " Name another dataset, or give it a test_fraction",
                )


def check_phone_regions(job: Job) -> Iterator[Complaint]:
    """Countries are such as ``phonenumbers`` knows: of others it finds no number, and does not say so."""
    given = [
        (("datasets", name, "phone_regions", index), region)
        for name, dataset in job.datasets.items()
        for index, region in enumerate(dataset.phone_regions)
        if region != "US"
    ]
    if not given:
        return
    # Up to 19 ms of CPU time, where all of validate takes 140: most jobs need not wait for it.
    from phonenumbers import SUPPORTED_REGIONS

    for path, region in given:
        if region not in SUPPORTED_REGIONS:
            meant = MISTAKEN_REGIONS.get(region)
            hint = f"Did you mean '{meant}'?" if meant else "Give one code for each country."
            yield (
                path,
                f"expected the code of a country (ISO 3166-1), such as 'US', 'GB' or 'DE', found '{region}',"
                f" of which no phone number is known. {hint}",
            )


def check_label_names(job: Job) -> Iterator[Complaint]:
    """No name stands for two labels."""
    for name, dataset in job.datasets.items():
        ids = dict[str, int]()
        for index, label in enumerate(dataset.label_names or ()):
            if (first := ids.setdefault(label, index)) < index:
                yield (
                    ("datasets", name, "label_names", index),
                    f"'{label}' is the name of label {first} already, so no row would have label {index}."
                    " Give each label a name of its own",
                )


def check_chat_tokens(job: Job) -> Iterator[Complaint]:
    """``chatml`` needs tokens of its own, and a tokenizer that the job trains has none."""
    for index, stage in enumerate(job.stages):
        objective = stage.objective if isinstance(stage, TrainStage) else None
        named = isinstance(objective, SupervisedFinetuningObjective) and objective.chat_template == "chatml"
        if (
            named
            and job.tokenizer is not None
            and job.tokenizer.train is not None
            and _begins_here(job, stage)
        ):
            yield (
                ("stages", index, "objective"),
                "chat_template 'chatml' needs the tokens <|im_start|> and <|im_end|>, which tokenizer.train"
                " does not make; use 'plain', a Jinja file that ends turns with {{ eos_token }}, or a"
                " tokenizer made for conversations (tokenizer.from)",
            )


def _begins_here(job: Job, stage: Stage) -> bool:
    """Whether the weights of a training stage, and its tokenizer with them, begin in this job."""
    names = {found.name: found for found in job.stages if isinstance(found, TrainStage)}
    # As often as there are stages: a circle of them is refused elsewhere.
    for _ in job.stages:
        if not isinstance(stage, TrainStage) or stage.init is None or stage.init.stage is None:
            break
        stage = names.get(stage.init.stage, stage)
    return isinstance(stage, TrainStage) and (stage.init is None or stage.init.checkpoint is not None)


def check_kinds(job: Job) -> Iterator[Complaint]:
    """No dataset is evaluated as rows of one kind, and learned from or compared with as another."""
    for path, name, split, reader_stage in _evaluations(job):
        kind, readers = row_kind(reader_stage), _readers(job, reader_stage)
        dataset = job.datasets.get(name)
        if dataset is None or kind is None or getattr(dataset, f"{split}_fraction") == 0.0:
            continue
        others = [(other, reader) for read, other, reader in readers if read == name and other != kind]
        # All rows are held out, as whatever they are read.
        if dataset.validation_fraction + dataset.test_fraction >= 1.0 or not others:
            continue
        other, reader = others[0]
        yield (
            path,
            f"dataset '{name}' is read as {kind} here and as {other} by {reader}: rows held out as the one"
            " are not those held out as the other. Split its files beforehand and make them two datasets,"
            f" one to train on and one with {split}_fraction: 1 to evaluate",
        )


def _evaluations(job: Job) -> Iterator[tuple[KeyPath, str, str, TrainStage]]:
    """Where held-out rows are evaluated: of which dataset and split, and the stage whose model reads them."""
    trained = {stage.name: stage for stage in job.stages if isinstance(stage, TrainStage)}
    for index, stage in enumerate(job.stages):
        path: KeyPath = ("stages", index, "datasets")
        if isinstance(stage, EvaluateStage) and stage.split != "train" and stage.from_ in trained:
            reader, names, split = trained[stage.from_], stage.datasets, str(stage.split)
        elif isinstance(stage, TrainStage) and stage.evaluation:
            path = ("stages", index, "evaluation", "datasets")
            reader, names, split = stage, stage.evaluation.datasets, "validation"
        else:
            continue
        yield from (((*path, number), name, split, reader) for number, name in enumerate(names))


def _readers(job: Job, evaluated: TrainStage) -> Iterator[tuple[str, RowKind, str]]:
    """Who else must agree on which rows are held out from the model that ``evaluated`` has trained.

    Returns:
        The dataset, as what it is read, and by what: the stages that the model went through, and others.
    """
    for stage in _lineage(job, evaluated):
        kind = row_kind(stage)
        if kind is not None:
            for name in stage.data.mixture:
                yield name, kind, f"stage '{stage.name}', which trains on it"
    learned = job.tokenizer.train.datasets if job.tokenizer and job.tokenizer.train else ()
    readers = [(name, "tokenizer.train, which learns from it") for name in learned]
    for name, dataset in job.datasets.items():
        compared = dataset.decontaminate.against if dataset.decontaminate else ()
        readers += [(other, f"decontaminate of dataset '{name}'") for other in compared]
    for name, reader in readers:
        if name in job.datasets:
            yield name, whole_kind(job.datasets[name]), reader


def _lineage(job: Job, stage: TrainStage) -> Iterator[TrainStage]:
    """The stage, and those whose weights it builds on; a name that is no stage's is another complaint."""
    trained = {found.name: found for found in job.stages if isinstance(found, TrainStage)}
    seen: set[str] = set()
    while stage.name not in seen:
        seen.add(stage.name)
        yield stage
        stage = trained.get(input_stage(stage) or "", stage)


def check_streaming(job: Job) -> Iterator[Complaint]:
    """Nothing reads the texts of a dataset whose rows are not kept."""
    streamed = {name for name, dataset in job.datasets.items() if getattr(dataset, "streaming", False)}
    read: list[tuple[KeyPath, Sequence[str]]] = []
    if job.tokenizer and job.tokenizer.train:
        read.append((("tokenizer", "train", "datasets"), job.tokenizer.train.datasets))
    for name, dataset in job.datasets.items():
        if dataset.decontaminate:
            read.append((("datasets", name, "decontaminate", "against"), dataset.decontaminate.against))
    for path, names in read:
        for index, name in enumerate(names):
            if name in streamed:
                yield (
                    (*path, index),
                    f"dataset '{name}' has streaming: true and keeps no rows, and this reads all its texts."
                    " Name another dataset, such as one of a few of its files, or set its streaming to false",
                )


def check_datasets(job: Job, path: KeyPath, names: Sequence[str]) -> Iterator[Complaint]:
    """Each of the names listed at ``path`` is that of a dataset."""
    for index, name in enumerate(names):
        yield from check_dataset(job, (*path, index), name)


def check_dataset(job: Job, path: KeyPath, name: str) -> Iterator[Complaint]:
    """A dataset has the name given at ``path``."""
    if name not in job.datasets:
        hint = suggestion(name, list(job.datasets), plural="Datasets") or " 'datasets' is empty."
        yield path, f"no dataset is called '{name}'.{hint}"


def check_data(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[Complaint]:
    """The datasets of a training stage have what it reads of them."""
    used: list[Complaint] = [((*path, "data", "mixture", name), name) for name in stage.data.mixture]
    if stage.evaluation:
        place: KeyPath = (*path, "evaluation", "datasets")
        for index, name in enumerate(stage.evaluation.datasets):
            used.append(((*place, index), name))
            yield from _check_held_out(job, (*place, index), name, "validation")
    if stage.data.mixture_unit == "tokens" and getattr(stage.objective, "next_sentence", False):
        yield (
            (*path, "data", "mixture_unit"),
            "rows of next_sentence are pairs that have no fixed tokens; give data.mixture in rows",
        )
    for where, name in used:
        yield from _check_columns(job, stage, where, name)
    total = sum(stage.data.mixture.values())
    for name, weight in stage.data.mixture.items():
        if weight < SMALLEST_WEIGHT * total and stage.data.mixture_unit == "rows":
            yield (
                (*path, "data", "mixture", name),
                f"weight {weight:g} of {total:g} is less than one row in 10,000; raise it, or leave it out",
            )
        dataset = job.datasets.get(name)
        if dataset is not None and dataset.validation_fraction + dataset.test_fraction >= 1.0:
            yield (
                (*path, "data", "mixture", name),
                f"dataset '{name}' has no training rows: its validation_fraction and test_fraction hold out"
                " all of it. Lower them, or leave the dataset out",
            )


def check_evaluate(job: Job, stage: EvaluateStage, path: KeyPath) -> Iterator[Complaint]:
    """The datasets of an evaluate stage have what the weights' stage reads of them, and the rows."""
    trained = {other.name: other for other in job.stages}.get(stage.from_)
    for index, name in enumerate(stage.datasets):
        where = (*path, "datasets", index)
        if stage.split != "train":
            yield from _check_held_out(job, where, name, stage.split)
        if isinstance(trained, TrainStage):
            yield from _check_columns(job, trained, where, name)


def _check_held_out(job: Job, path: KeyPath, name: str, split: str) -> Iterator[Complaint]:
    dataset = job.datasets.get(name)
    if dataset is not None and getattr(dataset, f"{split}_fraction") == 0.0:
        yield (
            path,
            f"dataset '{name}' has no {split} rows: its {split}_fraction is 0."
            f" Give it one, such as 'datasets.{name}.{split}_fraction: 0.1'; 1 holds out all of it",
        )


def _check_columns(job: Job, stage: TrainStage, path: KeyPath, name: str) -> Iterator[Complaint]:
    """A dataset names the columns that the stage's objective reads, and as many labels as it has."""
    dataset, objective = job.datasets.get(name), stage.objective
    if dataset is None:
        return
    if isinstance(objective, SupervisedFinetuningObjective):
        if dataset.messages_column is None and dataset.prompt_column is None:
            yield (
                path,
                f"dataset '{name}' has no conversations, which supervised_finetuning reads. Give it"
                f" 'datasets.{name}.messages_column: messages', or prompt_column and completion_column",
            )
        return
    if not isinstance(objective, CLASSIFICATION):
        return
    if isinstance(objective, TokenClassificationObjective) and dataset.words_column is None:
        yield (
            path,
            f"dataset '{name}' has no words_column, which token_classification reads."
            f" Give it one, such as 'datasets.{name}.words_column: tokens'",
        )
    if dataset.label_column is None:
        yield (
            path,
            f"dataset '{name}' has no label_column, which {objective.name} reads."
            f" Give it one, such as 'datasets.{name}.label_column: label'",
        )
    names = dataset.label_names
    if names is not None and len(names) != objective.num_outputs:
        is_regression = getattr(objective, "problem", None) == "regression"
        key = "num_values" if is_regression else "num_labels"
        yield (
            path,
            f"dataset '{name}' has {len(names)} label_names, and the objective of stage"
            f" '{stage.name}' has {key} {objective.num_outputs}; they must be equal",
        )
