"""Any OpenAI-compatible server as the engine: vLLM's, llama.cpp's, one on another machine.

Prompts go to its completions endpoint as token ids, so what `render_chat` made is what the model gets: no
server applies a template of its own, adds a second beginning-of-text, or reads control tokens out of what a
user typed. What fails for a moment is tried again; what is done when a server dies has been handed on.
"""

import email.utils
import os
import queue
import random
import threading
import time
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from helpers.batch.engines import answer_text, prompt_token_ids
from helpers.errors import BadInputError, HelpersError, ServerNotReachableError
from helpers.text.stopping import terminator_ids

KEY_VARIABLE = "OPENAI_API_KEY"
MOMENTARY = (408, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0  # seconds, also when a server asks for more


class ServerEngine:
    """The engine (see `helpers.batch.engines`) that asks a server.

    url: where the API begins, such as "http://127.0.0.1:8000/v1". tokenizer: the model's, since prompts become
    ids here. model: its name there (a folder's last part is enough), None for the only one served. at_once: how
    many prompts are asked at a time; the server batches them. timeout: seconds to wait for one answer. tries and
    pause: how often a prompt is asked when the server is busy or cannot be reached, and the seconds before
    the second time, doubled each time, unless the server says when to come back. api_key: None takes the
    environment variable OPENAI_API_KEY, if there is one.

    top_k and repetition_penalty are no part of OpenAI's API: they are sent when they are in use, and a server
    that does not know them may refuse or ignore them.

    Raises `ServerNotReachableError` when no such server answers, `BadInputError` for a model that it does not
    serve, a key that it does not take, and settings that cannot work.
    """

    name = "server"

    def __init__(self, url, tokenizer, *, model=None, at_once=16, timeout=600.0, tries=6, pause=1.0, api_key=None):
        import httpx

        if at_once < 1 or tries < 1 or timeout <= 0 or pause < 0:
            raise BadInputError(
                f"at_once and tries are at least 1, timeout is above 0 and pause at least 0 seconds, not "
                f"{at_once}, {tries}, {timeout} and {pause}."
            )
        self.url = _api_url(url)
        self.tokenizer, self.terminators = tokenizer, terminator_ids(tokenizer)
        self.at_once, self.timeout, self.tries, self.pause = at_once, timeout, tries, pause
        key = api_key or os.environ.get(KEY_VARIABLE)
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)),
            limits=httpx.Limits(max_connections=at_once),
            trust_env=urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy to ourselves
        )
        card = _pick_model(self.url, self._served(), model)
        self.model_name = card["id"]
        self.context = card.get("max_model_len")
        self.is_vllm = card.get("owned_by") == "vllm"

    def generate(self, prompts, settings):
        """An iterator of (index, text or exception), as they are done.

        When the server is gone, those that were done come first, then `ServerNotReachableError`.
        """
        prompts, waiting, done = iter(prompts), queue.SimpleQueue(), queue.SimpleQueue()
        stopped = threading.Event()
        for _ in range(self.at_once):
            # Daemons: an interrupted run does not wait for answers that nobody will read.
            threading.Thread(target=self._work, args=(waiting, done, settings, stopped), daemon=True).start()
        running, failure = 0, None
        try:
            while True:
                while running < self.at_once and not stopped.is_set():
                    prompt = next(prompts, None)
                    if prompt is None:
                        break
                    waiting.put(prompt)
                    running += 1
                if not running:
                    break
                index, answer, concerns_all = done.get()
                running -= 1
                if concerns_all:
                    failure = failure or answer
                    stopped.set()
                else:
                    yield index, answer
        finally:
            stopped.set()
            for _ in range(self.at_once):
                waiting.put(None)
        if failure:
            raise failure

    def _work(self, waiting, done, settings, stopped):
        """A thread: take a prompt, put (index, answer, whether it concerns the whole run)."""
        while (prompt := waiting.get()) is not None:
            try:
                done.put((prompt.index, self._answer(prompt, settings, stopped), False))
            except _ConcernsAll as error:
                done.put((prompt.index, error.reason, True))
            except Exception as error:
                done.put((prompt.index, error, False))

    def _answer(self, prompt, settings, stopped):
        if prompt.image is not None:
            raise BadInputError("Pictures are for the transformers engine: leave --server away.")
        ids = prompt_token_ids(self.tokenizer, prompt, context=self.context, max_new_tokens=settings.max_new_tokens)
        reply = self._post("/completions", self._body(ids, settings), stopped)
        try:
            choice = reply.json()["choices"][0]
            output_ids, text = choice.get("token_ids"), choice["text"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _ConcernsAll(_not_openai(f"POST {self.url}/completions", reply)) from None
        return answer_text(self.tokenizer, output_ids, self.terminators) if output_ids else text.strip()

    def _body(self, ids, settings):
        """The request: OpenAI's own fields, others when they are in use or when the server is known to be vLLM."""
        body = {"model": self.model_name, "prompt": ids, "max_tokens": settings.max_new_tokens, "temperature": 0}
        if settings.do_sample:
            body |= {"temperature": settings.temperature, "top_p": settings.top_p}
        if settings.do_sample and (settings.top_k or self.is_vllm):
            body["top_k"] = settings.top_k
        if settings.repetition_penalty != 1 or self.is_vllm:
            body["repetition_penalty"] = settings.repetition_penalty
        if self.is_vllm:  # the server's defaults are those of a model's generation_config: leave none to it
            body |= {"stop_token_ids": self.terminators, "return_token_ids": True}
        return body

    def _served(self):
        """The cards of the models that the server has."""
        try:
            reply = self._post("/models", None, threading.Event())
            cards = reply.json()["data"]
            if not all(isinstance(card["id"], str) for card in cards):
                raise ValueError
        except _ConcernsAll as error:
            raise error.reason from None
        except (ValueError, LookupError, TypeError):
            raise _not_openai(f"GET {self.url}/models", reply) from None
        return cards

    def _post(self, path, body, stopped):
        """The reply, with status 200. Waits and asks again where that may help."""
        import httpx

        for attempt in range(1, self.tries + 1):
            last = attempt == self.tries or (body is None and attempt == 2)
            reply = None
            try:
                if body is None:
                    reply = self.client.get(self.url + path, timeout=min(self.timeout, 10.0))
                else:
                    reply = self.client.post(self.url + path, json=body)
                if reply.status_code == 200:
                    return reply
                if reply.status_code not in MOMENTARY or last:
                    raise self._refusal(reply)
            except httpx.TransportError as error:
                if last or isinstance(error, httpx.UnsupportedProtocol):
                    raise _ConcernsAll(self._unreachable(error, attempt)) from None
            if stopped.wait(_pause(self.pause, attempt, reply)):
                raise _ConcernsAll(ServerNotReachableError("The run was stopped."))
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, reply):
        """What a status other than 200 means: for this prompt alone, or for all."""
        status, said = reply.status_code, _said(reply)
        if status in (401, 403):
            return _ConcernsAll(
                BadInputError(
                    f"The server at {self.url} refuses the key ({status}: {said}). "
                    f"Set {KEY_VARIABLE} to one that it takes."
                )
            )
        if status in (404, 405):
            return _ConcernsAll(
                ServerNotReachableError(
                    f"The server has no {reply.request.url} ({status}: {said}). The URL of an OpenAI-compatible "
                    "server usually ends in /v1."
                )
            )
        if status in MOMENTARY and status != 500:
            return _ConcernsAll(
                ServerNotReachableError(
                    f"The server at {self.url} has been busy for {self.tries} tries ({status}: {said}). What is "
                    "done is kept: run the same again later, it goes on from there."
                )
            )
        return HelpersError(f"The server refused this prompt ({status}: {said}).")

    def _unreachable(self, error, attempts):
        import httpx

        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            what = f"did not answer within {self.timeout:g} s"
        elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            what = f"cannot be reached ({_first_line(error)})"
        else:
            what = f"broke off ({_first_line(error)})"
        times = f", {attempts} times" if attempts > 1 else ""
        return ServerNotReachableError(
            f"The server at {self.url} {what}{times}. See that it runs and that the address is right; what is done "
            "is kept, and the same command goes on from there."
        )


