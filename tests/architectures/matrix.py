"""Every public function on one model, compared with what transformers itself gives: right, refused, or wrong.

A check compares a function's result with a run that does not use it: `transformers`' own outputs, or plain hooks on
the modules that are found here by their place in the model. It returns nothing when all is right and raises
`AssertionError` when a number is wrong. A `HelpersError` is a refusal; any other error is a fault as well.
"""

import io
import json
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
import transformers

import helpers
from helpers.errors import HelpersError
from helpers.inside import anatomy

PROMPT = "The capital of France is Paris"
OTHER = "The capital of Germany is Rome"
# transformers' hidden states of these begin after the first layer, and have the stream after the last one, too.
WITHOUT_EMBEDDING = ("mamba", "mamba2", "falcon_mamba", "rwkv")
CHECKS: dict[str, Callable] = {}
LOADING_AND_CACHES = (
    "load_model",
    "memory_plan",
    "kv_cache_summary",
    "kv_cache_bytes",
    "kv_cache_explorer",
    "conversation",
)


@dataclass(frozen=True)
class Outcome:
    """`state`: "ok", "refused", "wrong" or "error"; `words`: the message."""

    state: str
    words: str = ""


class Case:
    """One model: as `helpers` loads it, and as `transformers` does."""

    def __init__(self, folder: Path):
        self.folder = folder
        config = transformers.AutoConfig.from_pretrained(folder)
        sees = hasattr(config, "vision_config")
        self.kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @cached_property
    def model(self):
        """The model that the functions work on: loaded with `attn_implementation="auto"`, if that is possible."""
        try:
            return helpers.load_model(str(self.folder), device="cpu", dtype="float32")
        except Exception:  # `load_model` has a check of its own; the others go on with transformers' model
            return self.kind.from_pretrained(self.folder).eval()

    @cached_property
    def own(self):
        """transformers' own, with attention that gives its weights."""
        return self.kind.from_pretrained(self.folder, attn_implementation="eager").eval()

    @cached_property
    def ids(self):
        return torch.tensor([self.tokenizer(PROMPT)["input_ids"]])

    @cached_property
    def other_ids(self):
        ids = self.tokenizer(OTHER)["input_ids"]
        length = self.ids.shape[1]
        return torch.tensor([(ids * 2)[:length]])

    @torch.no_grad()
    def logits(self, model=None, ids=None):
        model = model or self.model
        ids = self.ids if ids is None else ids
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]

    @property
    def hidden(self):
        return self.model.config.get_text_config().hidden_size

    @cached_property
    def answers(self):
        """The tokens whose scores differ most between the two prompts."""
        apart = self.logits(ids=self.other_ids)[-1] - self.logits()[-1]
        return {"answer": int(apart.argmax()), "against": int(apart.argmin())}

    @cached_property
    def layers(self):
        """The decoder's layers: the list of modules that a text goes through one after the other."""
        order, hooks = [], ExitStack()
        with hooks:
            for name, module in self.model.named_modules():
                if isinstance(module, torch.nn.ModuleList):
                    for layer in module:
                        hooks.enter_context(layer.register_forward_pre_hook(lambda m, a, n=name: order.append(n)))
            self.logits()
        count = self.model.config.get_text_config().num_hidden_layers
        name = next(n for n in dict.fromkeys(order) if order.count(n) == count == len(self.model.get_submodule(n)))
        return self.model.get_submodule(name)

    @cached_property
    def states(self):
        """transformers' own hidden states `[layer+1, position, hidden]`.

        OPT-350m's last one has been through the matrix before the head: in its place is what the last layer gives.
        """
        given = []
        last = self.layers[-1]
        see = last.register_forward_hook(lambda m, a, out: given.append(out if torch.is_tensor(out) else out[0]))
        with torch.no_grad(), see:
            output = self.model(
                input_ids=self.ids, attention_mask=torch.ones_like(self.ids), use_cache=False, output_hidden_states=True
            )
        states = [state[0] for state in output.hidden_states]
        if states[-1].shape != states[0].shape:
            states[-1] = given[0][0]
        return torch.stack(states)

    @cached_property
    def attentions(self):
        """transformers' own attention weights `[layer, head, query, key]` of the layers that have any.

        Its "eager" Falcon adds ALiBi twice. There they are the softmax of what "sdpa" is given.
        """
        mask = torch.ones_like(self.ids)
        if getattr(self.model.config, "alibi", False):
            return self._given_to_sdpa()
        with torch.no_grad():
            output = self.own(input_ids=self.ids, attention_mask=mask, use_cache=False, output_attentions=True)
        return torch.stack([weights[0] for weights in output.attentions if weights is not None])

    def _given_to_sdpa(self):
        plain, found = torch.nn.functional.scaled_dot_product_attention, []

        def attend(query, key, value, attn_mask, **more):
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + attn_mask
            found.append(scores.softmax(-1)[0])
            return plain(query, key, value, attn_mask, **more)

        with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
            self.logits()
        return torch.stack(found)

    @cached_property
    def trace(self):
        return helpers.trace(self.model, self.tokenizer, self.ids, attentions=False)

    @cached_property
    def full_trace(self):
        return helpers.trace(self.model, self.tokenizer, self.ids)

    @cached_property
    def parts(self):
        return helpers.residual_contributions(self.model, self.tokenizer, self.ids)

    @cached_property
    def middle(self):
        """A layer with attention, if there is one, and not the last."""
        with_attention = anatomy(self.model).attention_layers
        return min(with_attention, key=lambda layer: abs(layer - 1)) if with_attention else 1


