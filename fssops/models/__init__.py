"""The systems: one visible table, one function that builds a row of it.

A model file is imported only when its row is asked for, so that ``import fssops`` stays quick.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, overload

from fssops.spelling import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from fssops.models.insid3 import INSID3
    from fssops.models.mask2former import Mask2Former
    from fssops.models.mask2former_vis import Mask2FormerVIS
    from fssops.models.maskformer import MaskFormer
    from fssops.models.mm_former import MMFormer, MMFormerSegmenter
    from fssops.models.mp_former import MPFormer
    from fssops.models.msanet import MSANet
    from fssops.models.panet import PANet
    from fssops.models.per_pixel_baseline import PerPixelBaseline
    from fssops.models.prototype_matching import PrototypeMatching
    from fssops.models.pspnet import PSPNet


@dataclass(frozen=True)
class ModelRow:
    """A line of :data:`MODELS`.

    Attributes:
        name: what ``create_model`` takes.
        module: the file or package that holds the model and its configuration.
        model: name of the ``nn.Module`` class there. Its only argument is a configuration, the frozen dataclass there
            with the same name and "Config".
        task: "few-shot", "universal", "semantic" or "video".
        paper: where the model was published.
        weights: the layouts of weights it accepts, for readers.
    """

    name: str
    module: str
    model: str
    task: str
    paper: str
    weights: tuple[str, ...]

    def config_class(self) -> type[Any]:
        """The configuration dataclass of this row."""
        return getattr(importlib.import_module(self.module), f"{self.model}Config")  # type: ignore[no-any-return]

    def model_class(self) -> type[nn.Module]:
        """The module class of this row."""
        return getattr(importlib.import_module(self.module), self.model)  # type: ignore[no-any-return]


MODELS: dict[str, ModelRow] = {
    row.name: row
    for row in (
        ModelRow(
            name="panet",
            module="fssops.models.panet",
            model="PANet",
            task="few-shot",
            paper="Wang et al., PANet, ICCV 2019",
            weights=(
                "fssops",
                "authors (kaixin96/PANet)",
                "torchvision VGG-16 / ResNet, EfficientNet-Lite, Swin or ViT backbone",
            ),
        ),
        ModelRow(
            name="msanet",
            module="fssops.models.msanet",
            model="MSANet",
            task="few-shot, two stages",
            paper="Iqbal et al., MSANet, 2022",
            weights=("fssops", "authors (AIVResearch/MSANet)", "authors' base learner, or one trained here"),
        ),
        ModelRow(
            name="pspnet",
            module="fssops.models.pspnet",
            model="PSPNet",
            task="base classes",
            paper="Zhao et al., PSPNet, CVPR 2017; as base learner: Lang et al., BAM, CVPR 2022",
            weights=(
                "fssops",
                "authors' base learner (BAM, MSANet)",
                "deep-stem ResNet / torchvision VGG-16-BN, EfficientNet-Lite, Swin or ViT backbone",
            ),
        ),
        ModelRow(
            name="mm_former",
            module="fssops.models.mm_former",
            model="MMFormer",
            task="few-shot, proposals",
            paper="Jiao et al., Mask matching transformer, NeurIPS 2022",
            weights=("fssops", "authors (Mask-Matching-Transformer, both steps)", "a segmenter trained here"),
        ),
        ModelRow(
            name="mm_former_segmenter",
            module="fssops.models.mm_former",
            model="MMFormerSegmenter",
            task="proposals",
            paper="Jiao et al., Mask matching transformer, NeurIPS 2022, first stage",
            weights=(
                "fssops",
                "authors (Mask-Matching-Transformer, step 1)",
                "deep-stem ResNet, EfficientNet-Lite, Swin or ViT backbone",
            ),
        ),
        ModelRow(
            name="insid3",
            module="fssops.models.insid3",
            model="INSID3",
            task="few-shot",
            paper="INSID3: training-free in-context segmentation with DINOv3, CVPR 2026",
            weights=("fssops", "official ViT (facebookresearch/dino, dinov2, dinov3)", "transformers ViT"),
        ),
        ModelRow(
            name="prototype_matching",
            module="fssops.models.prototype_matching",
            model="PrototypeMatching",
            task="few-shot",
            paper="after PANet (Wang et al., ICCV 2019) and self-support matching (Fan et al., ECCV 2022)",
            weights=("fssops", "a backbone's alone"),
        ),
        ModelRow(
            name="maskformer",
            module="fssops.models.maskformer",
            model="MaskFormer",
            task="universal",
            paper="Cheng et al., Per-pixel classification is not all you need, NeurIPS 2021",
            weights=(
                "fssops",
                "authors (facebookresearch/MaskFormer)",
                "transformers",
                "ResNet / Swin / EfficientNet-Lite / ViT backbone",
            ),
        ),
        ModelRow(
            name="mask2former",
            module="fssops.models.mask2former",
            model="Mask2Former",
            task="universal",
            paper="Cheng et al., Masked-attention mask transformer, CVPR 2022",
            weights=(
                "fssops",
                "authors (facebookresearch/Mask2Former)",
                "transformers",
                "ResNet / Swin / EfficientNet-Lite / ViT backbone",
            ),
        ),
        ModelRow(
            name="mask2former_vis",
            module="fssops.models.mask2former_vis",
            model="Mask2FormerVIS",
            task="video",
            paper="Cheng et al., Mask2Former for video instance segmentation, 2021",
            weights=(
                "fssops",
                "authors (facebookresearch/Mask2Former), of videos or images",
                "transformers (images)",
                "fssops mask2former (images)",
                "ResNet / Swin / EfficientNet-Lite / ViT backbone",
            ),
        ),
        ModelRow(
            name="mp_former",
            module="fssops.models.mp_former",
            model="MPFormer",
            task="universal",
            paper="Zhang et al., MP-Former: Mask-piloted transformer for image segmentation, CVPR 2023",
            weights=("fssops", "authors (IDEA-Research/MP-Former)", "ResNet / Swin / EfficientNet-Lite / ViT backbone"),
        ),
        ModelRow(
            name="per_pixel_baseline",
            module="fssops.models.per_pixel_baseline",
            model="PerPixelBaseline",
            task="semantic",
            paper="Cheng et al., Per-pixel classification is not all you need, NeurIPS 2021",
            weights=(
                "fssops",
                "authors (facebookresearch/MaskFormer)",
                "ResNet / Swin / EfficientNet-Lite / ViT backbone",
            ),
        ),
    )
}
"""Every system, by name."""


def list_models() -> list[str]:
    """Names that :func:`create_model` accepts."""
    return list(MODELS)


# What a type checker is told; the table above is what is built.
@overload
def create_model(name: Literal["panet"], **options: Any) -> PANet: ...


@overload
def create_model(name: Literal["msanet"], **options: Any) -> MSANet: ...


@overload
def create_model(name: Literal["pspnet"], **options: Any) -> PSPNet: ...


@overload
def create_model(name: Literal["mm_former"], **options: Any) -> MMFormer: ...


@overload
def create_model(name: Literal["mm_former_segmenter"], **options: Any) -> MMFormerSegmenter: ...


@overload
def create_model(name: Literal["insid3"], **options: Any) -> INSID3: ...


@overload
def create_model(name: Literal["prototype_matching"], **options: Any) -> PrototypeMatching: ...


@overload
def create_model(name: Literal["maskformer"], **options: Any) -> MaskFormer: ...


@overload
def create_model(name: Literal["mask2former"], **options: Any) -> Mask2Former: ...


@overload
def create_model(name: Literal["mask2former_vis"], **options: Any) -> Mask2FormerVIS: ...


@overload
def create_model(name: Literal["mp_former"], **options: Any) -> MPFormer: ...


@overload
def create_model(name: Literal["per_pixel_baseline"], **options: Any) -> PerPixelBaseline: ...


@overload
def create_model(name: str, **options: Any) -> nn.Module: ...


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: one of :func:`list_models`.
        **options: fields of the model's configuration dataclass, e.g. ``backbone="resnet50"``.

    Raises:
        ValueError: the name or an option is unknown, or a value breaks a rule of the configuration; the message
            names the nearest valid spelling.
    """
    config = create_config(name, options)
    return MODELS[name].model_class()(config)


def create_config(name: str, options: dict[str, Any]) -> Any:
    """The validated configuration of a model, from options as TOML gives them.

    Raises:
        ValueError: as :func:`create_model`.
    """
    if name not in MODELS:
        raise ValueError(
            f"create_model: name must be one of {', '.join(MODELS)}, got {name!r}{did_you_mean(name, MODELS)}"
        )
    config_class = MODELS[name].config_class()
    valid = [f.name for f in fields(config_class)]
    for option in options:
        if option not in valid:
            raise ValueError(
                f"create_model: options of {name} are {', '.join(valid)}, got {option!r}{did_you_mean(option, valid)}"
            )
    try:
        return config_class(**options)
    except ValueError as error:
        rule = str(error).removeprefix(f"{config_class.__name__}: ")
        raise ValueError(f"create_model: {name}: {rule}") from None
