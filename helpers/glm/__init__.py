"""GLM-4-9B-Chat and GLM-4V-9B from the folders that Zhipu published, without the code that came with them.

Importing this package registers the model type `chatglm` with transformers, so that these folders load
like any other model, with `device_map`, `dtype`, `quantization_config` and `save_pretrained`:

>>> import helpers.glm
>>> from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
>>> model = AutoModelForCausalLM.from_pretrained("glm-4v-9b")  # doctest: +SKIP
>>> processor = AutoProcessor.from_pretrained("glm-4v-9b")  # doctest: +SKIP
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from helpers.glm.checkpoint import ORIGINAL_WEIGHTS
from helpers.glm.configuration import ChatGLMConfig, ChatGLMVisionConfig
from helpers.glm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel, ExpandedInputs
from helpers.glm.processing import MEAN, STD, ChatGLMImageProcessor, ChatGLMProcessor
from helpers.glm.tokenization import ChatGLM4Tokenizer
from helpers.glm.vision import VisionTower

__all__ = [
    "ChatGLM4Tokenizer",
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMImageProcessor",
    "ChatGLMModel",
    "ChatGLMProcessor",
    "ChatGLMVisionConfig",
    "ExpandedInputs",
    "MEAN",
    "STD",
    "VisionTower",
]

AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
AutoModel.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)  # as published
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(ChatGLMConfig, ChatGLMProcessor, exist_ok=True)
# The tokenizer is found by its name in tokenizer_config.json. If it were registered for ChatGLMConfig itself, the
# folder's own code would replace it whenever a caller passes trust_remote_code=True, as old examples do.
AutoTokenizer.register(ChatGLMVisionConfig, ChatGLM4Tokenizer, exist_ok=True)
register_checkpoint_conversion_mapping("chatglm", ORIGINAL_WEIGHTS, overwrite=True)
