"""What happens inside a language model when it answers: the code behind the notebooks.

The names in `__init__.pyi` are the course's public names. Each is imported when it is first used, so `import helpers`
itself is fast and imports neither `torch` nor `transformers`:

>>> import helpers
>>> helpers.list_models()[0].name
'smollm2-135m'

Data flows through the package as `models -> text -> inside -> a dataclass -> views`: `models` loads a model by name,
`text` turns messages into token ids, `inside` returns plain tensors in frozen dataclasses, and `views` draws them.
`conversation` and `batch` build on `inside`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
