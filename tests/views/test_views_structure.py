import warnings
from xml.dom.minidom import parseString

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
)

from helpers.errors import BadInputError
from helpers.views.structure import ADD, Part, Stack, plot_structure, show_structure
from helpers.views.style import use_course_style

matplotlib.use("agg")

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 30,
    "pad_token_id": None,
    "eos_token_id": None,
}


pytestmark = pytest.mark.usefixtures("course_style")


def small(config_class, **settings):
    return AutoModelForCausalLM.from_config(config_class(**{**SMALL, "num_hidden_layers": 3, **settings}))


def stack_of(structure):
    return next(block for block in structure.blocks if isinstance(block, Stack))


def test_the_default_model_is_folded_and_in_the_order_in_which_it_runs(model):
    structure = show_structure(model)
    assert [block.name for block in structure.blocks] == [
        "model.embed_tokens",
        "model.layers",
        "model.norm",
        "lm_head",
    ]
    stack = stack_of(structure)
    assert stack.repeats == model.config.num_hidden_layers
    assert stack.order == ("input_layernorm", "self_attn", ADD, "post_attention_layernorm", "mlp", ADD)


def test_counts_and_shapes_are_the_models_own(model):
    structure = show_structure(model)
    assert structure.count == sum(p.numel() for p in model.parameters())
    attention = next(part for part in stack_of(structure).parts if part.name == "self_attn")
    layer = model.model.layers[0].self_attn
    assert attention.count == sum(p.numel() for p in layer.parameters())
    assert {w.name: w.shape for w in attention.weights}["k_proj.weight"] == tuple(layer.k_proj.weight.shape)


def test_a_tied_weight_is_counted_once_and_says_where(model):
    head = show_structure(model).blocks[-1]
    assert head.count == 0
    assert head.weights[0].tied_to == "model.embed_tokens.weight"
    untied = show_structure(small(LlamaConfig, tie_word_embeddings=False))
    assert untied.blocks[-1].count == 30 * 16


def test_glms_residual_connections_are_found_where_they_are():
    order = stack_of(show_structure(small(GlmConfig))).order
    assert order == ("input_layernorm", "self_attn", ADD, "post_attention_layernorm", "mlp", ADD)
    # GLM-4-0414 normalizes once more before it adds
    order = stack_of(show_structure(small(Glm4Config))).order
    assert order == (
        "input_layernorm",
        "self_attn",
        "post_self_attn_layernorm",
        ADD,
        "post_attention_layernorm",
        "mlp",
        "post_mlp_layernorm",
        ADD,
    )


def test_layers_that_differ_are_not_folded_together():
    from torch import nn

    model = small(LlamaConfig, num_hidden_layers=4)
    model.model.layers[1].self_attn.q_proj = nn.Linear(16, 16, bias=True)
    stacks = [block for block in show_structure(model).blocks if isinstance(block, Stack)]
    assert [(stack.name, stack.repeats) for stack in stacks] == [
        ("model.layers[0:1]", 1),
        ("model.layers[1:2]", 1),
        ("model.layers[2:4]", 2),
    ]
    assert sum(stack.count for stack in stacks) == sum(p.numel() for p in model.model.layers.parameters())


def _hooks(model):
    """How many each module has. (`transformers` itself leaves some once it was asked for hidden states.)"""
    return [len(module._forward_hooks) for module in model.modules()]


def test_the_model_is_left_as_it_was(model):
    before = (model.config.to_dict(), model.config._attn_implementation, _hooks(model))
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    show_structure(model)
    after = (model.config.to_dict(), model.config._attn_implementation, _hooks(model))
    assert before == after
    assert weights == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_a_model_without_an_order_is_still_listed():
    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.start = torch.nn.Parameter(torch.zeros(2, 3))
            self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(5))

    tower = Tower()
    structure = show_structure(tower)
    assert not structure.ordered
    assert structure.count == sum(p.numel() for p in tower.parameters())
    assert stack_of(structure).repeats == 5
    assert "order as in the code" in plot_structure(structure).get_title(loc="left")