def check(function):
    CHECKS[function.__name__] = function
    return function


def run(folder: Path, names=None) -> dict[str, Outcome]:
    """All checks on the model in a folder: name -> `Outcome`."""
    case = Case(folder)
    return {name: _outcome(CHECKS[name], case) for name in names or CHECKS}


def _outcome(function, case):
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            function(case)
    except HelpersError as error:
        return Outcome("refused", str(error))
    except AssertionError as error:
        return Outcome("wrong", str(error) or _where(error))
    except Exception as error:
        return Outcome("error", f"{type(error).__name__}: {error} ({_where(error)})")
    return Outcome("ok")


def _where(error):
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.line}"


def near(a, b, tolerance=2e-4):
    """Raises `AssertionError` unless two tensors are equal up to a share of the largest number in them."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape, f"{list(a.shape)} instead of {list(b.shape)}"
    if not a.numel():
        return
    off = float((a - b).abs().max())
    assert off <= tolerance * max(1.0, float(b.abs().max())), f"off by {off:.2g} of {float(b.abs().max()):.2g}"


def hooked(case, hooks, **more):
    """Logits of a run with hooks."""
    with ExitStack() as active:
        for hook in hooks:
            active.enter_context(hook)
        return case.logits(**more)


def enters(layer, change):
    """A hook that changes the stream as it enters a layer."""

    def hook(module, arguments, keywords):
        if arguments:
            return (change(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": change(keywords["hidden_states"])}

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def passes(layer):
    """A hook: the stream passes a layer unchanged."""

    def hook(module, arguments, keywords, output):
        before = arguments[0] if arguments else keywords["hidden_states"]
        return type(output)((before, *output[1:])) if isinstance(output, tuple | list) else before

    return layer.register_forward_hook(hook, with_kwargs=True)


def writes_nothing(part):
    """A hook: a part of a layer adds nothing to the stream."""

    def hook(module, arguments, output):
        found = [output] if isinstance(output, torch.Tensor) else list(output)
        found[part.place] = torch.zeros_like(found[part.place])
        return found[0] if isinstance(output, torch.Tensor) else type(output)(found)

    return part.writer.register_forward_hook(hook)


# Loading and running.


@check
def load_model(case):
    model = helpers.load_model(str(case.folder), device="cpu", dtype="float32")
    theirs = case.kind.from_pretrained(case.folder, attn_implementation=model.config._attn_implementation).eval()
    near(case.logits(model), case.logits(theirs), 1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


@check
def memory_plan(case):
    plan = helpers.memory_plan(str(case.folder), dtype="float32", context=40)
    loaded = sum(parameter.nbytes for parameter in case.own.parameters())
    assert plan.weights_bytes == loaded, f"{plan.weights_bytes} instead of {loaded}"


@check
def generate_steps(case):
    steps = list(helpers.generate_steps(case.model, case.tokenizer, case.ids, max_new_tokens=6))
    theirs = case.model.generate(case.ids, attention_mask=torch.ones_like(case.ids), max_new_tokens=6, do_sample=False)
    assert [step.token_id for step in steps] == theirs[0, case.ids.shape[1] :].tolist()
    near(steps[0].logits, case.logits()[-1])


@check
def show_structure(case):
    structure = helpers.show_structure(case.model)
    assert structure.count == sum(p.numel() for p in case.model.parameters())
    assert structure.ordered, "without an order"


@check
def show_source(case):
    assert "def forward" in str(helpers.show_source(type(case.layers[0]).forward))


# Looking inside.


@check
def trace_hidden_states(case):
    ours, theirs = case.trace.hidden_states, case.states
    if case.model.config.model_type in WITHOUT_EMBEDDING:
        near(ours[1:-1], theirs[:-2])
        near(case.trace.last_residual, theirs[-2])
        near(ours[-1], theirs[-1])
        near(ours[0], case.model.get_input_embeddings()(case.ids)[0])
    else:
        near(ours, theirs)
    near(case.trace.logits, case.logits())


@check
def trace_attentions(case):
    result = case.full_trace
    # PaliGemma's "eager" looks at earlier positions only, its "sdpa" both ways.
    near(result.logits, case.logits(case.own if case.model.config.model_type == "paligemma" else case.model))
    near(result.attentions, case.attentions)
    assert len(result.attention_layers) == len(case.attentions)


@check
def logit_lens(case):
    lens = helpers.logit_lens(case.model, case.trace, top_k=3)
    expected = case.logits().softmax(-1).topk(3)
    near(lens.probabilities[-1], expected.values)
    near(case.logits().softmax(-1).gather(1, lens.token_ids[-1]), expected.values)
    for number in range(1, len(case.layers)):
        early = hooked(case, [passes(layer) for layer in case.layers[number:]]).softmax(-1)
        near(lens.probabilities[number], early.topk(3).values)
        near(lens.entropy[number], torch.special.entr(early).sum(-1))


@check
def residual_contributions(case):
    parts = case.parts
    stream = parts.running_sum()
    near(stream[:-1:2], case.trace.hidden_states[:-1])
    near(stream[-1], case.trace.last_residual)
    near(parts.embedding + parts.attention.sum(0) + parts.mlp.sum(0), parts.total)
    assert not parts.edits.any(), "something was edited"
    with helpers.steer(case.model, 1, torch.ones(parts.total.shape[-1])):
        steered = helpers.residual_contributions(case.model, case.tokenizer, case.ids)
    touched = [float(row.abs().max()) for row in steered.edits]
    assert [size > 0 for size in touched] == [row == 1 for row in range(len(touched))], f"edits {touched}"


@check
def head_contributions(case):
    inside, parts = anatomy(case.model), case.parts
    for layer in inside.attention_layers:
        heads = helpers.head_contributions(case.model, parts, layer)
        with helpers.ablate_heads(case.model, [(layer, 1)]):
            without = helpers.residual_contributions(case.model, case.tokenizer, case.ids)
        taken = case.parts.attention[layer] - without.attention[layer]
        normed = inside.layers[layer].attention.norm is not None
        if not normed:  # a norm after attention changes its size with every head
            near(taken, heads[1])
        with helpers.skip_attention(case.model, layer):
            skipped = helpers.residual_contributions(case.model, case.tokenizer, case.ids)
        wrote = case.parts.attention[layer] - skipped.attention[layer]
        bias = getattr(inside.projection(layer), "bias", None)
        bias = 0 if bias is None else bias.detach() * (1 if parts.scales is None else parts.scales[layer])
        near(heads.sum(0) + bias, wrote, 1e-3 if normed else 2e-4)


@check
def direct_logit(case):
    inside = anatomy(case.model)
    logits = case.trace.logits[-1]
    best, second = logits.topk(2).indices.tolist()
    for against in (None, second):
        direct = helpers.direct_logit(case.model, case.parts, best, against=against)
        near(direct.total, logits[best] - (0 if against is None else logits[against]), 1e-3)
        summed = direct.embedding + direct.attention.sum() + direct.mlp.sum() + direct.edits + direct.bias
        near(float(summed), direct.total, 1e-3)
        for layer, attention in enumerate(inside.layers):
            others = sum(part.mixes for part in attention.parts) != 1
            if attention.attention and not others and getattr(inside.projection(layer), "bias", None) is None:
                near(direct.heads[layer].sum(), direct.attention[layer], 1e-3)


# Changing something.


@check
def ablate_heads(case):
    inside = anatomy(case.model)
    heads = inside.attention(case.middle).heads
    before = case.logits()
    with helpers.ablate_heads(case.model, [(case.middle, 0)]):
        one = case.logits()
    with helpers.ablate_heads(case.model, [(case.middle, head) for head in range(heads)]):
        every = case.logits()
    projection = inside.projection(case.middle)
    zeros = projection.register_forward_pre_hook(lambda module, arguments: (torch.zeros_like(arguments[0]),))
    near(every, hooked(case, [zeros]))

    def first(module, arguments):
        mixed = arguments[0].clone()
        mixed[..., : mixed.shape[-1] // heads] = 0
        return (mixed,)

    near(one, hooked(case, [projection.register_forward_pre_hook(first)]))
    assert not torch.equal(one, before), "nothing changed"
    assert torch.equal(case.logits(), before), "not as before"


@check
def patch_hidden_state(case):
    value = torch.linspace(-1, 1, case.hidden)

    def put(stream):
        stream = stream.clone()
        stream[:, 2] = value
        return stream

    with helpers.patch_hidden_state(case.model, 1, 2, value):
        patched = case.logits()
    near(patched, hooked(case, [enters(case.layers[1], put)]), 1e-5)
    with helpers.patch_hidden_state(case.model, len(case.layers), -1, case.trace.last_residual[0]):
        near(case.logits()[-1], case.trace.logits[0])


@check
def steer(case):
    vector = torch.linspace(-1, 1, case.hidden)
    with helpers.steer(case.model, 1, vector, scale=0.5):
        steered = case.logits()
    near(steered, hooked(case, [enters(case.layers[1], lambda stream: stream + 0.5 * vector)]), 1e-5)


@check
def skip_layer(case):
    with helpers.skip_layer(case.model, 1):
        skipped = case.logits()
    near(skipped, hooked(case, [passes(case.layers[1])]), 1e-5)


@check
def skip_attention(case):
    inside = anatomy(case.model)
    part, before = inside.attention(case.middle), case.logits()
    with helpers.skip_attention(case.model, case.middle):
        skipped = case.logits()
        near(helpers.trace(case.model, case.tokenizer, case.ids, attentions=False).logits, skipped)
        if not any(layer.gap for layer in inside.layers):
            parts = helpers.residual_contributions(case.model, case.tokenizer, case.ids)
            if sum(other.mixes for other in inside.layers[case.middle].parts) == 1:
                assert not parts.attention[case.middle].any(), "attention still writes"
    near(skipped, hooked(case, [writes_nothing(part)]), 1e-5)
    assert not torch.equal(skipped, before), "nothing changed"


@check
def skip_mlp(case):
    layer = case.middle
    with helpers.skip_mlp(case.model, layer):
        skipped = helpers.residual_contributions(case.model, case.tokenizer, case.ids)
        logits = case.logits()
    if sum(not part.mixes for part in anatomy(case.model).layers[layer].parts) == 1:
        assert not skipped.mlp[layer].any(), "the MLP still writes"
    near(skipped.attention[layer], case.parts.attention[layer])
    near(logits, hooked(case, [writes_nothing(anatomy(case.model).mlp(layer))]), 1e-5)
    assert not torch.equal(logits, case.logits()), "nothing changed"


# Many runs.


def _moved(case, layer, hook_of, position):
    """How far a single patched run moves the answer, by hand."""
    plain, source = case.logits()[-1], case.logits(ids=case.other_ids)[-1]
    answer, against = case.answers["answer"], case.answers["against"]
    patched = hooked(case, [hook_of(layer, position)])[-1]
    score, aim, now = (float(row[answer] - row[against]) for row in (plain, source, patched))
    return (now - score) / (aim - score)


@check
def patching_sweep(case):
    sweep = helpers.patching_sweep(case.model, case.tokenizer, case.ids, case.other_ids, **case.answers)
    source = helpers.trace(case.model, case.tokenizer, case.other_ids, attentions=False)

    def hook(layer, position):
        def put(stream):
            stream = stream.clone()
            stream[:, position] = source.hidden_states[layer, position]
            return stream

        return enters(case.layers[layer], put)

    near(sweep.moved[1, 3], _moved(case, 1, hook, 3), 1e-3)
    near(sweep.moved[-1, -1], 1.0, 1e-3)
    near(sweep.moved[-1, :-1], torch.zeros(case.ids.shape[1] - 1), 1e-3)


def _part_sweep(case, part, of_layer):
    sweep = helpers.patching_sweep(case.model, case.tokenizer, case.ids, case.other_ids, part=part, **case.answers)
    written = {}
    layer, position = sweep.layers[0], 3
    with of_layer(layer).writer.register_forward_hook(lambda m, a, out: written.update({layer: deepcopy(out)})):
        case.logits(ids=case.other_ids)

    def hook(layer, position):
        found = of_layer(layer)

        def put(module, arguments, output):
            first = output if isinstance(output, torch.Tensor) else output[0]
            theirs = written[layer] if isinstance(written[layer], torch.Tensor) else written[layer][0]
            first, theirs = first.clone(), theirs.view(first.shape)
            first.view(-1, first.shape[-1])[position] = theirs.view(-1, first.shape[-1])[position]
            return first if isinstance(output, torch.Tensor) else type(output)((first, *output[1:]))

        return found.writer.register_forward_hook(put)

    near(sweep.moved[0, position], _moved(case, layer, hook, position), 1e-3)


@check
def patching_sweep_attention(case):
    _part_sweep(case, "attention", lambda layer: anatomy(case.model).attention(layer))


@check
def patching_sweep_mlp(case):
    _part_sweep(case, "mlp", lambda layer: anatomy(case.model).mlp(layer))


@check
def head_scores(case):
    scores = helpers.head_scores(case.full_trace)
    near(scores.first_token, case.attentions[:, :, 1:, 0].mean(-1))
    near(scores.previous_token, case.attentions.diagonal(-1, 2, 3)[..., 1:].mean(-1))
    assert len(scores.layers) == len(case.attentions)


# What a reader opens.


@check
def attention_explorer(case):
    assert helpers.attention_explorer(case.full_trace) is not None


@check
def hidden_state_explorer(case):
    view = helpers.hidden_state_explorer(case.model, case.tokenizer, PROMPT).state.view()
    best = case.logits()[-1].softmax(-1).max()
    near(view["candidates"][0]["p"][0], best, 1e-3)
    assert view["layers"] == len(case.layers)


@check
def kv_cache_summary(case):
    cache = _cache(case)
    summary = helpers.kv_cache_summary(cache)
    assert summary.nbytes == _held(cache), f"{summary.nbytes} instead of {_held(cache)}"


@check
def kv_cache_bytes(case):
    formula = helpers.kv_cache_bytes(case.model.config, 40, dtype="float32")
    assert formula == _held(_cache(case)), f"{formula} instead of {_held(_cache(case))}"


@check
def kv_cache_explorer(case):
    view = helpers.kv_cache_explorer(case.model, case.tokenizer, case.ids, max_new_tokens=2).state.view()
    with torch.no_grad():
        cache = case.model(case.ids, use_cache=True).past_key_values
    assert view["bytes"] == _held(cache), f"{view['bytes']} instead of {_held(cache)}"
    for part in ("keys", "values"):
        for row, layer in zip(view[part], cache.layers, strict=True):
            tensor = getattr(layer, part, None)
            norms = torch.empty(0) if tensor is None else tensor.norm(dim=-1).mean((0, 1))
            shown = [number for number in row if number is not None]
            near(shown, norms, 1e-3)  # shown to three decimals


def _cache(case):
    with torch.no_grad():
        output = case.model(torch.arange(30, 70)[None], use_cache=True)
    names = ("past_key_values", "cache_params", "state")  # Mamba's and RWKV's have names of their own
    return next((getattr(output, name) for name in names if getattr(output, name, None) is not None), None)


def _held(cache):
    """Bytes of keys and values in a cache; the keys of an index (DeepSeek-V3.2) count, too."""
    layers = getattr(cache, "layers", ())
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values", "indexer_keys")]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


@check
def conversation(case):
    talk = helpers.Conversation(case.model, case.tokenizer)
    talk.ask("Hello", max_new_tokens=4)
    reply = talk.ask("And now?", max_new_tokens=4)
    ids = torch.tensor([reply.input_ids])
    theirs = case.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert reply.output_ids == theirs[0, ids.shape[1] :].tolist()


@check
def run_batch(case):
    settings = {"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.0, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.json"
        helpers.run_batch(case.model, case.tokenizer, [PROMPT], file, **settings)
        answer = json.loads(file.read_text())[0]["Output"]
    theirs = case.model.generate(case.ids, attention_mask=torch.ones_like(case.ids), max_new_tokens=4, do_sample=False)
    expected = case.tokenizer.decode(theirs[0, case.ids.shape[1] :], skip_special_tokens=True)
    assert answer.strip() == expected.strip(), f"{answer!r} instead of {expected!r}"
