"""What happens inside a language model when it answers: the code behind the notebooks.

Names resolve when first used, so `import helpers` itself is fast and imports neither `torch`
nor `transformers`:

>>> import helpers
>>> helpers.list_models()[0].name
'smollm2-135m'

The way through the package is `catalog -> sources -> loading -> prompts -> generation | tracing
-> views`: computing modules return plain tensors and frozen dataclasses, `views` draws them.
"""

import importlib

_MODULE_OF = {
    "list_models": "catalog",
    "run_batch": "batch",
    "PromptFile": "batch",
    "load_tokenizer": "loading",
    "load_processor": "loading",
    "load_model": "loading",
    "memory_plan": "loading",
    "render_chat": "prompts",
    "Conversation": "conversation",
    "generate_steps": "generation",
    "trace": "tracing",
    "ablate_heads": "interventions",
    "patch_hidden_state": "interventions",
    "skip_attention": "interventions",
    "skip_layer": "interventions",
    "skip_mlp": "interventions",
    "steer": "interventions",
    "logit_lens": "lens",
    "residual_contributions": "contributions",
    "head_contributions": "contributions",
    "direct_logit": "contributions",
    "patching_sweep": "patching",
    "attention_rollout": "heads",
    "head_scores": "heads",
    "kv_cache_bytes": "kv_cache",
    "kv_cache_summary": "kv_cache",
    "show_source": "walkthrough",
    "check": "exercises",
    "HelpersError": "errors",
    "use_course_style": "views.style",
    "show_tokens": "views.tokens",
    "show_structure": "views.structure",
    "plot_attention": "views.plots",
    "plot_bars": "views.plots",
    "plot_kv_cache": "views.cache",
    "plot_logit_lens": "views.plots",
    "plot_memory_plan": "views.plots",
    "plot_next_token": "views.plots",
    "plot_processors": "views.plots",
    "attention_explorer": "views.attention",
    "generation_stepper": "views.stepper",
    "hidden_state_explorer": "views.hidden_states",
    "kv_cache_explorer": "views.cache",
    "image_chat": "views.image_chat",
    "sampling_explorer": "views.sampling",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helpers' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"helpers.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
