"""Every backbone by name: one table, and one function that builds a row of it for any system.

To add one: its file with a :class:`Backbone`, its row in :data:`BACKBONES`, its test, and where there are published
weights their names in ``fssops/weights``. ``transformers:NAME`` is a row made of transformers' AutoBackbone of a name
on the hub or of a folder (:mod:`fssops.models.backbones.auto_backbone`).

Which system takes which, by these rules:

- Few-shot systems and PSPNet take all, for the maps "res2".."res5", built for stride 8 or the next that a backbone can
  be built for (:func:`finest_stride`): the patch of a plain transformer, 16 of an EfficientNet-Lite, 32 of a Swin.
  MM-Former, which compares maps of one size, resizes them to strides 4 and 8, bilinear.
- MSANet compares all blocks of the last three stages where they can be watched (ResNet, VGG-16, transformers of one
  scale, by quarters), else the outputs of these stages.
- INSID3 takes the vision transformers of :data:`fssops.models.backbones.vit.VIT`, whose positions it takes out.
- The others need maps at strides 4, 8, 16 and 32, and make them of the last map of a backbone of one scale
  (:mod:`fssops.models.backbones.feature_pyramid`). VGG-16 has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fssops.models.backbones.backbone import STAGES, Backbone
from fssops.models.backbones.efficientnet_lite import EFFICIENTNET_LITE, STAGE_NAMES, EfficientNetLite, LiteForm
from fssops.models.backbones.resnet import Dilations, ResNet
from fssops.models.backbones.swin import SWIN, SwinForm, SwinTransformer
from fssops.models.backbones.vgg import VGG16
from fssops.models.backbones.vit import VIT, VisionTransformer, ViTForm
from fssops.models.layers.convolution import Norm
from fssops.spelling import did_you_mean


@dataclass(frozen=True)
class BackboneRow:
    """A line of :data:`BACKBONES`.

    Attributes:
        build: makes the backbone; takes ``taps`` and the arguments of :func:`build_backbone` that ``options`` names.
        channels: of its maps at width 64, by name, finest first.
        strides: of the same maps, where it is built for its largest stride.
        built_for: strides that its coarsest map can have, the usual one first.
        options: further arguments of :func:`build_backbone` that mean something to it.
        further: names of maps between those of ``channels``, returned only where they are asked for.
    """

    build: Callable[..., Backbone]
    channels: dict[str, int]
    strides: dict[str, int]
    built_for: tuple[int, ...]
    options: tuple[str, ...]
    further: tuple[str, ...] = ()

    @property
    def one_scale(self) -> bool:
        """Whether all maps have one stride."""
        return len(set(self.strides.values())) == 1

    def tap_at(self, stride: int, built_for: int) -> str | None:
        """The deepest map at a stride, of the backbone as it is built for ``built_for``; None where there is none."""
        return next((name for name in reversed(self.strides) if min(self.strides[name], built_for) == stride), None)


def _resnet(depth: int, *channels: int) -> BackboneRow:
    options = ("stride", "dilations", "deep_stem", "width", "norm", "final_relu")
    build = partial(ResNet, depth)
    return BackboneRow(build, _by_stage(channels), _by_stage((4, 8, 16, 32)), (32, 16, 8), options)


def _deeplab(depth: int, *channels: int) -> BackboneRow:
    """Three-convolution stem and multi-grid dilations at stride 32: MaskFormer's R50c and R101c."""
    build = partial(ResNet, depth, deep_stem=True, dilations=(1, 1, 1, (1, 2, 4)))
    return BackboneRow(build, _by_stage(channels), _by_stage((4, 8, 16, 32)), (32,), ("norm",))


def swin_row(form: SwinForm) -> BackboneRow:
    """The row of a Swin of any size."""
    channels = tuple(form.channels * 2**stage for stage in range(4))
    build = partial(SwinTransformer, form)
    return BackboneRow(build, _by_stage(channels), _by_stage((4, 8, 16, 32)), (32,), ("drop_path",))


