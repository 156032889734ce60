"""The files of a run: `p.jsonl` grows by one line per answer, `p.json` is written when all answers are there.

No answer is lost when a run stops, however it stops: a complete line is handed to the operating system as soon as
there is an answer, and an incomplete line is removed when the run is resumed. `p.run.json` next to them says what the
run was asked to do, so that another job does not continue with its answers.

Nothing that somebody else wrote is lost either: a file is removed or replaced only if it holds nothing but answers
written by this module. A damaged file is set aside under another name.
"""

import errno
import itertools
import json
import os
import stat
import sys
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from helpers import checks
from helpers.errors import BadInputError, DamagedFilesError, DiskFullError, HelpersError, Setting, printable

NOT_YET = -1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_LINE = 2**28  # bytes in a line of p.jsonl
BEGIN_ANEW = Setting("resume", False)
# How each file begins, so that one that was cut off is recognized as well.
LINE_BEGINS, RECORD_BEGINS = b'{"index": ', b'{\n "prompts": '


class Predictions:
    """The files of one run over `total` prompts. `inputs` are files that the run reads, and so must not write.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Predictions(folder / "p.json") as predictions:  # nobody else can write them now
    ...     predictions.open(1, {"prompts": 1, "prompts_sha256": "", "engine": "x", "model": "y"}, resume=True)
    ...     predictions.add(0, "Hello", "Hi!")  # one line in p.jsonl
    ...     predictions.finish()  # p.json
    >>> json.loads((folder / "p.json").read_text())
    [{'Input': 'Hello', 'Output': 'Hi!'}]

    It keeps eight bytes per prompt in memory: the offset of its line. Raises `BadInputError` for a name that cannot be
    written, or that would replace one of the inputs.
    """

    def __init__(
        self, predictions_file: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        self.json = checks.file_path("predictions_file", predictions_file)
        if _kind(self.json) == "folder" and self.json.suffix:
            raise BadInputError(f"{self.json} is a folder, but answers are kept in a file: choose another name.")
        if self.json.suffix.lower() == ".jsonl" or not self.json.name or _kind(self.json) == "folder":
            raise BadInputError(
                f"predictions_file must be the .json file to write at the end, such as p.json, not {self.json}: "
                "the .jsonl file next to it is named after it."
            )
        stem = self.json.stem if self.json.suffix == ".json" else self.json.name
        self.jsonl = self.json.with_name(f"{stem}.jsonl")
        self.record = self.json.with_name(f"{stem}.run.json")
        self._lock_file = self.json.with_name(f".{self.json.name}.lock")
        self._stream: int | None = None
        for file in self._files():
            _check_kind(file)
            _check_inputs(file, self.json, inputs)

    def _files(self) -> tuple[Path, ...]:
        return self.json, self.jsonl, self.record, self._lock_file, _part_of(self.json), _part_of(self.record)

    def __enter__(self) -> "Predictions":
        from filelock import FileLock, Timeout

        try:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            if self._lock_file.exists() and self._lock_file.stat().st_size:
                raise BadInputError(
                    f"{self._lock_file} already exists and is not empty, so it is not a lock of this program: "
                    "choose another predictions_file, or move that file away."
                )
            self._lock = FileLock(self._lock_file, timeout=0)
            self._lock.acquire()
        except Timeout:
            if not os.path.lexists(self._lock_file):  # nothing can be created there, as in /proc
                self._raise_unwritable(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
            raise BadInputError(
                f"Another run is writing {self.jsonl} now. Wait for it, or give this one another predictions_file."
            ) from None
        except OSError as error:
            self._raise_unwritable(error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            os.close(self._stream)
            self._stream = None
        self._lock.release()

    def open(self, total: int, record: Mapping[str, Any], *, resume: bool) -> None:
        """Continue an earlier run, or start a new one: afterwards `is_done(index)` says what is answered.

        `record` is what the run is asked to do: its "prompts", "prompts_sha256", "engine" and "model", and whatever
        else has to be the same when it is resumed. If it has a "model_sha256", the model's name does not count.

        Raises `BadInputError` if existing files belong to another job or to somebody else, `DamagedFilesError` if the
        record or a line in the middle is damaged, and `DiskFullError`.
        """
        self.places = array("q", [NOT_YET]) * total  # index -> where its line begins
        self.failed: set[int] = set()
        try:
            if not resume:
                self._make_room()
            if self.jsonl.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"Is a directory: {self.jsonl.name}")
            self._check_record(dict(record))
            self._stream = os.open(self.jsonl, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._end = self._read_lines()
        except HelpersError:
            raise
        except OSError as error:
            self._raise_unwritable(error)

    def is_done(self, index: int) -> bool:
        """Whether a prompt has an answer, or an error instead of one."""
        return self.places[index] != NOT_YET

    def check_input(self, index: int, text: str) -> None:
        """Check that a kept answer belongs to this prompt. Raises `DamagedFilesError` if its line has another Input."""
        kept = self._line_at(self.places[index])
        if kept["index"] != index or kept["Input"] != text:
            raise DamagedFilesError(
                f"{self.jsonl} was changed by hand: its last line with the index {index} has the Input "
                f"{checks.shown(kept['Input'])}, but that prompt is {checks.shown(text)}. Remove that line, and the "
                "prompt is asked again; or start over (",
                BEGIN_ANEW,
                ").",
            )

    def forget_failed(self) -> None:
        """Count failed prompts as not done: they are asked again, and their new lines replace the old ones."""
        for index in self.failed:
            self.places[index] = NOT_YET
        self.failed = set()

    def add(self, index: int, text: str, answer: str | BaseException) -> None:
        """Write a prompt's line: `answer` is a text, or the exception it failed with. Raises `DiskFullError`."""
        line = {"index": index, "Input": text, "Output": answer}
        if isinstance(answer, BaseException):
            line |= {"Output": None, "error": error_text(answer)}
            self.failed.add(index)
        start = self._end
        self._write_line(as_line(line) + b"\n")
        self.places[index] = start

    def finish(self) -> None:
        """Write `p.json`, the list of {"Input", "Output"} in the prompts' order: all of it or nothing.

        The Output of a prompt that failed is null; the reason is in `p.jsonl`. Raises `DiskFullError`, and
        `DamagedFilesError` if somebody has changed `p.jsonl` in the meantime.
        """
        part = _part_of(self.json)
        try:
            with _new_file(part, _holds_predictions) as stream:
                separator = b"[\n"
                for start in self.places:
                    line = self._line_at(start)
                    stream.write(separator + as_line({"Input": line["Input"], "Output": line["Output"]}))
                    separator = b",\n"
                stream.write(b"\n]\n" if self.places else b"[]\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.fsync(self._stream)
            if os.path.lexists(self.json) and not _is_earlier(self.json, part):
                _set_aside(self.json)
            os.replace(part, self.json)
        except OSError as error:
            part.unlink(missing_ok=True)
            self._raise_unwritable(error)

    def _raise_unwritable(self, error: OSError) -> None:
        if isinstance(error, HelpersError):
            raise error
        if error.errno in FULL:
            raise DiskFullError(
                f"The disk is full: {self.json.parent / self.jsonl.name} cannot grow. No answer is lost: free some "
                "space and run the same job again to continue from there."
            ) from None
        file = next((place for place in self.json.parents if os.path.isfile(place)), None)
        if file is not None:
            why = f"{file} is a file, but a folder is needed there"
        elif not os.path.isdir(self.json.parent):
            why = f"the folder {self.json.parent} cannot be created"
        else:
            why = error.strerror or str(error)
        raise BadInputError(f"{self.json} cannot be written: {why}. Choose another folder.") from None

    def _make_room(self) -> None:
        """Before a run starts over: remove what this program wrote and set damaged files aside. If there are files of
        somebody else, raise `BadInputError` and change nothing."""
        is_ours = {self.record: _is_record, self.jsonl: self._is_journal, self.json: _holds_predictions}
        found = [file for file in is_ours if os.path.lexists(file)]
        foreign = [file for file in found if not is_ours[file](file)]
        if foreign and self.record not in found:
            raise _belongs_to_somebody(foreign[0])
        for file in foreign:
            _set_aside(file)
        for file in found:
            if file not in foreign:
                file.unlink(missing_ok=True)

    def _is_journal(self, file: Path) -> bool:
        """Whether a file is an undamaged `p.jsonl`, with as many prompts as the record says, if there is one."""
        total = _read_record(self.record)["prompts"] if _is_record(self.record) else None
        return _holds_lines(file, total)

    def _check_record(self, record: dict[str, Any]) -> None:
        if not os.path.lexists(self.record):
            for file, is_ours in ((self.jsonl, _holds_lines), (self.json, _holds_predictions)):
                if os.path.lexists(file) and not is_ours(file):
                    raise _belongs_to_somebody(file)
                if os.path.lexists(file):
                    raise BadInputError(
                        f"{file} already exists, and nothing says what it answers ({self.record.name} is missing): "
                        "choose another predictions_file, or use ",
                        BEGIN_ANEW,
                        " to overwrite it.",
                    )
            self._write_record(record)
            return
        try:
            before = _read_record(self.record)
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedFilesError(
                f"{self.record}, which says what {self.jsonl.name} answers, is damaged ({_reason(error)}). Choose "
                "another predictions_file, or start over (",
                BEGIN_ANEW,
                "), which sets it aside.",
            ) from None
        changed = next((name for name in [*record, *before] if _changed(name, before, record)), None)
        if changed is not None:
            raise BadInputError(
                f"{self.jsonl} was started with {_what_changed(changed, before, record)}. Choose another "
                "predictions_file, or start again (",
                BEGIN_ANEW,
                ").",
            )

    def _write_record(self, record: Mapping[str, Any]) -> None:
        part = _part_of(self.record)
        try:
            with _new_file(part, lambda file: _begins_as(file, RECORD_BEGINS)) as stream:
                stream.write(json.dumps(record, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))
                stream.write(b"\n")
            os.replace(part, self.record)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _read_lines(self) -> int:
        """Read which prompts are done, and remove a last line that was cut off. Returns the next line's offset."""
        end, complete = 0, True
        with open(self.jsonl, "rb") as stream:
            for number, raw in enumerate(_lines(stream), start=1):
                complete = raw.endswith(b"\n")
                try:
                    line = _read_line(raw, len(self.places))
                except (ValueError, RecursionError) as error:
                    if not complete and len(raw) < LONGEST_LINE:
                        self._take_away(raw)
                        complete = True
                        break
                    raise DamagedFilesError(
                        f"Line {number} of {self.jsonl} is damaged ({_reason(error)}): remove it, and its prompt is "
                        "asked again; or start over (",
                        BEGIN_ANEW,
                        "), which sets the file aside.",
                    ) from None
                self.places[line["index"]] = end
                (self.failed.add if "error" in line else self.failed.discard)(line["index"])
                end += len(raw)
        os.ftruncate(self._stream, end)
        if not complete:  # a complete line that lacks only its line end
            self._put(b"\n", end)
            end += 1
        return end

    def _take_away(self, tail: bytes) -> None:
        """Drop the end of the file, which is not a complete line. If this module did not write it, keep a copy."""
        begins_as_ours = LINE_BEGINS.startswith(tail[: len(LINE_BEGINS)])
        if (begins_as_ours and b"\r" not in tail) or not tail.strip(b"\0"):  # with \r, lines that an editor joined
            return
        kept = _free_name(self.jsonl)
        with open(kept, "xb") as stream:
            stream.write(tail)
        say(f"The end of {self.jsonl} is not an answer: it is set aside as {kept.name}, and its prompt is asked again.")

    def _write_line(self, line: bytes) -> None:
        try:
            self._put(line, self._end)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._stream, self._end)
            self._raise_unwritable(error)
        self._end += len(line)

    def _put(self, data: bytes, at: int) -> None:
        os.lseek(self._stream, at, os.SEEK_SET)
        while data:
            data = data[os.write(self._stream, data) :]

    def _line_at(self, start: int) -> dict[str, Any]:
        """The line that begins at an offset."""
        os.lseek(self._stream, max(start, 0), os.SEEK_SET)
        line = b""
        while b"\n" not in line and (piece := os.read(self._stream, 4096)):
            line += piece
        try:
            return _read_line(line.partition(b"\n")[0], len(self.places))
        except (ValueError, RecursionError) as error:
            raise DamagedFilesError(
                f"{self.jsonl} was changed by somebody else during the run ({_reason(error)}): "
                f"{self.json.name} is not written. Run the same job again to see which line it is."
            ) from None


def say(text: str) -> None:
    """Print one line on stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(printable(text), file=sys.stderr)


def as_line(fields: Mapping[str, Any]) -> bytes:
    """A dict as one line of JSON in UTF-8. Half a character (a lone surrogate) is written as an escape.

    >>> as_line({"Input": "你好"}).decode()
    '{"Input": "你好"}'
    """
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")


def error_text(error: BaseException) -> str:
    """An exception as one line that is safe to show: its class and its message.

    >>> error_text(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths may name the same file: links and `..` are followed, and case is ignored, as some systems do.

    >>> is_same_file("data/../p.txt", "P.txt")
    True
    """
    with suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
    with suppress(OSError, ValueError):
        return _plain_name(one) == _plain_name(other)
    return False


def _plain_name(path: str | os.PathLike[str]) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


def _check_inputs(file: Path, asked: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    if any(is_same_file(file, read) for read in inputs):
        whose = "" if file == asked else f", which belongs to {asked},"
        raise BadInputError(
            f"{file}{whose} is the file that the prompts are read from, and answers never overwrite prompts: "
            "choose another predictions_file."
        )


def _kind(file: Path) -> str | None:
    """What a name itself is: "link", "folder", "file", "device" for anything else, None if nothing is there."""
    try:
        mode = file.lstat().st_mode
    except (OSError, ValueError):
        return None
    kinds = {"link": stat.S_ISLNK, "folder": stat.S_ISDIR, "file": stat.S_ISREG}
    return next((kind for kind, holds in kinds.items() if holds(mode)), "device")


def _check_kind(file: Path) -> None:
    """Raise `BadInputError` for a link, which points to a file elsewhere, and for a device, a pipe or a socket."""
    kind = _kind(file)
    if kind == "link":
        raise BadInputError(f"{file} is a link to {os.readlink(file)}: give the file's own name as predictions_file.")
    if kind == "device":
        raise BadInputError(
            f"{file} is a device or a pipe, but answers are kept in a file: choose another predictions_file, such as "
            "p.json."
        )


def _belongs_to_somebody(file: Path) -> BadInputError:
    return BadInputError(
        f"{file} already exists, and nothing says what it answers: this program did not write it. Choose another "
        "predictions_file, or move that file away."
    )


def _part_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _new_file(file: Path, is_ours: Any) -> BinaryIO:
    """A new file to write. If a killed run left one of that name, it is removed; anything else is set aside."""
    if os.path.lexists(file):
        if is_ours(file):
            file.unlink()
        else:
            _set_aside(file)
    return open(file, "xb")


def _set_aside(file: Path) -> None:
    kept = _free_name(file)
    os.rename(file, kept)
    say(f"{file} is set aside as {kept.name}: it is damaged, or this program did not write it.")


def _free_name(file: Path) -> Path:
    names = (file.with_name(f"{file.name}.old{number or ''}") for number in range(10_000))
    return next(name for name in names if not os.path.lexists(name))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file with their line ends; one longer than `LONGEST_LINE` comes in pieces."""
    while raw := stream.readline(LONGEST_LINE):
        yield raw


def _read_line(raw: bytes, total: int | None = None) -> dict[str, Any]:
    """A line of `p.jsonl` as a dict; `ValueError` or `RecursionError` says what is wrong with it."""
    line = json.loads(raw.decode("utf-8-sig"))  # given bytes, json.loads would also take UTF-16
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    missing = next((name for name in ("index", "Input", "Output") if name not in line), None)
    if missing is not None:
        raise ValueError(f"it has no {missing!r}")
    index = line["index"]
    if isinstance(index, bool) or not isinstance(index, int) or index < 0 or (total is not None and index >= total):
        raise ValueError(f"there is no prompt {checks.shown(index)}")
    texts = isinstance(line["Input"], str) and isinstance(line["Output"], str | None)
    if not texts or not isinstance(line.get("error", ""), str) or (line["Output"] is None) != ("error" in line):
        raise ValueError("its Input, Output or error is not a string")
    return line


def _read_record(file: Path) -> dict[str, Any]:
    """The content of `p.run.json`. Raises OSError, ValueError or RecursionError if this module did not write it."""
    if file.stat().st_size > LONGEST_LINE:
        raise ValueError("it is too large")
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    if not isinstance(record.get("prompts"), int) or not isinstance(record.get("prompts_sha256"), str):
        raise ValueError("it does not say which prompts")
    return record


def _is_record(file: Path) -> bool:
    try:
        return bool(_read_record(file))
    except (OSError, ValueError, RecursionError):
        return False


def _holds_lines(file: Path, total: int | None = None) -> bool:
    """Whether all lines of a file are answers in the form of `p.jsonl`; the last one may be cut off."""
    try:
        with open(file, "rb") as stream:
            for raw in _lines(stream):
                if raw.endswith(b"\n"):
                    if set(_read_line(raw, total)) - {"index", "Input", "Output", "error"}:
                        return False
                elif raw.strip(b"\0") and raw[: len(LINE_BEGINS)] != LINE_BEGINS[: len(raw)]:
                    return False
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _holds_predictions(file: Path) -> bool:
    """Whether a file is a `p.json` as `finish` writes it, or the beginning of one, with one line per answer."""
    try:
        with open(file, "rb") as stream:
            begun = stream.readline(LONGEST_LINE)
            if begun != b"[\n":
                return begun.strip() in (b"", b"[", b"[]") and not stream.read(1)
            for raw in _lines(stream):
                if raw == b"]\n":
                    return not stream.read(1)
                if raw.endswith(b"\n") and not _is_prediction(raw.removesuffix(b"\n").removesuffix(b",")):
                    return False
                if not raw.endswith(b"\n") and not raw.startswith(b'{"Input": '[: len(raw)]):
                    return False
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _is_prediction(raw: bytes) -> bool:
    item = json.loads(raw)
    return isinstance(item, dict) and set(item) == {"Input", "Output"}


def _is_earlier(old: Path, new: Path) -> bool:
    """Whether the old `p.json` has no answer that the new one lacks: wherever they differ, it has null."""
    try:
        with open(old, "rb") as olds, open(new, "rb") as news:
            for was, now in itertools.zip_longest(_lines(olds), _lines(news), fillvalue=b""):
                if was.rstrip(b",\n") != now.rstrip(b",\n") and json.loads(was.rstrip(b",\n"))["Output"] is not None:
                    return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _begins_as(file: Path, begin: bytes) -> bool:
    with suppress(OSError), open(file, "rb") as stream:
        raw = stream.read(len(begin))
        return begin.startswith(raw)
    return False


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _changed(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two records disagree. If a model's SHA-256 is known, that counts, and not its name."""
    if name == "model" and "model_sha256" in now:
        return False
    return before.get(name) != now.get(name)


def _what_changed(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "prompts_sha256":
        return "other prompts: the data file has changed"
    if name == "model_sha256":
        was = "which one it was is not recorded" if name not in before else f"it was {_short(before.get('model'))}"
        return f"another model or other weights ({was}, but now it is {_short(now.get('model'))})"
    if name == "tokenizer_sha256":
        return "another tokenizer or chat template"
    return f"{name} = {_short(before.get(name))}, but now it is {_short(now.get(name))}"


def _short(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.80}"
