"""The methods that SR-GKP is compared with, one a file. Every module here is imported, and so registered, by itself."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
