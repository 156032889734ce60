"""vLLM's own OpenAI-compatible server on 127.0.0.1, asked with the course's environment's code."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from helpers.batch.run import run_batch
from helpers.batch.server_engine import ServerEngine
from helpers.errors import BadInputError, HelpersError, ServerNotReachableError
from helpers.models.locate import model_folder

STARTS_WITHIN = 600  # seconds; half a minute where nothing else runs


class Server:
    """vLLM's server for the default model, up when this returns; it writes into the file `log`."""

    def __init__(self, log, dtype="float32"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log, self.dtype = f"http://127.0.0.1:{self.port}/v1", log, dtype
        self.start()

    def start(self):
        options = {
            "--model": model_folder("smollm2-135m"),
            "--served-model-name": "smollm2-135m",
            "--dtype": self.dtype,
            "--max-model-len": 512,
            "--max-num-seqs": 16,
            "--host": "127.0.0.1",
            "--port": self.port,
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        command += [str(part) for option in options.items() for part in option]
        variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self.is_up():
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)

    def is_up(self):
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self):
        """As a machine that loses power: the server and the processes it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "log.txt")
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture
def engine(server, tokenizer):
    return ServerEngine(server.url, tokenizer, model="smollm2-135m")


def test_the_model_its_context_and_that_it_is_vllm_are_known(engine):
    assert (engine.model_name, engine.context, engine.is_vllm) == ("smollm2-135m", 512, True)


def test_greedy_answers_are_those_of_transformers(engine, prompts, settings, agree):
    assert agree(dict(engine.generate(iter(prompts), settings))) >= len(prompts) - 1


def test_a_server_treated_as_any_other_gives_the_same(engine, prompts, settings, expected):
    """Without vLLM's extensions: OpenAI's own fields, and the text in place of ids."""
    engine.is_vllm = False
    answers = dict(engine.generate(iter(prompts[:8]), settings))
    assert answers == {prompt.index: expected[prompt.index] for prompt in prompts[:8]}


def test_a_model_that_is_not_served_is_said_so(server, tokenizer):
    with pytest.raises(BadInputError, match=r"does not serve 'glm-4-9b-chat'. It serves: smollm2-135m"):
        ServerEngine(server.url, tokenizer, model="glm-4-9b-chat")


def test_what_the_server_refuses_fails_alone_with_its_words(engine, settings, prompts):
    from helpers.batch.engines import Prompt

    engine.context = None  # so that the server has to find out
    answers = dict(engine.generate(iter([Prompt(0, "x " * 600), prompts[1]]), settings))
    assert isinstance(answers[0], HelpersError)
    assert "512" in str(answers[0])
    assert isinstance(answers[1], str)


def test_the_command_writes_the_same_files(server, batch_command, tmp_path, model, tokenizer):
    data = tmp_path / "prompts.txt"
    data.write_text("What is the capital of France?\n\n你好\n", encoding="utf-8")
    options = ("--server", server.url, "--data_file", data, "--with_prompt", "--greedy", "--max_new_tokens", 12)
    process = batch_command(*options, "--predictions_file", tmp_path / "server.json")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    process = batch_command(*options[2:], "--only_cpu", "--predictions_file", tmp_path / "here.json")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    there, here = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("server.json", "here.json"))
    assert there == here
    assert here[1] == {"Input": "", "Output": ""}


def test_a_server_that_is_killed_loses_nothing_and_the_run_goes_on_when_it_is_back(server, engine, tmp_path):
    texts = [f"Count from {n} to {n + 5}." for n in range(60)]
    settings = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 12, "progress": False}
    engine.at_once, engine.tries, engine.pause = 4, 2, 0.1

    class Watched:
        """The engine, with its server killed once ten answers are there."""

        name, model_name = engine.name, engine.model_name

        def generate(self, prompts, settings):
            for count, answered in enumerate(engine.generate(prompts, settings)):
                if count == 10:
                    server.kill()
                yield answered

    with pytest.raises(ServerNotReachableError, match="to continue from there"):
        run_batch(None, engine.tokenizer, texts, tmp_path / "p.json", engine=Watched(), **settings)
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert 11 <= len(lines) < 60
    server.start()
    report = run_batch(None, engine.tokenizer, texts, tmp_path / "p.json", engine=engine, **settings)
    assert (report.kept, report.answered, report.failed) == (len(lines), 60 - len(lines), 0)
    after = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[: len(lines)] == lines
    assert sorted(json.loads(line)["index"] for line in after) == list(range(60))
