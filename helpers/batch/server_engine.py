"""Any OpenAI-compatible server as the engine: vLLM's, llama.cpp's, one on another machine.

Prompts go to its completions endpoint as token ids, so the model gets exactly what `render_chat` made: no
server applies a template of its own, adds a second begin-of-text, or reads control tokens out of what a
user typed. Temporary failures are retried, and answers that are done before a server dies have been passed on.

A server is somebody else's program. Each attempt has a time limit from its start to its last byte, each reply
has a size limit, and waits of more than a minute are left to the reader. (openai's client sends chats as text by
default, cannot be stopped while it waits, and limits neither time nor size, so `httpx` is used directly.)
"""

import asyncio
import concurrent.futures
import email.utils
import hashlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from helpers import checks
from helpers.batch.engines import GenerationSettings, Prompt, answer_text, prompt_token_ids
from helpers.batch.identity import tokenizer_sha256
from helpers.batch.predictions import say
from helpers.errors import BadInputError, HelpersError, ServerNotReachableError, printable
from helpers.text.stopping import terminator_ids

T = TypeVar("T")
KEY_VARIABLE = "OPENAI_API_KEY"
MOMENTARY = (408, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0  # seconds between two attempts; if a server asks for more, the run ends there
MODELS_WITHIN, MODELS_TRIES = 10.0, 2  # seconds for the list of models, and how often it is requested
LARGEST_REPLY = 2**24  # bytes
QUIET = 10.0  # seconds between two messages about waiting
SAID_AFTER = 1.0  # seconds before a message about a slow list of models
GRACE = 1.0  # seconds for requests that are still running once the server is known to be gone
SHOWN_CHARACTERS = 300  # of a server's own message


class ServerEngine:
    """The engine (see `helpers.batch.engines`) that sends prompts to a server.

    url: the API's base URL, such as "http://127.0.0.1:8000/v1"; a user name and password in it are sent but never
    shown. tokenizer: the model's, since prompts become ids here. model: its name there (the last part of a folder's
    path is enough), None for the only one served. at_once: how many prompts are sent at a time; the server batches
    them. timeout: seconds for one attempt at an answer, from its start to the last byte. tries and pause: how often a
    prompt is sent if the server is busy or cannot be reached, and the seconds before the second attempt, doubled each
    time, unless the server says when to come back. api_key: None uses the environment variable OPENAI_API_KEY, if set.

    top_k and repetition_penalty are not part of OpenAI's API: they are sent when they are in use, and a server
    that does not know them may refuse or ignore them.

    Raises `ServerNotReachableError` if no such server answers, `BadInputError` for a model that it does not
    serve, a key that it does not accept, and arguments that cannot work.
    """

    name = "server"

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        at_once: int = 16,
        timeout: float = 600.0,
        tries: int = 5,
        pause: float = 1.0,
        api_key: str | None = None,
    ) -> None:
        self.url, self._login = _address(url)
        self.at_once = checks.whole_number("at_once", at_once, least=1)
        self.tries = checks.whole_number("tries", tries, least=1)
        self.timeout = checks.number("timeout", timeout, least=0.001)
        self.pause = checks.number("pause", pause, least=0)
        self._key = _checked_key(api_key)
        self._said_at = 0.0
        model = None if model is None else checks.text("model", model, empty=False)
        self.tokenizer, self.terminators = tokenizer, terminator_ids(tokenizer)
        self._card = card = _pick_model(self.url, self._served(), model)
        self.model_name = card["id"]
        longest = card.get("max_model_len")
        self.context = longest if isinstance(longest, int) and longest > 0 else None
        self.is_vllm = card.get("owned_by") == "vllm"

    def identity(self) -> dict[str, str]:
        """A SHA-256 of what the server says about its model's files and sizes, and one of the tokenizer used here."""
        said = json.dumps([self._card.get(name) for name in ("id", "root", "meta")], sort_keys=True)
        return {
            "model_sha256": hashlib.sha256(said.encode()).hexdigest(),
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
        }

    def generate(
        self, prompts: Iterable[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, str | BaseException]]:
        """An iterator of (index, text or exception), as they are done.

        If the server is gone, it first yields what was done and then raises `ServerNotReachableError`.
        """
        prompts, done = iter(prompts), queue.SimpleQueue()
        running, failure = 0, None
        with _Asking(self._client_settings()) as asking:
            while True:
                while running < self.at_once and failure is None and (prompt := next(prompts, None)) is not None:
                    try:
                        body = self._body(self._ids(prompt, settings), settings)
                    except Exception as error:
                        yield prompt.index, error
                        continue
                    asked = asking.start(self._answer(asking.client, body))
                    asked.add_done_callback(partial(_hand_over, done, prompt.index))
                    running += 1
                answered = self._next(done, running, failure) if running else None
                if answered is None:
                    break
                running -= 1
                index, answer = answered
                problem = answer.exception()
                if isinstance(problem, _ConcernsAll):
                    failure = failure or problem.reason
                else:
                    yield index, problem or answer.result()
        if failure:
            raise failure

    def _next(
        self, done: queue.SimpleQueue, running: int, failure: HelpersError | None
    ) -> tuple[int, concurrent.futures.Future[str]] | None:
        """The next answer; None if the server is gone and no more will come. Prints a line if it takes long."""
        began, patience = time.monotonic(), QUIET
        while True:
            try:
                return done.get(timeout=GRACE if failure else patience)
            except queue.Empty:
                if failure:
                    return None
            patience *= 2
            say(
                f"Still waiting for {running} answers from {self.url}: none for {time.monotonic() - began:.0f} s. Each "
                f"attempt may take {self.timeout:g} s. Ctrl-C stops, and nothing that is done is lost."
            )

    def _ids(self, prompt: Prompt, settings: GenerationSettings) -> list[int]:
        if prompt.image is not None:
            raise BadInputError("Pictures are for the transformers engine: omit --server.")
        return prompt_token_ids(self.tokenizer, prompt, context=self.context, max_new_tokens=settings.max_new_tokens)

    def _body(self, ids: list[int], settings: GenerationSettings) -> dict[str, Any]:
        """The request: OpenAI's own fields, and others if they are in use or the server is known to be vLLM."""
        body = {"model": self.model_name, "prompt": ids, "max_tokens": settings.max_new_tokens, "temperature": 0}
        if settings.do_sample:
            body |= {"temperature": settings.temperature, "top_p": settings.top_p}
        if settings.do_sample and (settings.top_k or self.is_vllm):
            body["top_k"] = settings.top_k
        if settings.repetition_penalty != 1 or self.is_vllm:
            body["repetition_penalty"] = settings.repetition_penalty
        if self.is_vllm:  # its defaults come from the model's generation_config: leave nothing to them
            body |= {"stop_token_ids": self.terminators, "return_token_ids": True}
        return body

    async def _answer(self, client: Any, body: dict[str, Any]) -> str:
        reply = await self._ask(client, "/completions", body)
        try:
            choice = reply.json()["choices"][0]
            output_ids, text = choice.get("token_ids"), choice["text"]
            if output_ids:
                return answer_text(self.tokenizer, _as_ids(output_ids, len(self.tokenizer)), self.terminators)
            return text.strip()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _ConcernsAll(_not_openai(f"POST {self.url}/completions", reply)) from None

    def _served(self) -> list[dict[str, Any]]:
        """The cards of the models that the server serves."""
        with _Asking(self._client_settings()) as asking:
            asked = asking.start(self._ask(asking.client, "/models", None))
            if not concurrent.futures.wait([asked], timeout=SAID_AFTER).done:
                say(f"Waiting for {self.url} to say which models it serves, at most {self._limit(None):g} s …")
            try:
                reply = asked.result()
                cards = reply.json()["data"]
                if not all(isinstance(card["id"], str) for card in cards):
                    raise ValueError
            except _ConcernsAll as error:
                raise error.reason from None
            except HelpersError:
                raise
            except (ValueError, LookupError, TypeError, RecursionError):
                raise _not_openai(f"GET {self.url}/models", reply) from None
        return cards

    def _client_settings(self) -> dict[str, Any]:
        """The arguments of `httpx.AsyncClient`. Redirects are not followed: a key must not go elsewhere."""
        import httpx

        headers = {"Accept-Encoding": "identity"}  # a small reply must not unpack into a large one
        if self._key and not self._login:
            headers["Authorization"] = f"Bearer {self._key}"
        return {
            "headers": headers,
            "auth": self._login,
            "timeout": httpx.Timeout(self.timeout, connect=min(self.timeout, 5.0), pool=None),
            "limits": httpx.Limits(max_connections=self.at_once),
            "trust_env": urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy to ourselves
            "follow_redirects": False,
        }

    def _limit(self, body: Any) -> float:
        return self.timeout if body is not None else min(self.timeout, MODELS_WITHIN)

    async def _ask(self, client: Any, path: str, body: dict[str, Any] | None) -> "_Reply":
        """The reply, with status 200. Waits and tries again if that may help."""
        tries = self.tries if body is not None else min(self.tries, MODELS_TRIES)
        for attempt in range(1, tries + 1):
            reply, trouble = await self._try(client, path, body)
            if reply is not None and reply.status == 200:
                return reply
            if reply is not None and (reply.status not in MOMENTARY or attempt == tries):
                raise self._refusal(reply, attempt)
            if attempt == tries:
                raise _ConcernsAll(self._unreachable(trouble, attempt))
            pause = self._pause(attempt, reply)
            trouble = trouble or f"is busy ({reply.status}: {_said(reply)})"
            self._say_now_and_then(
                f"The server at {self.url} {trouble}. Trying again in {pause:.2g} s, attempt {attempt + 1} of {tries}."
            )
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, client: Any, path: str, body: dict[str, Any] | None) -> tuple["_Reply | None", str]:
        """(reply, "") or (None, what went wrong)."""
        import httpx

        limit = self._limit(body)
        try:
            async with asyncio.timeout(limit):
                method = "GET" if body is None else "POST"
                async with client.stream(method, self.url + path, json=body) as reply:
                    content = bytearray()
                    async for piece in reply.aiter_raw():
                        content += piece
                        if len(content) > LARGEST_REPLY:
                            raise _ConcernsAll(
                                ServerNotReachableError(
                                    f"{self.url}{path} sent more than {LARGEST_REPLY // 2**20} MB in one reply, which "
                                    "cannot be an answer. Check that it is the right server."
                                )
                            )
                    return _Reply(reply.status_code, dict(reply.headers), bytes(content), self.url + path), ""
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            return None, f"did not answer within {limit:g} s"
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return None, f"cannot be reached ({_first_line(error)})"
        except httpx.TransportError as error:
            return None, f"broke the connection ({_first_line(error)})"

    def _say_now_and_then(self, text: str) -> None:
        if time.monotonic() - self._said_at > QUIET:
            self._said_at = time.monotonic()
            say(text)

    def _pause(self, attempt: int, reply: "_Reply | None") -> float:
        """Seconds to wait: what the server asks for in Retry-After, or twice as long each time with some jitter."""
        asked = None if reply is None else _retry_after(reply.headers.get("retry-after", ""))
        if asked is not None and asked > LONGEST_PAUSE:
            raise _ConcernsAll(
                ServerNotReachableError(
                    f"The server at {self.url} is busy ({reply.status}: {_said(reply)}) and asks you to come back in "
                    f"{min(asked, 1e9):,.0f} s. What is done is kept: run the same job again then to continue from "
                    "there."
                )
            )
        if asked is None:
            asked = self.pause * 2 ** (attempt - 1) * random.Random().uniform(0.75, 1.25)
        return min(asked, LONGEST_PAUSE)

    def _refusal(self, reply: "_Reply", tries: int) -> Exception:
        """The error for a status other than 200, which concerns this prompt alone or the whole run."""
        status, said = reply.status, _said(reply)
        if status in (401, 403):
            return _ConcernsAll(
                BadInputError(
                    f"The server at {self.url} refuses the key ({status}: {said}). "
                    f"Set {KEY_VARIABLE} to one that it accepts."
                )
            )
        if 300 <= status < 400:
            return _ConcernsAll(
                ServerNotReachableError(
                    f"The server at {self.url} redirects to {_shortened(reply.headers.get('location', 'nowhere'))} "
                    f"({status}), which is not followed: use the server's own address."
                )
            )
        if status in (404, 405):
            return _ConcernsAll(
                ServerNotReachableError(
                    f"The server has no {reply.url} ({status}: {said}). The URL of an OpenAI-compatible "
                    "server usually ends in /v1."
                )
            )
        if status in MOMENTARY and status != 500:
            return _ConcernsAll(
                ServerNotReachableError(
                    f"The server at {self.url} was busy at each of {tries} attempts ({status}: {said}). What is "
                    "done is kept: run the same job again later to continue from there."
                )
            )
        return HelpersError(f"The server refused this prompt ({status}: {said}).")

    def _unreachable(self, trouble: str, attempts: int) -> ServerNotReachableError:
        times = f", {attempts} times" if attempts > 1 else ""
        return ServerNotReachableError(
            f"The server at {self.url} {trouble}{times}. Check that it runs and that the address is right. What is "
            "done is kept: run the same job again to continue from there."
        )


