"""Watch essential sparsity and abrupt sparsification live while a model pretrains.

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so that
tools which only read a log start without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
