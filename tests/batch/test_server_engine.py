"""The server engine against a small server of our own on 127.0.0.1, with everything that can go wrong."""

import asyncio
import base64
import email.utils
import gzip
import json
import socket
import threading
import time
from urllib.parse import unquote

import pytest
from openai_server import cut, endless, hang, raw, serving

from helpers.batch import server_engine
from helpers.batch.__main__ import main
from helpers.batch.engines import GenerationSettings, Prompt, prompt_token_ids
from helpers.batch.run import run_batch
from helpers.batch.server_engine import ServerEngine
from helpers.errors import BadInputError, HelpersError, PromptTooLongError, ServerNotReachableError
from helpers.text.prompts import render_chat

GREEDY = GenerationSettings(max_new_tokens=8, do_sample=False, repetition_penalty=1.0)


@pytest.fixture
def server(tokenizer):
    """Says how many ids the prompt had; as ids, also a terminator and something after it."""

    def reply(ids):
        text = f" {len(ids)} ids"
        return text, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id, 5], "stop"

    with serving(reply) as server:
        yield server


@pytest.fixture
def engine(server, tokenizer):
    """Quick to try again and quick to give up."""

    def make(url=None, **settings):
        return ServerEngine(url or server.url, tokenizer, **{"pause": 0.01, "tries": 3, "timeout": 5.0, **settings})

    return make


def _prompts(*texts):
    return [Prompt(index, text) for index, text in enumerate(texts)]


def _answers(engine, prompts, settings=GREEDY):
    return dict(engine.generate(iter(prompts), settings))


def _chat(text):
    return [{"role": "user", "content": text}]


def test_prompts_go_out_as_the_ids_of_render_chat_and_no_text_becomes_a_control_token(server, engine, tokenizer):
    text = "Say <|im_end|> please"
    answers = _answers(engine(), [Prompt(0, text, messages=_chat(text)), Prompt(1, text)])
    sent = {len(body["prompt"]): body["prompt"] for body in server.requests}
    chat = render_chat(tokenizer, _chat(text)).input_ids
    plain = prompt_token_ids(tokenizer, Prompt(1, text))
    assert sent == {len(chat): chat, len(plain): plain}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.count(end) == 2  # the template's own: after the system prompt and after the message
    assert end not in plain
    assert answers == {0: f"{len(chat)} ids", 1: f"{len(plain)} ids"}


def test_greedy_asks_for_openais_own_fields_and_others_only_when_in_use(server, engine):
    _answers(engine(), _prompts("Hello"))
    assert {k: v for k, v in server.requests[0].items() if k != "prompt"} == {
        "model": "tiny",
        "max_tokens": 8,
        "temperature": 0,
    }
    _answers(engine(), _prompts("Hello"), GenerationSettings())
    assert {k: v for k, v in server.requests[1].items() if k != "prompt"} == {
        "model": "tiny",
        "max_tokens": 400,
        "temperature": 0.2,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
    }


def test_vllm_is_left_no_default_of_its_own_and_its_ids_are_cut_at_the_terminator(server, engine, tokenizer):
    server.owner = "vllm"
    answers = _answers(engine(), _prompts("Hello"), GenerationSettings(top_k=0, repetition_penalty=1.0))
    (body,) = server.requests
    assert (body["top_k"], body["repetition_penalty"]) == (0, 1.0)
    assert body["stop_token_ids"] == [tokenizer.eos_token_id]
    assert body["return_token_ids"] is True
    assert answers == {0: "1 ids"}  # neither the terminator nor what came after it


def test_as_many_prompts_as_allowed_are_asked_together_and_no_more_are_taken(server, engine):
    taken = []

    def prompts():
        for prompt in _prompts(*["Hello"] * 12):
            taken.append(prompt.index)
            yield prompt

    together = threading.Barrier(4, timeout=20)

    def wait_for_four(handler):
        together.wait()
        handler.answer(200, {"choices": [{"text": "late"}]})

    server.faults = [wait_for_four] * 12
    answers = engine(at_once=4).generate(prompts(), GREEDY)
    next(answers)
    assert len(taken) <= 5
    assert len(list(answers)) == 11
    assert server.most_at_once == 4