@dataclass(frozen=True)
class _Reply:
    """A complete reply; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def text(self) -> str:
        return self.content[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")


class _Asking:
    """An event loop in a thread of its own, with an `httpx.AsyncClient`: leaving the block cancels all requests that
    are still running, whatever state they are in."""

    def __init__(self, client_settings: dict[str, Any]) -> None:
        self._client_settings = client_settings
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="ServerEngine", daemon=True)

    def __enter__(self) -> "_Asking":
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(timeout=GRACE)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _run(self) -> None:
        import httpx

        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.client = httpx.AsyncClient(**self._client_settings)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:  # a proxy that the environment names
            reason = f"The connection settings of this machine (proxy, certificates) cannot be used: {error}"
            self._ready.set_exception(BadInputError(reason))
            return
        async with self.client:
            self._ready.set_result(None)
            await self._leave.wait()
            asked = asyncio.all_tasks() - {asyncio.current_task()}
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


def _hand_over(done: queue.SimpleQueue, index: int, answer: concurrent.futures.Future[str]) -> None:
    done.put((index, answer))


class _ConcernsAll(Exception):
    """Carries an error that ends the whole run."""

    def __init__(self, reason: HelpersError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _address(url: str) -> tuple[str, tuple[str, str] | None]:
    """(the URL without a trailing slash and without a login, the login); `/v1` is added if it has no path."""
    try:
        parts = urlsplit(url if isinstance(url, str) and url.isprintable() else "")
        server, login = parts.netloc.rpartition("@")[2], None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or " " in url:
            raise ValueError
        if "@" in parts.netloc:
            login = unquote(parts.username or ""), unquote(parts.password or "")
        _ = parts.port  # a ValueError for an invalid port
    except ValueError:
        shown = checks.shown(url if not isinstance(url, str) else url.partition("?")[0].rpartition("@")[2])
        raise BadInputError(f'A server must be a URL such as "http://127.0.0.1:8000/v1", not {shown}.') from None
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{server}{path or '/v1'}", login


def _checked_key(api_key: str | None) -> str | None:
    """The key to send: the one given, or the environment's. No message ever shows it."""
    key = (checks.text("api_key", api_key) if api_key else os.environ.get(KEY_VARIABLE, "")).strip()
    if not key.isascii() or not key.isprintable():
        raise BadInputError(f"The key ({KEY_VARIABLE}) contains characters that no key has: copy it again.")
    return key or None


