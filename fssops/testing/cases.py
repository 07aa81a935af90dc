"""The cases that every implementation of an operator is tested with: CPU, emulated CUDA, CUDA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolingCase:
    """Sizes of one masked average pooling call."""

    name: str
    batch: int
    channels: int
    masks: int
    size: tuple[int, int]
    mask_size: tuple[int, int]
    resize: str
    channels_last: bool = False


MASKED_AVERAGE_POOLING = [
    PoolingCase("same_size", 2, 70, 5, (7, 9), (7, 9), "none"),
    PoolingCase("nearest_down", 2, 33, 3, (7, 9), (29, 31), "nearest"),
    PoolingCase("nearest_up", 1, 8, 2, (9, 11), (4, 3), "nearest"),
    PoolingCase("bilinear_down", 1, 40, 9, (6, 5), (25, 17), "bilinear"),
    PoolingCase("bilinear_up", 2, 5, 2, (11, 13), (4, 6), "bilinear"),
    PoolingCase("bilinear_align_corners", 1, 16, 2, (7, 8), (21, 30), "bilinear_align_corners"),
    PoolingCase("upsample_features", 2, 36, 2, (7, 9), (26, 35), "upsample_features"),
    PoolingCase("upsample_features_down", 1, 6, 2, (9, 9), (4, 5), "upsample_features"),
    PoolingCase("one_pixel", 1, 3, 1, (1, 1), (1, 1), "none"),
    PoolingCase("one_pixel_mask", 1, 3, 2, (5, 4), (1, 1), "bilinear"),
    PoolingCase("one_pixel_features", 1, 3, 2, (1, 1), (6, 7), "upsample_features"),
    PoolingCase("channels_last_same_size", 2, 70, 5, (7, 9), (7, 9), "none", channels_last=True),
    PoolingCase("channels_last_upsample", 2, 36, 2, (7, 9), (26, 35), "upsample_features", channels_last=True),
    PoolingCase("many_masks", 1, 34, 21, (8, 8), (8, 8), "none"),
    # 23 * 14 / 46 is 7; in float32, in which torch computes it, it is a little less.
    PoolingCase("nearest_at_an_integer", 1, 3, 2, (3, 46), (2, 14), "nearest"),
]


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of one masked attention call.

    ``open_share`` is the share of keys that are open to a query: None for no mask. ``pattern``: "scattered" draws every
    key alone, "runs" closes stretches of keys as regions of an image do, "last" opens the very last keys only.
    """

    name: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_size: int
    open_share: float | None = 0.5
    pattern: str = "scattered"
    mask_heads: int = 1


MASKED_ATTENTION = [
    AttentionCase("small", 2, 3, 5, 70, 32),
    AttentionCase("no_mask", 2, 2, 9, 65, 32, None),
    AttentionCase("odd_head", 1, 2, 7, 50, 20),
    AttentionCase("smallest_head", 1, 2, 3, 40, 1),
    AttentionCase("head_16", 1, 4, 17, 96, 16),
    AttentionCase("head_48", 1, 2, 6, 130, 48),
    AttentionCase("head_64", 2, 2, 18, 128, 64, 0.1, "runs"),
    AttentionCase("head_128", 1, 2, 33, 150, 128),
    AttentionCase("head_100", 1, 1, 4, 33, 100),
    AttentionCase("mask_a_head", 1, 3, 6, 66, 32, 0.3, "scattered", 3),
    AttentionCase("runs", 1, 2, 21, 600, 32, 0.1, "runs"),
    AttentionCase("last_keys_only", 1, 2, 35, 515, 32, 0.01, "last"),
    AttentionCase("many_queries", 1, 1, 150, 64, 32, 0.3, "runs"),
    AttentionCase("one_of_each", 1, 1, 1, 1, 8),
    AttentionCase("one_query", 1, 2, 1, 700, 32, 0.2, "runs"),
    AttentionCase("one_key", 2, 2, 3, 1, 24),
]


@dataclass(frozen=True)
class DeformableCase:
    """Sizes of one multi-scale deformable attention call."""

    name: str
    batch: int
    queries: int
    heads: int
    channels: int  # a head
    shapes: tuple[tuple[int, int], ...]
    points: int
    reference: int = 0  # 0 locations and weights are given; 2 points or 4 boxes, with offsets and logits
    starts: tuple[int, ...] | None = None
    tokens: int | None = None  # with starts: more than the levels take


DEFORMABLE = [
    DeformableCase("three_levels", 2, 9, 3, 32, ((6, 7), (3, 4), (2, 2)), 4),
    DeformableCase("three_levels_points", 2, 9, 3, 32, ((6, 7), (3, 4), (2, 2)), 4, 2),
    DeformableCase("three_levels_boxes", 2, 9, 3, 32, ((6, 7), (3, 4), (2, 2)), 4, 4),
    DeformableCase("odd_channels", 1, 7, 2, 13, ((5, 3), (4, 4)), 3),
    DeformableCase("odd_channels_points", 2, 5, 1, 37, ((5, 3), (4, 4)), 3, 2),
    DeformableCase("one_channel_boxes", 1, 6, 3, 1, ((4, 4), (1, 3)), 2, 4),
    DeformableCase("narrow_channels", 2, 5, 2, 8, ((3, 3),), 5, 2),
    DeformableCase("wide_channels", 1, 4, 2, 136, ((3, 5), (2, 2)), 3, 2),
    DeformableCase("sixty_four_channels", 1, 5, 2, 64, ((3, 5), (2, 2)), 4),
    DeformableCase("many_points", 1, 3, 2, 32, ((5, 6), (3, 3), (2, 3), (1, 2)), 9, 2),
    DeformableCase("one_of_everything", 1, 1, 1, 1, ((1, 1),), 1),
    DeformableCase("levels_reordered", 1, 5, 2, 16, ((2, 3), (4, 4)), 2, 0, (17, 1), 24),
    DeformableCase("levels_share_tokens", 2, 5, 2, 16, ((4, 4), (2, 4)), 2, 2, (0, 8), 16),
    DeformableCase("queries_are_tokens", 2, 102, 2, 8, ((9, 10), (4, 3)), 2, 2),
]