def _efficientnet_lite(form: LiteForm, *channels: int) -> BackboneRow:
    """Published at stride 32; at 16 its last stages are dilated."""
    build = partial(EfficientNetLite, form)
    return BackboneRow(
        build, _by_stage(channels), _by_stage((4, 8, 16, 32)), (32, 16), ("stride", "norm"), further=STAGE_NAMES
    )


def vit_row(form: ViTForm) -> BackboneRow:
    """The row of a vision transformer of any size."""
    width, patch = dict.fromkeys(STAGES, form.width), dict.fromkeys(STAGES, form.patch)
    return BackboneRow(partial(VisionTransformer, form), width, patch, (form.patch,), ("drop_path",))


def _by_stage(numbers: Sequence[int]) -> dict[str, int]:
    return dict(zip(STAGES, numbers, strict=True))


BACKBONES: dict[str, BackboneRow] = {
    "vgg16": BackboneRow(
        VGG16,
        channels={"res1": 64, "res2": 128, "res3": 256, "res4": 512, "res5": 512},
        strides={"res1": 2, "res2": 4, "res3": 8, "res4": 16, "res5": 16},
        built_for=(16, 8),
        options=("stride", "width", "norm", "final_relu"),
    ),
    "resnet18": _resnet(18, 64, 128, 256, 512),
    "resnet34": _resnet(34, 64, 128, 256, 512),
    "resnet50": _resnet(50, 256, 512, 1024, 2048),
    "resnet101": _resnet(101, 256, 512, 1024, 2048),
    "resnet50_deeplab": _deeplab(50, 256, 512, 1024, 2048),
    "resnet101_deeplab": _deeplab(101, 256, 512, 1024, 2048),
    "efficientnet_lite0": _efficientnet_lite(EFFICIENTNET_LITE["efficientnet_lite0"], 24, 40, 112, 320),
    "efficientnet_lite1": _efficientnet_lite(EFFICIENTNET_LITE["efficientnet_lite1"], 24, 40, 112, 320),
    "efficientnet_lite2": _efficientnet_lite(EFFICIENTNET_LITE["efficientnet_lite2"], 24, 48, 120, 352),
    "swin_tiny": swin_row(SWIN["swin_tiny"]),
    "swin_small": swin_row(SWIN["swin_small"]),
    "swin_base": swin_row(SWIN["swin_base"]),
    "swin_large": swin_row(SWIN["swin_large"]),
    **{name: vit_row(form) for name, form in VIT.items()},
}
"""Every backbone, by name."""

TRANSFORMERS = "transformers:"
"""How the names of transformers' backbones begin here."""


def row_of(name: str) -> BackboneRow:
    """The row of a backbone.

    Raises:
        ValueError: the name is unknown, or transformers has no such backbone.
    """
    if name.startswith(TRANSFORMERS):
        from fssops.models.backbones.auto_backbone import TransformersBackbone, maps_of

        source = name.removeprefix(TRANSFORMERS)
        channels, strides = maps_of(source)
        return BackboneRow(partial(TransformersBackbone, source), channels, strides, (max(strides.values()),), ())
    if name not in BACKBONES:
        names = f"{', '.join(BACKBONES)} or {TRANSFORMERS}NAME-OR-FOLDER"
        raise ValueError(f"backbone must be one of {names}, got {name!r}{did_you_mean(name, BACKBONES)}")
    return BACKBONES[name]


def finest_stride(name: str, wanted: int) -> int:
    """The least stride from ``wanted`` on that a backbone can be built for; its greatest where all are less."""
    built_for = row_of(name).built_for
    return min((stride for stride in built_for if stride >= wanted), default=max(built_for))