def _pick_model(url: str, cards: list[dict[str, Any]], model: str | None) -> dict[str, Any]:
    """The card of the requested model, found by its name, or by the last part of a name that is a path."""
    names = ", ".join(card["id"] for card in cards) or "none"
    if model is None:
        if len(cards) == 1:
            return cards[0]
        raise BadInputError(f"The server at {url} serves {len(cards)} models: name one of them ({names}).")
    same = [card for card in cards if card["id"] == model]
    alike = [card for card in cards if PurePosixPath(card["id"]).name == PurePosixPath(model).name]
    if same or len(alike) == 1:
        return (same or alike)[0]
    raise BadInputError(f"The server at {url} does not serve {checks.shown(model)}. It serves: {names}.")


def _as_ids(ids: Any, vocabulary: int) -> list[int]:
    """Token ids that a server sent. Raises ValueError for anything else."""
    if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
        raise ValueError("these are not ids of this vocabulary")
    return ids


def _retry_after(text: str) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or a date; None for anything else."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _said(reply: _Reply) -> str:
    """The message of a server that refuses, on one line."""
    try:
        value = reply.json()
        error = value.get("error", value)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = str(text or value)
    except (ValueError, AttributeError, RecursionError):
        text = reply.text or "nothing"
    return _shortened(text)


def _first_line(error: Exception) -> str:
    return _shortened(str(error) or type(error).__name__)


def _shortened(text: str) -> str:
    line = " ".join(printable(text, 4 * SHOWN_CHARACTERS).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "…"


def _not_openai(what: str, reply: _Reply) -> ServerNotReachableError:
    return ServerNotReachableError(
        f"{what} did not answer like an OpenAI-compatible server, but with {_shortened(reply.text)!r}. Check the URL; "
        "it usually ends in /v1."
    )
