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
    "load_tokenizer": "loading",
    "load_processor": "loading",
    "load_model": "loading",
    "memory_plan": "loading",
    "render_chat": "prompts",
    "generate_steps": "generation",
    "ablate_heads": "interventions",
    "patch_hidden_state": "interventions",
    "skip_attention": "interventions",
    "skip_layer": "interventions",
    "skip_mlp": "interventions",
    "steer": "interventions",
    "show_source": "walkthrough",
    "show_tokens": "views.tokens",
    "plot_next_token": "views.plots",
    "use_course_style": "views.style",
    "generation_stepper": "views.stepper",
    "check": "exercises",
    "HelpersError": "errors",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helpers' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"helpers.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
