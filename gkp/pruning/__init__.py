"""Pruning: methods decide what stays of a network, a `Plan`; one mechanism masks, compacts, counts and saves.

A plan maps layer names to specs. The masked dense twin (`PrunedModel`) and the compact network (`.compact()`) are the same
function. Train and attack the twin: on CPU a grouped convolution of CIFAR width is 2-7 times slower than a dense one.

| spec | JSON, which recognises it by its first field | what stays |
|---|---|---|
| `GroupedSpec` | {"group_of_filter": [C_out ints], "kept": [[K ints] * groups]} | per filter group, K input channels |
| `FilterSpec` | {"kept_filters": [K ints]} | whole filters; for their couplings see `gkp.pruning.coupling` |
| `BlockSpec` | {"removed_block": true}, by the name of a block | of a residual block its shortcut |

A new kind is a frozen dataclass that inherits `Spec` under `@spec_kind("its JSON field")`, in the file of its method, and
overrides what it needs:

- `check(name, conv)`: BadInput unless it fits the dense convolution;
- to hold weights at zero: `removed(layer)` -> {parameter: bool mask}, and `compact(layer)` -> the small module;
- to let filters go whole, with their BatchNorm channels and readers: `removed_filters(conv)`; the rest is done for it;
- to restructure a layer (two factors instead of one convolution, extra 1x1 convolutions): `restructures = True` and
  `twin(conv)` -> the module that is trained in its place. Its weights are made from the dense ones and from whatever else the
  method put into fields of the spec that JSON leaves out. On loading a saved network `twin` is called on a dense convolution of
  new weights and a spec read from JSON: only the shapes must come out right, the weights are filled in afterwards;
- to prune another kind of module than a convolution: `prunes`, that kind; the plan has the spec by the module's name;
- `to_json()` and `from_json(fields)`, plain types.

A `Plan` is applied in this order: `layers` (check) -> `cuts` (coupled channels) -> `make_twin` -> `removed` (masks) -> training
-> `shrink`. `plan_of(net)` gives the plan of a twin or a compact network, `masked_twin(compact)` the twin again.
"""

# Importing any module of this package registers every method, and every kind of spec that a saved network may hold.
import gkp.pruning.methods
import gkp.pruning.sr_gkp  # noqa: F401
from gkp.networks.copies import shape_copy
from gkp.pruning.blocks import BlockSpec, residual_blocks
from gkp.pruning.coupling import Couplings, Cut
from gkp.pruning.filters import FilterSpec
from gkp.pruning.grouped import GroupedKernelConv2d, GroupedSpec, kept_count
from gkp.pruning.methods.controls import scratch
from gkp.pruning.methods.filter_method import FilterMethod
from gkp.pruning.overlap import Overlap, overlap
from gkp.pruning.plan import Plan, plan_of
from gkp.pruning.probe import find_input_shape
from gkp.pruning.prune import train_pruned
from gkp.pruning.registry import MethodInfo, make_method, register
from gkp.pruning.spec import Spec, conv_like, spec_kind
from gkp.pruning.twin import PrunedModel, masked_twin

__all__ = [
    "BlockSpec",
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
    "residual_blocks",
    "scratch",
    "shape_copy",
    "spec_kind",
    "train_pruned",
]
