"""What a model must be like again after something looked at it or changed it for a while."""

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface


def marks(model):
    """Everything that a trace touches: hooks, settings, forwards, the registries of transformers, and gradients."""
    hooks = [
        (name, tuple(m._forward_hooks), tuple(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    ]
    configs = [model.config.to_dict(), model.config._attn_implementation]
    return hooks, configs, list(AttentionInterface()), list(AttentionMaskInterface()), torch.is_grad_enabled()
