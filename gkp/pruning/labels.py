"""Labels: beside a tensor of feature maps, the number of the filter that each of its values comes from.

A tensor keeps them as `_gkp_labels`, and as `_gkp_after` whether a layer comes before it; `gkp.pruning.tracing` follows both
through a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NOBODY = -1  # a value that comes from no filter: the image, a constant, padding
ALONG = frozenset(("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod"))


def labels_of(tensor: Any) -> Tensor | None:
    """The labels of a tensor, of its shape; None where no value comes from a filter."""
    return getattr(tensor, "_gkp_labels", None) if isinstance(tensor, Tensor) else None


def is_after(tensor: Tensor) -> bool:
    """Whether a layer comes before this tensor."""
    return getattr(tensor, "_gkp_after", False)


def put_labels(tensor: Tensor, along: Tensor | None, axis: int) -> None:
    """Label `tensor` by one entry for each place on `axis`."""
    if along is None:
        tensor._gkp_labels = None  # type: ignore[attr-defined]
    else:
        shape = [1] * tensor.ndim
        shape[axis] = len(along)
        tensor._gkp_labels = along.int().cpu().view(shape).expand(tensor.shape)  # type: ignore[attr-defined]


def constant(labels: Tensor, dims: Iterable[int]) -> bool:
    """Whether labels stay the same along these dimensions."""
    return not set(dims) & set(varying(labels))


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels change."""
    candidates = [d for d in range(labels.ndim) if labels.shape[d] > 1 and labels.stride(d) != 0]
    return [d for d in candidates if not torch.equal(labels, labels.narrow(d, 0, 1).expand_as(labels))]


def moved(func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
    """The same move made with the labels; None if that does not work."""

    def swap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        labels = labels_of(value)
        return torch.full((1,), NOBODY, dtype=torch.int32).expand(value.shape) if labels is None else labels

    name = func._overloadpacket.__name__
    given = (args, kwargs) if name not in ("index", "index_select") else (args[:1], {})
    index = args[len(given[0]) :]
    if any(labels_of(value) is not None for value in tree_leaves(index)):
        return None  # which values come depends on features
    args, kwargs = tree_map(swap, given)
    args = (*args, *index)
    if name == "constant_pad_nd":
        args, kwargs = (args[0], args[1], NOBODY), {}
    try:
        if name in ("view", "_unsafe_view", "_reshape_alias"):  # labels are spread out without memory of their own
            return [args[0].reshape(args[1])]
        if any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves((args, kwargs))):
            return None  # places that are not known without numbers
        return tree_leaves(func(*args, **kwargs))
    except (RuntimeError, TypeError, IndexError):
        return None


def spatial(given: Tensor, made: list[Tensor]) -> list[Tensor | None] | None:
    """The labels after an operation on the last two dimensions."""
    labels = labels_of(given)
    if labels is None or given.ndim < 3 or not constant(labels, (labels.ndim - 1, labels.ndim - 2)):
        return None
    if any(tensor.shape[:-2] != given.shape[:-2] for tensor in made):
        return None
    return [labels[..., :1, :1].expand(tensor.shape) for tensor in made]


def reduced(name: str, args: Any, kwargs: Any, made: list[Tensor]) -> list[Tensor | None] | None:
    """The labels after a mean, a sum, a softmax ... over dimensions along which they do not change."""
    labels = labels_of(args[0])
    if labels is None:
        return None
    place = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = kwargs.get("dim", args[place] if len(args) > place else None)
    dims = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    if not all(isinstance(d, int) for d in dims):
        return None
    dims = [d % labels.ndim for d in dims]
    if not constant(labels, dims):
        return None
    if name in ALONG:
        return [labels]
    kept = labels.amax(dims, keepdim=True)
    return [kept.reshape(tensor.shape) if kept.numel() == tensor.numel() else None for tensor in made]
