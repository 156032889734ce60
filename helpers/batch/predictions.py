"""The files of a run: `p.jsonl` grows by one line an answer, `p.json` is written when all are there.

Nothing that was answered is lost by stopping, however it happens: a line is handed to the operating system
whole, as soon as there is an answer, and a line that was cut off is taken away when the run goes on. Beside
them `p.run.json` says what the run was asked to do, so that another job does not go on with its answers.
"""

import errno
import json
import os
from array import array
from pathlib import Path

from helpers.errors import BadInputError, DamagedFilesError, DiskFullError

NOT_YET = -1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Predictions:
    """The files of one run over `total` prompts.

    >>> with Predictions("p.json") as predictions:  # nobody else writes them now
    ...     predictions.open(1, {"model": "smollm2-135m"}, resume=True)
    ...     predictions.add(0, "What is the capital of France?", "Paris.")  # one line in p.jsonl
    ...     predictions.finish()  # p.json

    Holds eight bytes a prompt in memory: where its line begins.
    """

    def __init__(self, predictions_file):
        self.json = Path(predictions_file)
        if self.json.suffix == ".jsonl" or self.json.is_dir() or not self.json.name:
            raise BadInputError(
                f"predictions_file is the .json file to be written at the end, such as p.json, not {self.json}: "
                "the .jsonl file beside it gets its name from that."
            )
        stem = self.json.stem if self.json.suffix == ".json" else self.json.name
        self.jsonl = self.json.with_name(f"{stem}.jsonl")
        self.record = self.json.with_name(f"{stem}.run.json")
        self._stream = None

    def __enter__(self):
        from filelock import FileLock, Timeout

        try:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.json.with_name(f".{self.json.name}.lock"), timeout=0)
            self._lock.acquire()
        except Timeout:
            raise BadInputError(
                f"Another run is writing {self.jsonl} now. Wait for it, or give this one another predictions_file."
            ) from None
        except OSError as error:
            self._raise_unwritable(error)
        return self

    def __exit__(self, *_):
        if self._stream is not None:
            os.close(self._stream)
            self._stream = None
        self._lock.release()

    def open(self, total, record, *, resume):
        """Go on with what is there, or begin: afterwards `is_done(index)` says what is answered.

        Raises `BadInputError` when what is there belongs to another job, `DamagedFilesError` when a line in
        its middle is broken, `DiskFullError`.
        """
        self.places = array("q", [NOT_YET]) * total  # index -> where its line begins
        self.failed = set()
        if not resume:
            for file in (self.jsonl, self.json, self.record):
                file.unlink(missing_ok=True)
        self._check_record(record)
        try:
            self._stream = os.open(self.jsonl, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            self._raise_unwritable(error)
        self._end = self._read_lines()

    def is_done(self, index):
        return self.places[index] != NOT_YET

    def forget_failed(self):
        """Failed prompts count as not done: they are asked again, and their new lines take the old ones' place."""
        for index in self.failed:
            self.places[index] = NOT_YET
        self.failed = set()

    def add(self, index, text, answer):
        """One line for one prompt: `answer` is a text, or the exception it failed with."""
        line = {"index": index, "Input": text, "Output": answer}
        if isinstance(answer, BaseException):
            line |= {"Output": None, "error": error_text(answer)}
            self.failed.add(index)
        start = self._end
        self._write_line(as_line(line) + b"\n")
        self.places[index] = start

    def finish(self):
        """Write `p.json`, the list of {"Input", "Output"} in the prompts' order: all of it or nothing.

        A prompt that failed has null as its Output; why is in `p.jsonl`.
        """
        part = self.json.with_name(f".{self.json.name}.part")
        try:
            with open(part, "wb") as stream:
                separator = b"[\n"
                for start in self.places:
                    line = json.loads(self._line_at(start))
                    stream.write(separator + as_line({"Input": line["Input"], "Output": line["Output"]}))
                    separator = b",\n"
                stream.write(b"\n]\n" if self.places else b"[]\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.fsync(self._stream)
            os.replace(part, self.json)
        except OSError as error:
            part.unlink(missing_ok=True)
            _raise_if_full(error, self.json)
            raise

    def _raise_unwritable(self, error):
        _raise_if_full(error, self.json.parent)
        file = next((place for place in self.json.parents if place.is_file()), None)
        if file is not None:
            why = f"{file} is a file, and a folder is needed there"
        elif not self.json.parent.is_dir():
            why = f"the folder {self.json.parent} cannot be made"
        else:
            why = error.strerror
        raise BadInputError(f"{self.json} cannot be written: {why}. Choose another place.") from None

    def _check_record(self, record):
        if not self.record.exists():
            found = next((file for file in (self.jsonl, self.json) if file.exists()), None)
            if found:
                raise BadInputError(
                    f"{found} is there already, and nothing says what it answers ({self.record.name} is missing): "
                    "choose another predictions_file, or resume=False to write over it."
                )
            self._write_record(record)
            return
        try:
            before = json.loads(self.record.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = next((name for name in [*record, *before] if before.get(name) != record.get(name)), None)
        if changed is not None:
            what = f"{changed} = {_short(before.get(changed))}, now it is {_short(record.get(changed))}"
            what = "other prompts: the data file has changed" if changed == "prompts_sha256" else what
            raise BadInputError(
                f"{self.jsonl} was begun with {what}. Choose another predictions_file, or begin anew (resume=False, "
                "--no_resume)."
            )

    def _write_record(self, record):
        part = self.record.with_name(f".{self.record.name}.part")
        try:
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.record)
        except OSError as error:
            part.unlink(missing_ok=True)
            _raise_if_full(error, self.record)
            raise

    def _read_lines(self):
        """Fill in what is done; a last line that was cut off is taken away. Returns where the next line begins."""
        end, raw = 0, b"\n"
        with open(self.jsonl, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = json.loads(raw)
                    index, _ = line["index"], (line["Input"], line["Output"])
                    if not 0 <= index < len(self.places):
                        raise ValueError(f"there is no prompt {index}")
                except (ValueError, KeyError, TypeError) as error:
                    if not raw.endswith(b"\n"):
                        raw = b"\n"
                        break
                    raise DamagedFilesError(
                        f"Line {number} of {self.jsonl} is damaged ({error}): take it away, and its prompt is asked "
                        "again; or begin anew (resume=False, --no_resume)."
                    ) from None
                self.places[index] = end
                (self.failed.add if "error" in line else self.failed.discard)(index)
                end += len(raw)
        os.ftruncate(self._stream, end)
        if not raw.endswith(b"\n"):  # all of a line but its end
            self._put(b"\n", end)
            end += 1
        return end

    def _write_line(self, line):
        try:
            self._put(line, self._end)
        except OSError as error:
            os.ftruncate(self._stream, self._end)
            _raise_if_full(error, self.jsonl)
            raise
        self._end += len(line)

    def _put(self, data, at):
        os.lseek(self._stream, at, os.SEEK_SET)
        while data:
            data = data[os.write(self._stream, data) :]

    def _line_at(self, start):
        """The line that begins at a place."""
        os.lseek(self._stream, start, os.SEEK_SET)
        line = b""
        while b"\n" not in line:
            piece = os.read(self._stream, 4096)
            if not piece:
                break
            line += piece
        return line.partition(b"\n")[0]


def as_line(fields):
    """A dict as one line of JSON, UTF-8. Half a character (a lone surrogate) stays as its escape."""
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")


def error_text(error):
    """An exception as one line: its kind and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _raise_if_full(error, place):
    if error.errno in FULL:
        raise DiskFullError(
            f"The disk is full: {place} cannot grow. Nothing that was answered is lost: make room and run the same "
            "again, it goes on from there."
        ) from None


def _short(value):
    return f"{json.dumps(value, ensure_ascii=False):.80}"