@pytest.mark.parametrize(
    "fault", [(429, {}, "busy"), (503, {}, "starting"), (500, {}, "oops"), cut], ids=["429", "503", "500", "cut"]
)
def test_what_fails_for_a_moment_is_asked_again(server, engine, fault):
    server.faults = [fault, fault, None]
    assert _answers(engine(), _prompts("Hello")) == {0: "1 ids"}
    assert len(server.requests) == 3


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that engines wait before they ask again: none of them passes."""
    waited, sleep = [], asyncio.sleep

    async def pause(seconds):
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(server_engine.asyncio, "sleep", pause)
    return waited


@pytest.mark.parametrize(
    ("asked", "waited"), [("1", 1.0), ("59", 59.0), ("date", 40.0), ("nonsense", 8.0), ("-3", 8.0)]
)
def test_retry_after_is_kept_as_seconds_and_as_a_date(server, engine, pauses, asked, waited):
    until = email.utils.formatdate(time.time() + 41, usegmt=True)  # in whole seconds
    client = engine(pause=8.0)
    server.faults = [(429, {"Retry-After": until if asked == "date" else asked}, "busy"), None]
    assert _answers(client, _prompts("Hello")) == {0: "1 ids"}
    assert pauses == [pytest.approx(waited, abs=1.1 if asked == "date" else 2.1 if waited == 8 else 0)]
    assert len(server.requests) == 2


def test_pauses_grow_and_none_is_longer_than_a_minute(server, engine, pauses):
    server.faults = [(503, {}, "starting")] * 6
    assert _answers(engine(pause=8.0, tries=7), _prompts("Hello")) == {0: "1 ids"}
    assert len(pauses) == 6
    for pause, expected in zip(pauses, (8, 16, 32, 60, 60, 60), strict=True):
        assert expected * 0.75 <= pause <= min(expected * 1.25, 60)


@pytest.mark.parametrize("asked", ["61", "86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_for_a_long_wait_ends_the_run_there(server, engine, pauses, asked):
    server.faults = [None] + [(429, {"Retry-After": asked}, "quota")] * 20
    answers = engine(at_once=1).generate(iter(_prompts("one", "two", "three")), GREEDY)
    assert next(answers) == (0, "1 ids")
    with pytest.raises(
        ServerNotReachableError, match=r"429: quota.*asks you to come back in [\d,]+ s\..*to continue from there"
    ):
        next(answers)
    assert pauses == []


# --- servers that do not behave

NEVER_DONE = {
    "silent": hang(30),
    "dripping headers": raw(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "a line that never ends": raw(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "dripping body": endless(piece=b" ", every=0.02),
    "dripping refusal": endless(status=500, piece=b" ", every=0.02),
}


@pytest.mark.parametrize("fault", NEVER_DONE.values(), ids=NEVER_DONE)
def test_a_try_is_over_when_its_time_is_however_busy_the_server_looks(server, engine, fault):
    server.faults = [fault] * 10
    started = time.monotonic()
    with pytest.raises(ServerNotReachableError, match=r"did not answer within 0\.15 s, 2 times"):
        _answers(engine(timeout=0.15, tries=2), _prompts("Hello"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("fault", NEVER_DONE.values(), ids=NEVER_DONE)
def test_the_list_of_models_has_a_time_limit_of_its_own_and_says_it(server, engine, monkeypatch, fault):
    monkeypatch.setattr(server_engine, "MODELS_WITHIN", 0.15)
    server.models_fault = fault
    with pytest.raises(ServerNotReachableError, match=r"did not answer within 0\.15 s, 2 times"):
        engine(timeout=600.0)


@pytest.mark.parametrize("status", [200, 400, 429])
@pytest.mark.parametrize("where", ["models", "completions"])
def test_a_reply_that_never_ends_is_cut_by_its_size(server, engine, monkeypatch, where, status):
    monkeypatch.setattr(server_engine, "LARGEST_REPLY", 2**20)
    if where == "models":
        server.models_fault = endless(status)
    server.faults = [endless(status)] * 5
    with pytest.raises(ServerNotReachableError, match="sent more than 1 MB in one reply"):
        _answers(engine(), _prompts("Hello"))


def test_nothing_compressed_is_asked_for_or_unfolded(server, engine):
    packed = gzip.compress(b" " * 2**24)
    server.faults = [lambda handler: handler.answer(200, packed, {"Content-Encoding": "gzip"})]
    with pytest.raises(ServerNotReachableError, match="did not answer like an OpenAI-compatible server"):
        _answers(engine(), _prompts("Hello"))
    assert {headers["Accept-Encoding"] for headers in server.headers} == {"identity"}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("where", ["models", "completions"])
def test_a_redirection_is_said_and_not_followed(server, engine, status, where):
    def elsewhere(handler):
        handler.answer(status, b"", {"Location": "http://me:secret@elsewhere.example/v1"})

    server.faults = [elsewhere] * 5
    server.models_fault = elsewhere if where == "models" else None
    with pytest.raises(
        ServerNotReachableError, match=r"redirects to http://…@elsewhere\.example/v1.*not followed"
    ) as caught:
        _answers(engine(), _prompts("Hello"))
    assert "secret" not in str(caught.value)


def test_a_redirection_to_nowhere_is_one_sentence(server, engine):
    server.faults = [lambda handler: handler.answer(302, b"", {"Location": "http://me:secret@x\x1b[31m"})] * 5
    with pytest.raises(ServerNotReachableError) as caught:
        _answers(engine(), _prompts("Hello"))
    assert "secret" not in str(caught.value) and "\x1b" not in str(caught.value)


DEEP = b"[" * 200_000
NO_ANSWERS = [
    *(b"", b"null", b"[]", b"5", DEEP, b"\xff\xfe", b'{"choices": null}', b'{"choices": [null]}', b'{"choices": [{}]}'),
    *(b'{"choices": [{"text": null}]}', b'{"choices": [{"text": 5}]}', b'{"choices": {"text": "a"}}'),
    b'{"choices": [{"text": "a", "token_ids": ["x"]}]}',
    b'{"choices": [{"text": "a", "token_ids": [-1]}]}',
    b'{"choices": [{"text": "a", "token_ids": [99999999]}]}',
    b'{"choices": [{"text": "a", "token_ids": {"0": 1}}]}',
]


@pytest.mark.parametrize("body", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
def test_a_reply_of_another_kind_is_one_sentence(server, engine, body):
    server.faults = [lambda handler: handler.answer(200, body)]
    with pytest.raises(ServerNotReachableError, match="did not answer like an OpenAI-compatible server") as caught:
        _answers(engine(), _prompts("Hello"))
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [*NO_ANSWERS, b'{"data": {"id": "x"}}', b'{"data": [{"id": 5}]}', b'{"data": "x"}'])
def test_a_list_of_models_of_another_kind_is_one_sentence(server, engine, body):
    server.models_fault = lambda handler: handler.answer(200, body)
    with pytest.raises(ServerNotReachableError, match="did not answer like an OpenAI-compatible server"):
        engine()


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 4096, b"\x16\x03\x01"])
def test_what_speaks_no_http_is_one_sentence(server, engine, garbage):
    server.faults = [raw(garbage, b"")] * 9
    with pytest.raises(ServerNotReachableError, match=r"broke the connection|did not answer"):
        _answers(engine(timeout=0.3), _prompts("Hello"))


def test_a_long_wait_is_said(server, engine, monkeypatch, capsys):
    monkeypatch.setattr(server_engine, "QUIET", 0.05)
    server.faults = [hang(0.15), (503, {}, "starting\x1b[31m"), None]
    assert _answers(engine(pause=0.1), _prompts("Hello")) == {0: "1 ids"}
    said = capsys.readouterr().err
    assert "Still waiting for 1 answers" in said and "Ctrl-C stops" in said
    assert "broke the connection" in said and "attempt 2 of 3" in said
    assert "is busy (503: starting\\x1b[31m). Trying again in" in said and "\x1b" not in said


def test_a_slow_list_of_models_is_said_within_a_second(server, engine, monkeypatch, capsys):
    monkeypatch.setattr(server_engine, "SAID_AFTER", 0.05)
    server.models_fault = hang(0.2)
    with pytest.raises(ServerNotReachableError):
        engine()
    assert "to say which models it serves, at most 5 s" in capsys.readouterr().err


def test_a_run_can_be_stopped_at_any_time(server, engine):
    server.faults = [None, *[hang(30)] * 10]
    answers = engine(at_once=2, timeout=600.0).generate(iter(_prompts(*["Hello"] * 6)), GREEDY)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 3
    assert not _workers()


# --- what is shown


@pytest.mark.parametrize("login", ["me:pass-word", "me:p%40ss", "me:p@ss:w", "me"])
def test_a_login_in_the_address_is_sent_and_never_shown(server, tokenizer, login):
    url = server.url.replace("://", f"://{login}@")
    client = ServerEngine(url, tokenizer, pause=0.0)
    assert client.url == server.url
    user, _, password = login.partition(":")
    sent = base64.b64encode(f"{user}:{unquote(password)}".encode()).decode()
    assert server.headers[0]["Authorization"] == f"Basic {sent}"
    server.models = ("a", "b")
    with pytest.raises(BadInputError) as caught:
        ServerEngine(url, tokenizer, model="none")
    assert login not in str(caught.value) and "serves: a, b" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "http://me:secret@[::1", "http://host:99999/v1", "http://host:port/v1", "http://ho st/v1"),
        *("http://host/v1?key=secret", "http://host/v1#x", "http://host\n/v1", b"http://host", 5, ["http://host"]),
        *("http://me:secret@", "ftp://me:secret@host/v1", "http://me:se/cret@host:x/v1"),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence_without_what_is_secret(url):
    with pytest.raises(BadInputError, match="must be a URL such as") as caught:
        ServerEngine(url, None)
    assert "secret" not in str(caught.value) and "cret@" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["sec\nret-key", "sécret-key", "sec\0ret-key"])
def test_a_key_that_cannot_be_sent_is_not_shown(server, engine, key):
    with pytest.raises(BadInputError, match="contains characters that no key has") as caught:
        engine(api_key=key)
    assert "ret-key" not in str(caught.value)


def test_what_a_server_says_is_shown_without_control_characters_and_not_at_any_length(server, engine):
    server.models = ("tiny", "\x1b]0;evil\x07")
    with pytest.raises(BadInputError) as caught:
        engine(model="none")
    assert "\x1b" not in str(caught.value) and "\\x1b]0;evil" in str(caught.value)
    server.models = ("tiny",)
    server.faults = [(400, {}, "\x1b[2J" + "long " * 100_000), (400, {}, "\u202egnihton")]
    answers = _answers(engine(at_once=1), _prompts("one", "two"))
    assert "\x1b" not in str(answers[0]) and len(str(answers[0])) < 500
    assert "\u202e" not in str(answers[1])


def test_another_model_under_the_same_name_is_noticed(server, engine, tokenizer, tmp_path):
    settings = {"do_sample": False, "max_new_tokens": 8, "progress": False}
    run_batch(None, tokenizer, ["one"], tmp_path / "p.json", engine=engine(), **settings)
    assert run_batch(None, tokenizer, ["one"], tmp_path / "p.json", engine=engine(), **settings).kept == 1
    server.root = "/models/another"
    with pytest.raises(BadInputError, match="another model or other weights"):
        run_batch(None, tokenizer, ["one"], tmp_path / "p.json", engine=engine(), **settings)


def test_environments_that_name_no_proxy_are_one_sentence(tokenizer, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "nonsense://me:secret@proxy")
    monkeypatch.setenv("ALL_PROXY", "nonsense://me:secret@proxy")
    with pytest.raises(BadInputError, match="connection settings of this machine") as caught:
        ServerEngine("http://192.0.2.1/v1", tokenizer, timeout=0.1)
    assert "secret" not in str(caught.value)


# --- many prompts


def test_a_prompt_that_the_server_refuses_fails_alone(server, engine):
    server.faults = [None, (400, {}, "prompt has 9 tokens too many"), None]
    answers = _answers(engine(at_once=1), _prompts("one", "two", "three"))
    assert (answers[0], answers[2]) == ("1 ids", "1 ids")
    assert isinstance(answers[1], HelpersError)
    assert "400: prompt has 9 tokens too many" in str(answers[1])


def test_a_prompt_that_breaks_the_server_each_time_fails_alone(server, engine):
    server.faults = [(500, {}, "CUDA error")] * 3
    answers = _answers(engine(at_once=1), _prompts("one", "two"))
    assert "500: CUDA error" in str(answers[0])
    assert answers[1] == "1 ids"


def test_pictures_and_prompts_longer_than_the_servers_context_fail_before_they_are_sent(server, engine):
    client = engine()
    client.context = 10
    answers = _answers(client, [Prompt(0, "look", image="cat.png"), Prompt(1, "one two three"), Prompt(2, "one")])
    assert isinstance(answers[0], BadInputError)
    assert isinstance(answers[1], PromptTooLongError)
    assert answers[2] == "1 ids"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((429, {"Retry-After": "0"}, "slow down"), "busy at each of 3 attempts .429: slow down"),
        (hang(1.0), "did not answer within 0.2 s, 3 times"),
        (cut, "broke the connection"),
        ((404, {}, "The model `tiny` does not exist."), "does not exist"),
        ((401, {}, "bad key"), "OPENAI_API_KEY"),
        (lambda handler: handler.answer(200, b"<html>"), "did not answer like an OpenAI-compatible server"),
        (lambda handler: handler.answer(200, {"choices": []}), "did not answer like an OpenAI-compatible server"),
    ],
    ids=["429", "hang", "cut", "404", "401", "html", "no choice"],
)
def test_what_concerns_all_prompts_ends_the_run_after_what_was_done(server, engine, fault, message):
    server.faults = [None] + [fault] * 20
    client = engine(at_once=1, timeout=0.2 if message.startswith("did not") else 5.0)
    answers = client.generate(iter(_prompts("one", "two", "three")), GREEDY)
    assert next(answers) == (0, "1 ids")
    with pytest.raises(HelpersError, match=message):
        next(answers)


def test_a_server_that_dies_loses_nothing_and_the_run_goes_on_from_there(server, engine, tokenizer, tmp_path):
    prompts = ["word " * (n + 1) for n in range(20)]
    settings = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 8, "progress": False}
    server.faults = [None] * 7 + [cut] * 100
    with pytest.raises(ServerNotReachableError, match="to continue from there"):
        run_batch(None, tokenizer, prompts, tmp_path / "p.json", engine=engine(at_once=4), **settings)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [line for line in lines if "Output" in line]
    assert len(kept) == 7
    server.faults.clear()
    server.requests.clear()
    report = run_batch(None, tokenizer, prompts, tmp_path / "p.json", engine=engine(at_once=4), **settings)
    assert (report.kept, report.answered, report.failed) == (7, 13, 0)
    assert len(server.requests) == 13
    answers = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    lengths = [len(prompt_token_ids(tokenizer, Prompt(0, text))) for text in prompts]
    assert answers == [
        {"Input": text, "Output": f"{length} ids"} for text, length in zip(prompts, lengths, strict=True)
    ]


def test_whoever_stops_listening_leaves_no_thread_behind(server, engine):
    before = threading.active_count()
    answers = engine(at_once=3).generate(iter(_prompts(*["Hello"] * 9)), GREEDY)
    next(answers)
    answers.close()
    deadline = time.monotonic() + 3
    while _workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _workers(), before


def _workers():
    return [thread for thread in threading.enumerate() if "ServerEngine" in thread.name]


def test_a_model_is_named_in_full_or_by_its_last_part_or_is_the_only_one(server, engine):
    assert engine().model_name == "tiny"
    server.models = ("models/smollm2-135m", "other")
    assert engine(model="smollm2-135m").model_name == "models/smollm2-135m"
    assert engine(model="other").model_name == "other"
    with pytest.raises(BadInputError, match=r"does not serve 'llama'. It serves: models/smollm2-135m, other"):
        engine(model="llama")
    with pytest.raises(BadInputError, match=r"serves 2 models: name one of them \(models/smollm2-135m, other\)"):
        engine()
    server.models = ()
    with pytest.raises(BadInputError, match="It serves: none"):
        engine(model="llama")


def test_a_key_is_sent_and_a_missing_one_is_named(server, engine, monkeypatch):
    server.key = "secret-123"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BadInputError, match=r"refuses the key \(401: Incorrect API key provided\.\)") as caught:
        engine(api_key="wrong-456")
    assert "wrong-456" not in str(caught.value)
    assert engine(api_key="secret-123").model_name == "tiny"
    monkeypatch.setenv("OPENAI_API_KEY", "secret-123")
    assert engine().model_name == "tiny"


def test_the_url_may_end_in_a_slash_and_may_leave_v1_away(server, engine):
    for url in (server.url + "/", server.url.removesuffix("/v1"), server.url.removesuffix("v1")):
        assert engine(url).url == server.url


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1/v1", "", None, "http://"])
def test_what_is_no_url_is_said_so(engine, url):
    with pytest.raises(BadInputError, match="must be a URL such as"):
        ServerEngine(url, None)


def test_no_server_there_is_said_at_once(engine):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(ServerNotReachableError, match=rf"127.0.0.1:{port}/v1 cannot be reached .*Check that it runs"):
        engine(f"http://127.0.0.1:{port}/v1", pause=1.0, tries=6)
    assert time.monotonic() - start < 5


def test_another_kind_of_server_is_said_so(server, engine):
    with pytest.raises(ServerNotReachableError, match=r"has no .*/api/models \(404: .*usually ends in /v1"):
        engine(server.url.replace("/v1", "/api"))


@pytest.mark.parametrize("wrong", [{"at_once": 0}, {"tries": 0}, {"timeout": 0}, {"pause": -1}])
def test_settings_that_cannot_work_are_refused(engine, wrong):
    with pytest.raises(BadInputError, match=f"{next(iter(wrong))} must be a (whole|finite) number of at least"):
        engine(**wrong)


def test_the_command_asks_a_server_and_names_what_it_lacks(server, tmp_path, capsys):
    data, out = tmp_path / "prompts.txt", tmp_path / "p.json"
    data.write_text("one two\n", encoding="utf-8")
    options = ["--server", server.url, "--data_file", str(data), "--greedy", "--predictions_file", str(out)]
    server.models = ("models/smollm2-135m",)
    assert main(options) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == [{"Input": "one two", "Output": "2 ids"}]
    assert main([*options, "--base_model", "qwen-max"]) == 2
    assert "name it with --tokenizer_path" in capsys.readouterr().err
    assert main([*options, "--base_model", "qwen-max", "--tokenizer_path", "smollm2-135m"]) == 2
    assert "does not serve 'qwen-max'. It serves: models/smollm2-135m" in capsys.readouterr().err
