"""From many prompts to one answer each: `python -m helpers.batch`, its files, and the engines that answer.

The names in `__init__.pyi` are this package's public interface, and the only ones that notebooks use. Each is imported
when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
