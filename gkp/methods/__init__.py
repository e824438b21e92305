"""One pruning method a file, one registry. A new file here registers itself: nothing else has to change."""

from importlib import import_module
from pkgutil import iter_modules

from gkp.methods._filters import FilterMethod
from gkp.methods.registry import MethodInfo, make_method, methods, prune, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

from gkp.methods.scratch import scratch  # noqa: E402
from gkp.methods.training_time import train_pruned  # noqa: E402

__all__ = ["FilterMethod", "MethodInfo", "make_method", "methods", "prune", "register", "scratch", "train_pruned"]
