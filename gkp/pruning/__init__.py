"""What stays of a pruned network, and the one mechanism that makes it so: mask, compact, count, JSON.

A pruning method decides and returns a `Plan`, a mapping from layer name to `Spec`; nothing here knows of methods, and no method
masks. The masked dense twin (`PrunedModel`) and the compact network (`.compact()`) are the same function. Train and attack the
twin: on CPU a grouped convolution of CIFAR width is 2-7 times slower than a dense one.

Kinds of spec, recognised in JSON by one field each:

| spec | JSON | what stays |
|---|---|---|
| `GroupedSpec` | {"group_of_filter": [C_out ints], "kept": [[K ints] * groups]} | per filter group, K input channels |
| `FilterSpec` | {"kept_filters": [K ints]} | whole filters; who is coupled to them: `gkp.pruning.coupling` |

A new kind is a frozen dataclass that inherits `Spec` under `@spec_kind("its JSON field")`, in the file of its method, and
overrides what it needs:

- `check(name, conv)`: BadInput unless it fits the dense convolution;
- to hold weights at zero: `removed(layer)` -> {parameter: bool mask}, and `compact(layer)` -> the small module;
- to let filters go whole, with their BatchNorm channels and readers: `removed_filters(conv)`; the rest is done for it;
- to restructure a layer (two factors instead of one convolution, extra 1x1 convolutions): `restructures = True` and
  `twin(conv)` -> the module that is trained in its place, its weights made from the dense ones and from whatever else the
  method put into fields of the spec that JSON leaves out. On loading a saved model `twin` is called on a dense convolution of
  new weights and a spec read from JSON: only the shapes must come out right, the weights are filled in afterwards;
- `to_json()` and `from_json(fields)`, plain types.

A `Plan` goes: `convs` (check) -> `cuts` (coupled channels) -> `make_twin` -> `removed` (masks) -> training -> `shrink`.
`plan_of(net)` tells by which plan a twin or a compact network was pruned, `masked_twin(compact)` gives the twin again.
"""

# Importing any module of this package registers every method, and every kind of spec that a saved network may hold.
import gkp.pruning.methods
import gkp.pruning.sr_gkp  # noqa: F401
from gkp.pruning.coupling import Couplings, Cut, find_input_shape, shape_copy
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec, kept_count
from gkp.pruning.methods.controls import scratch
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.overlap import Overlap, overlap
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.prune import train_pruned
from gkp.pruning.registry import MethodInfo, make_method, register
from gkp.pruning.spec import Spec, conv_like, spec_kind
from gkp.pruning.twin import PrunedModel, masked_twin

__all__ = [
    "Couplings",
    "Cut",
    "FilterMethod",
    "FilterSpec",
    "GroupedKernelConv2d",
    "GroupedSpec",
    "MethodInfo",
    "Overlap",
    "Plan",
    "PrunedModel",
    "Spec",
    "conv_like",
    "find_input_shape",
    "kept_count",
    "make_method",
    "masked_twin",
    "overlap",
    "plan_of",
    "register",
    "scratch",
    "shape_copy",
    "spec_kind",
    "train_pruned",
]