def check_backbone(config: Any, *strides: int) -> None:
    """Check that a configuration's backbone is known, has what its options ask for, and what the system needs.

    Args:
        config: a dataclass with ``backbone``, perhaps with ``backbone_width`` and ``drop_path``.
        *strides: of maps that the backbone must have, unless it is of one scale.

    Raises:
        ValueError: names the configuration, the option, its rule and its value.
    """
    where, name = type(config).__name__, config.backbone
    try:
        row = row_of(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not row.one_scale and None in [row.tap_at(stride, max(row.strides.values())) for stride in strides]:
        at = ", ".join(map(str, strides))
        raise ValueError(f"{where}: backbone must have maps at strides {at}, or of one scale, got {name!r}")
    width = getattr(config, "backbone_width", 64)
    if width != 64 and "width" not in row.options:
        raise ValueError(f"{where}: backbone_width of {name} must be 64, got {width}")
    rate = getattr(config, "drop_path", 0)
    if rate not in (0, getattr(type(config), "drop_path", 0)) and "drop_path" not in row.options:
        raise ValueError(f"{where}: drop_path of {name} must be 0, since it has none, got {rate}")


def build_backbone(
    name: str,
    *,
    taps: Sequence[str | int] | None = None,
    stride: int | None = None,
    dilations: Dilations | None = None,
    deep_stem: bool = False,
    width: int = 64,
    norm: Norm | None = None,
    final_relu: bool = True,
    drop_path: float = 0.0,
    frozen: bool = False,
) -> Backbone:
    """A backbone with random weights, but for those of transformers.

    What a backbone does not have (``options`` of its row) is not applied to it: a Swin has no batch normalisation to
    freeze. A stride and a width, which change what comes out, are refused instead.

    Args:
        name: a row of :data:`BACKBONES`, or "transformers:" and a name or folder, whose weights then come with it.
        taps: maps to return, by name or by stride (the deepest at it); None: all that its row has.
        stride: of the coarsest map; None is the usual one, 32 (He et al.), of VGG 16.
        dilations: of the 3x3 convolutions of "res2".."res5"; None makes up for strides left out, as PSPNet does.
        deep_stem: of a ResNet, three 3x3 convolutions for the 7x7 one (PSPNet); torchvision's has none.
        width: channels of the first convolution; 64 is published.
        norm: normalisation; None is "frozen" for a ResNet, as detectron2 trains, "none" for VGG, as published, and
            "frozen" for an EfficientNet-Lite.
        final_relu: whether the last stage ends with its ReLU; PANet's does not.
        drop_path: of a Swin or a vision transformer, the rate of its last block, of the others in proportion to depth.
        frozen: no parameter is trained.

    Raises:
        ValueError: the name is unknown, or the backbone cannot be built so.
    """
    try:
        row = row_of(name)
    except ValueError as error:
        raise ValueError(f"build_backbone: {error}") from None
    built_for = row.built_for[0] if stride is None else stride
    if built_for not in row.built_for:
        strides = ", ".join(map(str, row.built_for))
        raise ValueError(f"build_backbone: stride of {name} must be one of {strides}, got {stride}")
    if width != 64 and "width" not in row.options:
        raise ValueError(f"build_backbone: width of {name} must be 64, got {width}")
    wanted = tuple(row.channels) if taps is None else taps
    names = [row.tap_at(tap, built_for) if isinstance(tap, int) else tap for tap in wanted]
    known = (*row.channels, *row.further)
    if None in names or set(names) - set(known):
        raise ValueError(f"build_backbone: taps of {name} must be among {', '.join(known)}, got {wanted}")
    given: dict[str, Any] = {
        "stride": built_for,
        "dilations": dilations,
        "deep_stem": deep_stem,
        "width": width,
        "norm": norm,
        "final_relu": final_relu,
        "drop_path": drop_path,
    }
    options = {option: given[option] for option in row.options if given[option] is not None}
    backbone = row.build(taps=names, **options)
    return backbone.requires_grad_(False) if frozen else backbone
