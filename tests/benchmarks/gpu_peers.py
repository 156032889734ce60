"""The same model under TransformerLens and nnsight, for `gpu.py`: what each of them offers for what the course does.

All methods take ids `[1, length]` on the device. `layer`, `changed`, `patched` and `generate` return what ours returns
too, so that the two can be compared: a hidden state, logits, tokens.
"""

import importlib.util
import tempfile

import torch
from gpu_models import bytes_tokenizer

ABLATED, STEERED, PATCHED = (1, 1), 1, (2, 3)  # (layer, head), layer, (layer, position)


def peers(model, device, attention="sdpa"):
    """Name -> the same model under another tool, for those that are installed; `attention` is nnsight's, where
    patterns can be read from "eager" only."""
    installed = {"TransformerLens": ("transformer_lens", _TransformerLens), "nnsight": ("nnsight", _NNsight)}
    found = {}
    for name, (module, make) in installed.items():
        if importlib.util.find_spec(module) is None:
            print(f"  {name} is not installed beside this Python: it has no rows.", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                model.save_pretrained(folder)
                bytes_tokenizer().save_pretrained(folder)
                found[name] = make(folder, str(device), attention)
            except Exception as error:
                print(f"  {name} does not load this model: {type(error).__name__}: {str(error)[:200]}", flush=True)
    return found


class _TransformerLens:
    def __init__(self, folder, device, attention):
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(folder, device=device, dtype=torch.float32)

    @torch.no_grad()
    def capture(self, ids):
        kinds = ("hook_resid_post", "hook_pattern")
        return self.bridge.run_with_cache(ids, names_filter=lambda name: name.endswith(kinds))

    @torch.no_grad()
    def lens(self, ids, top):
        bridge = self.bridge
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_post"))
        states = [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(bridge.cfg.n_layers)]
        return [bridge.unembed(bridge.ln_final(state))[0].softmax(-1).topk(top, -1) for state in states]

    @torch.no_grad()
    def layer(self, ids, wanted):
        return self.bridge(ids, stop_at_layer=wanted)[0]

    @torch.no_grad()
    def changed(self, ids, vector):
        layer, head = ABLATED
        vector = vector.to(ids.device)

        def ablate(heads, hook):  # [batch, position, head, head_dim]
            heads[:, :, head] = 0
            return heads

        hooks = [
            (f"blocks.{STEERED}.hook_resid_pre", lambda stream, hook: stream + vector),
            (f"blocks.{layer}.attn.hook_z", ablate),
        ]
        return self.bridge.run_with_hooks(ids, fwd_hooks=hooks)

    @torch.no_grad()
    def patched(self, ids, vector):
        layer, position = PATCHED
        vector = vector.to(ids.device)

        def patch(stream, hook):
            stream[:, position] = vector
            return stream

        return self.bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", patch)])

    @torch.no_grad()
    def generate(self, ids, new):
        settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
        return self.bridge.generate(ids, max_new_tokens=new, **settings)[0, ids.shape[1] :].tolist()


class _NNsight:
    def __init__(self, folder, device, attention):
        from nnsight import TransformersModel

        how = {"device_map": device, "dispatch": True, "dtype": torch.float32, "attn_implementation": attention}
        self.model = TransformersModel(folder, task="text-generation", **how)

    @torch.no_grad()
    def capture(self, ids):
        model = self.model
        with model.trace(ids):
            states, patterns = list().save(), list().save()
            for part in model.model.layers:
                patterns.append(part.self_attn.output[1])
                states.append(part.output)
            logits = model.lm_head.output.save()
        return states, patterns, logits

    @torch.no_grad()
    def lens(self, ids, top):
        model = self.model
        with model.trace(ids):
            best = list().save()
            for part in model.model.layers:
                best.append(model.lm_head(model.model.norm(part.output))[0].softmax(-1).topk(top, -1))
        return best

    @torch.no_grad()
    def layer(self, ids, wanted):
        model = self.model
        with model.trace(ids) as tracer:
            state = model.model.layers[wanted - 1].output.save()
            tracer.stop()
        return state[0]

    @torch.no_grad()
    def changed(self, ids, vector):
        model, (layer, head) = self.model, ABLATED
        size, vector = model.config.head_dim, vector.to(ids.device)
        with model.trace(ids):
            before = model.model.layers[STEERED - 1]
            before.output = before.output + vector
            model.model.layers[layer].self_attn.o_proj.input[..., head * size : (head + 1) * size] = 0
            logits = model.lm_head.output.save()
        return logits

    @torch.no_grad()
    def patched(self, ids, vector):
        model, (layer, position) = self.model, PATCHED
        vector = vector.to(ids.device)
        with model.trace(ids):
            model.model.layers[layer - 1].output[:, position] = vector
            logits = model.lm_head.output.save()
        return logits

    @torch.no_grad()
    def generate(self, ids, new):
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with self.model.generate(ids, **settings) as tracer:
            output = tracer.result.save()
        return output[0, ids.shape[1] :].tolist()
