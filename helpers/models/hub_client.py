"""One request to one hub, made with that hub's own client in a separate process.

`helpers.models.hubs` starts this file as a program, so that a request that hangs can be ended with its process, and
so that no client's settings or threads stay behind in the reader's notebook. It reads a task as JSON from
stdin and writes the answer as JSON to stdout; all decisions are made in `hubs`.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any

LONGEST_SLEEP = 10  # seconds in total; a client that wants to wait longer is stopped, and the reader is told
MOST_MEMORY = 4 * 2**30  # bytes that this process may take, which stops an endless list of files


class BusyError(Exception):
    """A client is about to wait for `seconds`, because its hub asks it to."""

    status_code = 429

    def __init__(self, seconds: float) -> None:
        super().__init__(f"asked to wait {seconds:.0f} s")
        self.retry_after = seconds


def huggingface_list(endpoint: str, repo: str) -> dict[str, Any]:
    """The revision and files of a model on Hugging Face, and whether it is gated."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=20)
    files = [
        {
            "name": file.rfilename,
            "bytes": file.size,
            "sha256": file.lfs.sha256 if file.lfs else None,
            "git_sha1": None if file.lfs else file.blob_id,
        }
        for file in info.siblings or ()
    ]
    return {"revision": info.sha, "files": files, "gated": bool(info.gated)}


def huggingface_download(endpoint: str, repo: str, revision: str, folder: str, names: list[str]) -> dict[str, Any]:
    """Download the named files with `huggingface_hub.snapshot_download`, which resumes an interrupted download."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=names, endpoint=endpoint, max_workers=4)
    return {}


def modelscope_list(endpoint: str, repo: str) -> dict[str, Any]:
    """The files of a model on ModelScope."""
    from modelscope_hub import HubApi

    files = HubApi(endpoint=endpoint).list_repo_files(repo, "model", revision="master")
    kept = [
        {"name": file.path, "bytes": file.size, "sha256": file.sha256, "git_sha1": None}
        for file in files
        if file.type == "blob"
    ]
    return {"revision": "master", "files": kept, "gated": False}


def modelscope_download(endpoint: str, repo: str, revision: str, folder: str, names: list[str]) -> dict[str, Any]:
    """Download the named files with the function behind `modelscope.snapshot_download`, imported without torch."""
    from modelscope_hub.compat.snapshot_download import snapshot_download

    snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=names, endpoint=endpoint, max_workers=4)
    return {}


def describe(error: Any) -> dict[str, Any]:
    """What went wrong, as a few plain values collected from the error and its chain of causes."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = next(iter(getattr(error, "failed_files", {}).values()), error.__cause__ or error.__context__)
    responses = [getattr(error, "response", None) for error in chain]
    statuses = [getattr(response, "status_code", None) for response in responses]
    statuses += [getattr(error, "status_code", None) for error in chain]
    waits = [response.headers.get("Retry-After") for response in responses if response is not None]
    waits += [getattr(error, "retry_after", None) for error in chain]
    lines = str(chain[0]).strip().splitlines()
    return {
        "kinds": [type(error).__name__ for error in chain],
        "errno": next((error.errno for error in chain if isinstance(error, OSError) and error.errno), None),
        "status": next((status for status in statuses if status), None),
        "retry_after": next((wait for wait in waits if wait is not None), None),
        "text": lines[0][:300] if lines else type(chain[0]).__name__,
    }


def bound() -> None:
    """Limit how long a client may wait silently, and how much memory an answer may fill."""
    sleep = time.sleep
    slept: list[float] = []

    def short_sleep(seconds: float) -> None:
        slept.append(seconds if seconds > 1 else 0.0)  # short pauses between polls do not count
        if sum(slept) > LONGEST_SLEEP:
            raise BusyError(seconds)
        sleep(seconds)

    time.sleep = short_sleep  # type: ignore[assignment]
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def main() -> None:
    """Do the task that stdin describes; whatever a client prints goes to stderr."""
    bound()
    answer_to = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = json.load(sys.stdin)
    try:
        answer = globals()[f"{task.pop('source')}_{task.pop('action')}"](**task)
    except Exception as error:
        answer = {"error": describe(error)}
    json.dump(answer, answer_to)
    answer_to.close()


if __name__ == "__main__":
    main()
