"""The datasets of a job, each found and digested once per start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.data.files import nearest
from orchestrator.data.shards import find_streamed
from orchestrator.data.sources import Source, find_source
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Dataset, HubDataset


class Catalog:
    """Finds datasets by their names in the job file, and remembers what it found."""

    def __init__(self, datasets: Mapping[str, Dataset], cache_dir: Path, tasks: Tasks = IN_PROCESS) -> None:
        """Nothing is looked for yet.

        Args:
            datasets: The job's ``datasets`` section.
            cache_dir: Folder for prepared data.
            tasks: Runs pieces of the preparation.
        """
        self.cache_dir = cache_dir.absolute()
        self.tasks = tasks
        self._datasets = datasets
        self._found: dict[str, Source] = {}

    def find(self, name: str) -> Source:
        """The dataset ``name``, with those whose evaluation rows it must share nothing with.

        Raises:
            DataError: The job has no such dataset, or it is missing, empty or unreadable.
        """
        source = self._alone(name)
        decontaminate = source.dataset.decontaminate
        if decontaminate is None:
            return source
        others = (self._alone(other) for other in decontaminate.against)
        return replace(source, against=tuple(view for other in others for view in other.evaluated()))

    def files(self, name: str) -> Mapping[str, str]:
        """Digests by path of the dataset's own files.

        Raises:
            DataError: It is missing, empty or unreadable.
        """
        return self._alone(name).files

    def _alone(self, name: str) -> Source:
        """The dataset ``name`` without the others that it is compared with."""
        if name not in self._datasets:
            raise DataError(
                f"there is no dataset '{name}', the job has"
                f" {sorted(self._datasets)}.{nearest(name, self._datasets)}"
            )
        if name not in self._found:
            dataset = self._datasets[name]
            if isinstance(dataset, HubDataset) and dataset.streaming:
                self._found[name] = find_streamed(name, dataset, self.cache_dir)
            else:
                self._found[name] = find_source(name, dataset, self.cache_dir, self.tasks)
        return self._found[name]
