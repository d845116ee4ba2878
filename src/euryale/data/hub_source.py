"""Rows streamed from the Hugging Face hub; a lost connection neither loses nor doubles one.

`datasets` gives a cursor after every row. When reading fails, the iterator is thrown away and a fresh one starts at the
last cursor, after a wait that doubles each time. The library's own retries of a failed read, twenty of them 5 s apart
inside the old iterator, are switched off: the user is to be told, and a fresh start cannot inherit a half-read file.
(huggingface_hub below it keeps its own: a request that fails is repeated for about 23 s first.)
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from euryale.data.bad_rows import BadRows
from euryale.data.rows import Row, row_from_record
from euryale.errors import UserError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
MAX_WAIT_S = 60.0
# The base of the hub's errors is its HTTP client's own base, httpx.HTTPError or httpx2.HTTPError by version; OSError
# covers sockets and the ConnectionError of `datasets`; EOFError is a compressed stream that ends too early.
_TRANSPORT_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, EOFError)
# A wrong subset or split is a ValueError that lists the right ones, a repository with its own script a RuntimeError.
_OPENING_ERRORS: tuple[type[Exception], ...] = (ValueError, RuntimeError, *_TRANSPORT_ERRORS)
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
OFFLINE = (
    "Without the hub: data=files data.files=FOLDER with a copy (on a machine that has a network: hf download "
    "--repo-type dataset REPO --local-dir FOLDER), or data=stdlib, which needs nothing"
)


class HubSource:
    """Rows of one split of a data set of the hub, in its order. Connecting happens here, so that a hub that cannot be
    reached is said before a base is loaded. The commit is pinned: resuming reads the same rows."""

    def __init__(
        self,
        repo: str,
        subset: str | None = None,
        split: str = "train",
        data_files: list[str] | None = None,
        revision: str | None = None,
        streaming: bool = True,
        column: str | None = None,
        on_error: str = "stop",
        num_retries: int = 6,
        first_wait_s: float = 1.0,
    ) -> None:
        self._repo = repo
        self._subset = subset
        self._split = split
        self._data_files = data_files or []
        self._streaming = streaming
        self._column = column
        self._bad_rows = BadRows(on_error)
        self._num_retries = num_retries
        self._first_wait_s = first_wait_s
        self._num_rows = 0  # read in this pass
        self._num_passes = 0
        self._connect(_find_commit(repo, revision))

    @property
    def num_skipped(self) -> int:
        return self._bad_rows.count

    def __iter__(self) -> Iterator[Row]:
        for record in self._records():
            try:
                row = row_from_record(record, f"{self._repo} {self._split} row {self._num_rows}", self._column)
            except UserError as problem:
                self._bad_rows.meet(problem)
            else:
                yield row
        self._cursor, self._num_rows, self._num_passes = self._start, 0, self._num_passes + 1
        self._bad_rows.report()

    def state_dict(self) -> dict[str, Any]:
        return {
            "commit": self._commit,
            "cursor": copy.deepcopy(self._cursor),
            "num_rows": self._num_rows,
            "num_passes": self._num_passes,
            "num_skipped": self._bad_rows.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["commit"] != self._commit:
            logger.info("%s: going on with commit %s, which the saved run read", self._repo, state["commit"])
            self._connect(state["commit"])
        self._cursor = copy.deepcopy(state["cursor"])
        self._num_rows = state["num_rows"]
        self._num_passes = state["num_passes"]
        self._bad_rows.restart(state["num_skipped"])

    def _connect(self, commit: str | None) -> None:
        self._commit = commit
        self._dataset = self._open()
        self._start: dict[str, Any] = self._dataset.state_dict()
        self._cursor = self._start

    def _records(self) -> Iterator[object]:
        """What is left of the pass, through losses of the connection."""
        num_failures = 0
        while True:
            self._dataset.load_state_dict(copy.deepcopy(self._cursor))
            try:
                for record in self._dataset:
                    self._cursor = self._dataset.state_dict()
                    self._num_rows += 1
                    num_failures = 0
                    yield record
                return
            except _TRANSPORT_ERRORS as error:
                num_failures += 1
                self._wait_or_give_up(error, num_failures)
            except ValueError as error:  # what pyarrow and json say about a file that is damaged where it is stored
                raise UserError(f"{self._repo}: damaged after row {self._num_rows} ({_first_line(error)})") from error

    def _wait_or_give_up(self, error: BaseException, num_failures: int) -> None:
        where = f"the hub was lost after row {self._num_rows} of {self._repo} ({_first_line(error)})"
        if isinstance(error, FileNotFoundError) or _is_refusal(error):
            raise UserError(f"{where}. The file is gone or access was refused. {OFFLINE}") from error
        if num_failures > self._num_retries:
            raise UserError(f"{where}, and {self._num_retries} retries did not bring it back. {OFFLINE}") from error
        wait_s = min(self._first_wait_s * 2 ** (num_failures - 1), MAX_WAIT_S)
        logger.warning("%s; retry %d of %d in %g s, no row is lost", where, num_failures, self._num_retries, wait_s)
        time.sleep(wait_s)

    def _open(self) -> Any:
        import datasets  # takes two seconds to import, and most runs read files

        _take_over_retries()
        arguments: dict[str, Any] = {"path": self._repo, "name": self._subset, "revision": self._commit}
        if self._data_files:
            # Named files of a repository: also reads those whose loading script no longer runs.
            at = f"@{self._commit}" if self._commit else ""
            root = self._repo if Path(self._repo).is_dir() else f"hf://datasets/{self._repo}{at}"
            urls = [f"{root}/{name}" for name in self._data_files]
            arguments = {"path": _builder(self._data_files[0]), "data_files": urls}
        try:
            dataset = datasets.load_dataset(**arguments, split=self._split, streaming=self._streaming)
        except _OPENING_ERRORS as error:
            raise UserError(
                f"data.repo={self._repo} data.subset={self._subset} data.split={self._split}: cannot be opened "
                f"({_first_line(error)}). Check these three, or name files of it in data.data_files. {OFFLINE}"
            ) from error
        return dataset if self._streaming else dataset.to_iterable_dataset()


def _find_commit(repo: str, revision: str | None) -> str | None:
    """The commit that `revision` means now, asked once and without retries; None for a folder on disk."""
    if not repo:
        raise UserError("data=hub needs data.repo=ORG/NAME; ready-made: data=wikitext103, data=ultrachat, ...")
    if Path(repo).is_dir():
        return None
    if constants.HF_HUB_OFFLINE:
        return revision  # `datasets` answers from its cache or says that it cannot
    name = f"data.repo={repo}" + (f" data.revision={revision}" if revision else "")
    try:
        return HfApi().dataset_info(repo, revision=revision, timeout=CONNECT_TIMEOUT_S).sha
    except GatedRepoError as error:
        raise UserError(f"{name}: access is restricted. Ask on {constants.ENDPOINT}, then: hf auth login") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the repository has no such revision. Leave data.revision out") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{name}: no such data set on {constants.ENDPOINT} (a private one: hf auth login)") from error
    except _TRANSPORT_ERRORS as error:
        raise UserError(f"{name}: {constants.ENDPOINT} cannot be reached ({_first_line(error)}). {OFFLINE}") from error


def _builder(name: str) -> str:
    suffix = next((ending for ending in _BUILDERS if f"{ending}." in f"{name.lower()}."), None)
    if suffix is None:
        raise UserError(f"data.data_files={name}: cannot tell how to read it. Known: {', '.join(_BUILDERS)}")
    return _BUILDERS[suffix]


def _is_refusal(error: BaseException) -> bool:
    """An answer that asking again will not change; too many requests (429) and a time-out (408) may pass."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in (408, 429)


def _take_over_retries() -> None:
    """See the top of the file."""
    import datasets  # see HubSource._open

    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, ConnectionError) and error.__cause__ is not None else error
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:300]
