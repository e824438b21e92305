"""Names of torch's operations, by what they do to the values of feature maps; see `gkp.pruning.tracing`."""

from __future__ import annotations

MOVES = frozenset(
    "alias detach view _unsafe_view reshape _reshape_alias permute transpose t slice select split split_with_sizes chunk "  # noqa: SIM905
    "unbind expand squeeze unsqueeze cat stack index index_select narrow roll flip pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle repeat constant_pad_nd unfold unsafe_split unsafe_chunk movedim tile".split()
)
POINTWISE = frozenset(("hardswish", "rsub"))  # which torch does not call so
COPIES = frozenset(("clone", "_to_copy", "contiguous", "lift_fresh", "dropout", "feature_dropout"))
SPATIAL = frozenset(
    "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "  # noqa: SIM905
    "mkldnn_max_pool2d mkldnn_adaptive_avg_pool2d reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d "
    "upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa".split()
)
REDUCTIONS = frozenset(
    ("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "prod", "max", "min")
)