def test_what_a_text_does_not_reach_stands_apart():
    model = small(LlamaConfig)
    model.tower = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))
    structure = show_structure(model)
    assert [block.name for block in structure.idle] == ["tower"]
    assert "tower" not in [block.name for block in structure.blocks]
    assert structure.count == sum(p.numel() for p in model.parameters())
    lines = repr(structure).splitlines()
    assert lines.index("not used for text-only prompts:") < next(n for n, line in enumerate(lines) if "tower" in line)
    assert "tower × 2" in [text.get_text() for text in plot_structure(structure).texts]


def test_a_model_of_experts_is_drawn_too():
    model = small(DeepseekV3Config, first_k_dense_replace=1, n_routed_experts=4, moe_intermediate_size=8, n_group=1,
                  topk_group=1, num_experts_per_tok=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
                  qk_nope_head_dim=4, v_head_dim=4)  # fmt: skip
    structure = show_structure(model)
    assert structure.count == sum(p.numel() for p in model.parameters())
    assert len([block for block in structure.blocks if isinstance(block, Stack)]) == 2
    plot_structure(structure)


def test_the_text_form_holds_names_shapes_and_shares(model):
    lines = repr(show_structure(model)).splitlines()
    assert lines[0] == "LlamaForCausalLM: 134,515,008 parameters"
    assert any("self_attn" in line and "k_proj [192, 576]" in line for line in lines)
    assert lines.count("  + added to the residual stream") == 2
    tops = [line for line in lines[1:] if not line.startswith("  ")]
    shares = [float(part[:-1].lstrip("<")) for line in tops for part in line.split() if part.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_the_picture_is_small_and_draws_every_part_and_residual(model):
    structure = show_structure(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = structure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert len(png) < 90_000
    ax = pyplot.subplots()[1]
    assert plot_structure(structure, ax=ax) is ax
    drawn = [text.get_text() for text in ax.texts]
    assert drawn.count("⊕") == 2
    assert {"token ids", "logits", "residual stream", "model.layers × 30", "self_attn", "mlp"} <= set(drawn)
    for block in structure.blocks:
        if isinstance(block, Part):
            assert block.name in drawn


def test_a_sharp_picture_is_svg_whose_letters_are_text_and_the_same_each_time(model):
    structure = show_structure(model)
    assert structure._repr_svg_() is None
    use_course_style(sharp=True)
    svg = structure._repr_svg_()
    assert structure._repr_png_() is None
    assert svg.startswith("<svg") and ">model.embed_tokens</text>" in svg
    assert len(svg) < 30_000
    assert svg == structure._repr_svg_()


def test_a_strip_highlights_where_a_reader_is(model):
    strip = show_structure(model).here("self_attn", note="scores & <mask>")
    assert (strip.repeats, strip.here) == (30, ("self_attn",))
    assert repr(strip).endswith("→ lm_head → logits (scores & <mask>)") and "*self_attn*" in repr(strip)
    page = parseString(strip._repr_svg_())
    bold = [text.firstChild.data for text in page.getElementsByTagName("text") if text.hasAttribute("font-weight")]
    assert bold == ["self_attn"]
    texts = [text.firstChild.data for text in page.getElementsByTagName("text")]
    assert texts.count("+") == 2 and {"token ids", "30 layers", "scores & <mask>"} <= set(texts)
    assert "You are here" in page.getElementsByTagName("title")[0].firstChild.data
    assert len(strip._repr_svg_()) < 3000


def test_a_strip_of_all_layers_and_of_both_ends(model):
    structure = show_structure(model)
    assert set(structure.here("layers").here) == set(stack_of(structure).order)
    assert repr(structure.here("token ids", "logits")).startswith("*token ids* → embed_tokens")
    with pytest.raises(BadInputError, match=r"no 'attention' in this model\. What can be highlighted: token ids,"):
        structure.here("attention")


def test_what_is_no_model_is_named():
    with pytest.raises(BadInputError, match="not a str"):
        show_structure("smollm2-135m")
