"""The tiny models, each made once."""

import pytest
import tiny_models
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A function: the folder of the tiny model of this name."""
    root = tmp_path_factory.mktemp("architectures")
    return lambda name: root / name if (root / name).exists() else tiny_models.build(name, root / name)


@pytest.fixture(scope="session")
def opened(folder_of):
    """A function: (model, tokenizer) of this name, as transformers opens them. Leave them as they are."""
    found = {}

    def open_model(name, **settings):
        key = (name, *settings.items())
        if key not in found:
            config = transformers.AutoConfig.from_pretrained(folder_of(name))
            sees = hasattr(config, "vision_config")
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            model = kind.from_pretrained(folder_of(name), **settings).eval()
            found[key] = model, transformers.AutoTokenizer.from_pretrained(folder_of(name))
        return found[key]

    return open_model
