"""Any backbone of transformers' AutoBackbone, by its name on the hub or a folder; needs the extra fssops[transformers].

It comes with its weights, read from safetensors alone; code of a repository is never run. Its stages are cut into
quarters: "res2".."res5" are their last outputs, which of a backbone with four stages are these. Images are padded to a
multiple of its coarsest stride and come out as maps that cover the image alone; colours are normalised as its
``preprocessor_config.json`` says, where it has one, else by ImageNet's mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fssops.models.backbones.backbone import STAGES, Backbone, padded_to, quarters, without_padding
from fssops.normalisation import MEAN, STD

_PROBE = 224
"""Side of the image, of no content, by which strides are found: a multiple of the usual patches and strides."""


def _configuration(source: str) -> tuple[Any, dict[str, str]]:
    """The configuration of a backbone, and which of its stages are "res2".."res5".

    Raises:
        ValueError: transformers is not installed, or has no such backbone.
    """
    try:
        from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig
    except ImportError:
        raise ValueError(
            f"backbone transformers:{source} needs the package transformers: pip install 'fssops[transformers]'"
        ) from None
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone transformers:{source} must be a name on the hub or a folder with a config.json, got: "
            f"{_first_line(error)}"
        ) from None
    kind = config.model_type
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING or kind == "timm_backbone":
        raise ValueError(f"backbone transformers:{source} must be a backbone of transformers' own, got a {kind}")
    stages = [stage for stage in config.stage_names if stage not in ("stem", "embeddings")]
    if len(stages) < len(STAGES):
        raise ValueError(f"backbone transformers:{source} must have at least {len(STAGES)} stages, got {len(stages)}")
    return config, {tap: stages[number] for tap, number in quarters(len(stages)).items()}


def _built(source: str, taps: Sequence[str]) -> Any:
    """The network, which returns the stages of these taps; without weights where tensors are made without content."""
    config, stages = _configuration(source)
    from transformers import MODEL_FOR_BACKBONE_MAPPING

    config.out_features = [stages[tap] for tap in STAGES if tap in taps]
    network_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    if torch.get_default_device().type == "meta":
        return network_class(config)
    try:
        # AutoBackbone.from_pretrained would ask the hub whether there is such a folder.
        network, told = network_class.from_pretrained(
            source, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"backbone transformers:{source} must have weights as safetensors, got: {_first_line(error)}"
        ) from None
    missing, wanted = told["missing_keys"], len(network.state_dict())
    if 2 * len(missing) > wanted:
        raise ValueError(
            f"backbone transformers:{source} must have weights of its {config.model_type}, got none for {len(missing)} "
            f"of {wanted} tensors, e.g. {min(missing)}"
        )
    return network


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@cache
def maps_of(source: str) -> tuple[dict[str, int], dict[str, int]]:
    """Channels and strides of "res2".."res5", found without weights.

    Raises:
        ValueError: transformers is not installed, or has no such backbone.
    """
    with torch.device("meta"), torch.no_grad():
        maps = _built(source, STAGES).eval()(torch.zeros(1, 3, _PROBE, _PROBE)).feature_maps
    channels = {tap: int(x.shape[1]) for tap, x in zip(STAGES, maps, strict=True)}
    return channels, {tap: round(_PROBE / x.shape[-1]) for tap, x in zip(STAGES, maps, strict=True)}


def _statistics(source: str) -> tuple[Sequence[float], Sequence[float]]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError):
        return MEAN, STD
    return said.get("image_mean") or MEAN, said.get("image_std") or STD


class TransformersBackbone(Backbone):
    """A backbone of transformers behind our interface; it does not count its layers.

    Args:
        source: name on the hub, or folder.
        taps: which of "res2".."res5" to return.

    Raises:
        ValueError: transformers is not installed, has no such backbone, or there are no weights.
    """

    name = "transformers"
    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, source: str, *, taps: Sequence[str] = STAGES) -> None:
        super().__init__()
        self.taps, self.layer_counts = tuple(tap for tap in STAGES if tap in taps), {}
        self.channels, self.strides = maps_of(source)
        self.network = _built(source, self.taps)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in _statistics(source))
        ours, spread = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        self.register_buffer("input_scale", spread / std, persistent=False)
        self.register_buffer("input_shift", (ours - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] to tap -> [B, C, ceil(H / stride), ceil(W / stride)]."""
        size = (int(images.shape[2]), int(images.shape[3]))
        padded = padded_to(max(self.strides.values()), images, type(self).__name__)
        maps = self.network(padded * self.input_scale + self.input_shift).feature_maps
        return {tap: without_padding(x, self.strides[tap], size) for tap, x in zip(self.taps, maps, strict=True)}