class _ConcernsAll(Exception):
    """Carries an error that ends the whole run out of a thread."""

    def __init__(self, reason):
        super().__init__(str(reason))
        self.reason = reason


def _api_url(url):
    """The URL without a slash at its end; `/v1` is added where it has no path."""
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInputError(f'A server is a URL such as "http://127.0.0.1:8000/v1", not {url!r}.')
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _pick_model(url, cards, model):
    """The card of the model asked for: by its name, or by the last part of a name that is a path."""
    names = ", ".join(card["id"] for card in cards) or "none"
    if model is None:
        if len(cards) == 1:
            return cards[0]
        raise BadInputError(f"The server at {url} serves {len(cards)} models: say which one ({names}).")
    same = [card for card in cards if card["id"] == model]
    alike = [card for card in cards if PurePosixPath(card["id"]).name == PurePosixPath(model).name]
    if same or len(alike) == 1:
        return (same or alike)[0]
    raise BadInputError(f"The server at {url} does not serve {model!r}. It serves: {names}.")


def _pause(first, attempt, reply):
    """Seconds to wait: what the server asks for in Retry-After, or twice as long each time, a little scattered."""
    asked = None if reply is None else _retry_after(reply.headers.get("Retry-After", ""))
    if asked is None:
        asked = first * 2 ** (attempt - 1) * random.Random().uniform(0.75, 1.25)
    return min(asked, LONGEST_PAUSE)


def _retry_after(text):
    """Seconds that a Retry-After header asks for: a number, or a date; None for neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _said(reply):
    """What a refusing server says, in one line."""
    try:
        value = reply.json()
        error = value.get("error", value)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        text = str(text or value)
    except (ValueError, AttributeError):
        text = reply.text or reply.reason_phrase
    return _shortened(text)


def _first_line(error):
    return _shortened(str(error) or type(error).__name__)


def _shortened(text):
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:300] + "…"


def _not_openai(what, reply):
    return ServerNotReachableError(
        f"{what} gave no answer of an OpenAI-compatible server, but: {_shortened(reply.text)!r}. Check the URL; it "
        "usually ends in /v1."
    )
