"""GLM-4-9B-Chat and GLM-4V-9B from the folders Zhipu published, without the code that came with them.

Importing this package teaches transformers the model type `chatglm`, so that these folders load as
any other model does, with `device_map`, `dtype`, `quantization_config`, `save_pretrained`:

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
# Found by its name in tokenizer_config.json. Registered for ChatGLMConfig itself, it would give way to the
# folder's own code when a caller passes trust_remote_code=True, as old examples do.
AutoTokenizer.register(ChatGLMVisionConfig, ChatGLM4Tokenizer, exist_ok=True)
register_checkpoint_conversion_mapping("chatglm", ORIGINAL_WEIGHTS, overwrite=True)