@dataclass(frozen=True)
class PointLossCase:
    """Sizes of one point loss call."""

    name: str
    masks: int
    size: tuple[int, int]
    mask_size: tuple[int, int]
    points: int
    targets: int = 0
    """Number of targets that an index chooses from; 0: one target a mask, in order."""
    shared_points: bool = False
    outside: float = 0.0
    """How far beyond [0, 1] points may lie."""


POINT_MASK_LOSS = [
    PointLossCase("own_points", 3, (16, 20), (64, 80), 300),
    PointLossCase("per_mask", 4, (11, 7), (23, 31), 257, targets=9),
    PointLossCase("shared_points", 5, (9, 9), (9, 9), 64, shared_points=True),
    PointLossCase("several_chunks", 2, (13, 14), (27, 40), 4500),
    PointLossCase("points_outside", 2, (6, 5), (12, 10), 200, outside=0.3),
    PointLossCase("one_point", 2, (6, 5), (12, 10), 1),
    PointLossCase("one_pixel", 2, (1, 1), (1, 1), 17, outside=0.5),
    PointLossCase("one_row", 2, (1, 8), (1, 9), 33, outside=0.2),
    PointLossCase("one_column", 2, (8, 1), (9, 1), 33, outside=0.2),
    PointLossCase("one_mask", 1, (12, 12), (30, 30), 100),
]


@dataclass(frozen=True)
class CorrelationCase:
    """Sizes and rule of one cosine correlation call."""

    name: str
    batch: int
    channels: int
    shots: int
    masks: int
    size: tuple[int, int]
    support_size: tuple[int, int]
    kept: float
    """Share of the support positions that the masks keep."""
    reduction: str = "mean"
    k: int = 1
    divisor: str = "kept"
    relu: bool = True
    eps_rule: str = "add_to_norms"
    shots_rule: str = "separate"
    soft: bool = False
    channels_last: bool = False


COSINE_CORRELATION = [
    CorrelationCase("msanet", 2, 37, 2, 1, (7, 9), (7, 9), 0.3),
    CorrelationCase("msanet_soft", 1, 24, 1, 1, (8, 8), (8, 8), 0.4, soft=True),
    CorrelationCase("dense_mean", 2, 16, 1, 1, (6, 7), (5, 8), 0.2, divisor="all"),
    CorrelationCase("prior_mask", 1, 33, 2, 1, (9, 7), (9, 7), 0.3, "max", 1, "all", False, "add_to_product"),
    CorrelationCase("max_kept_of_negatives", 1, 5, 1, 2, (4, 5), (3, 4), 0.5, "max", relu=False),
    CorrelationCase("topk", 1, 12, 2, 2, (5, 5), (5, 6), 0.5, "topk_mean", 3, relu=False, soft=True),
    CorrelationCase("topk_beyond_kept", 2, 8, 1, 1, (5, 4), (4, 4), 0.2, "topk_mean", 7, "all", False, "clamp_norms"),
    CorrelationCase("joint_shots", 2, 20, 3, 2, (5, 7), (4, 6), 0.4, shots_rule="joint"),
    CorrelationCase("joint_shots_max", 1, 20, 3, 1, (5, 7), (4, 6), 0.4, "max", shots_rule="joint"),
    CorrelationCase("product_rule_mean", 1, 9, 2, 1, (3, 5), (6, 4), 0.6, eps_rule="add_to_product", soft=True),
    CorrelationCase("channels_last", 2, 40, 2, 1, (7, 9), (5, 6), 0.4, channels_last=True),
    CorrelationCase("everything_kept", 1, 18, 1, 1, (12, 12), (13, 11), 1.0),
    CorrelationCase("one_position", 1, 3, 1, 1, (1, 1), (1, 1), 1.0),
    CorrelationCase("one_channel", 1, 1, 1, 1, (3, 4), (4, 3), 0.5),
]


@dataclass(frozen=True)
class PrototypeCase:
    """Sizes of one call of the cosine with prototypes."""

    name: str
    batch: int
    channels: int
    prototypes: int
    size: tuple[int, int]
    channels_last: bool = False


COSINE_SIMILARITY_TO_PROTOTYPES = [
    PrototypeCase("one_way", 2, 70, 2, (7, 9)),
    PrototypeCase("one_way_channels_last", 2, 70, 2, (7, 9), channels_last=True),
    PrototypeCase("five_ways", 1, 33, 6, (9, 11)),
    PrototypeCase("five_ways_channels_last", 1, 33, 6, (9, 11), channels_last=True),
    PrototypeCase("aligned", 2, 64, 3, (8, 16)),
    PrototypeCase("aligned_channels_last", 2, 64, 3, (8, 16), channels_last=True),
    PrototypeCase("many_prototypes", 1, 24, 21, (3, 4)),
    PrototypeCase("one_pixel", 1, 5, 2, (1, 1)),
    PrototypeCase("one_channel", 2, 1, 2, (3, 3)),
]
