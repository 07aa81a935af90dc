"""MSANet: few-shot segmentation by similarity over many layers and channel attention, beside a frozen base learner.

Source: Iqbal, Safarov, Bang, "MSANet: Multi-similarity and attention guidance for boosting few-shot segmentation",
2022, and github AIVResearch/MSANet at ecd5d08; base learner, ensemble and training are those of Lang et al., "Learning
what not to segment" (BAM), CVPR 2022, and github chunbolang/BAM at c0f935c.

Where the published code departs from what it means to do, ``behaviour`` chooses:

==================  ==========================================  ==============================================
what                "published"                                 "sound", the default
==================  ==========================================  ==============================================
K-shot weights      the weight of the i-th nearest support      every support has its own weight
                    goes to the i-th of the list
VGG, stage 4        similarity of the last shot alone           mean over shots
result              two affine mixed numbers, compared, and     their log ratio, so that a softmax of the
                    in training taken for logits                result is their share, in training as well
kept positions      compared with a rounded mean                equal values are kept or dropped together
gate's dropout      on the sigmoid's input                      on the hidden layer
similarity's norm   statistics stay 0 and 1                     statistics are learnt
base learner        its dropout stays active in training        frozen means frozen
ways, shots         one way, K as trained                       any
==================  ==========================================  ==============================================

With the authors' weights both give the same label maps in 1-shot evaluation, but for the rounding of kept positions.
Images of any size and aspect work with both. What the published code does outside the network is chosen elsewhere: the
evaluation protocol "msanet" stretches results as published, "fssops" compares at the image's own size; episodes never
depend on the number of loader processes here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops import ops
from fssops.models.checks import check_choices
from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.guided_decoder import ChannelGate, Embedding, GuidedDecoder, ShotScorer
from fssops.models.layers.multi_similarity import resize
from fssops.models.msanet_backbone import Outputs, TappedBackbone
from fssops.models.msanet_ensemble import as_logits, base_share, ensemble, of_all_ways
from fssops.models.msanet_records import MSANetResult, MSANetSupport, paired
from fssops.models.msanet_streams import QueryLayers, SupportLayers
from fssops.models.pspnet import Backbone, PSPNet, PSPNetConfig, cross_entropy
from fssops.structures import IGNORE, FewShotBatch


@dataclass(frozen=True)
class MSANetConfig:
    """Options of :class:`MSANet`; the defaults are the published network on Pascal-5i, 1-shot.

    Attributes:
        backbone: the published ones are vgg16, resnet50 and resnet101.
        base_classes: of the base learner, background not counted: 15 on Pascal-5i, 60 on COCO-20i.
        shots: number of supports that the learnt shot weights are for; 1 has none. Other numbers of supports are
            weighted equally.
        shot_hidden: hidden width of the shot weights; 0 is one linear map, as in BAM's first form.
        behaviour: "sound" or "published", see the module's table.
        backbone_width: channels of the first convolution; 64 is the published network.
        channels: of the embeddings and the decoder.
        similarity_channels: that the similarity maps are reduced to.
        head_channels: of the base learner's classifier.
        foreground_weight: of foreground pixels in the cross entropies of ensemble and meta learner, where background
            weighs 1. Published is 1; where objects are small and features weak, background everywhere is the best
            guess under it.
    """

    backbone: Backbone = "resnet50"
    base_classes: int = 15
    shots: int = 1
    shot_hidden: int = 2
    behaviour: Literal["sound", "published"] = "sound"
    backbone_width: int = 64
    channels: int = 256
    similarity_channels: int = 64
    head_channels: int = 512
    foreground_weight: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("base_classes", "shots", "backbone_width", "channels", "similarity_channels", "head_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"MSANetConfig: {name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.foreground_weight) and self.foreground_weight > 0):
            raise ValueError(f"MSANetConfig: foreground_weight must be above 0, got {self.foreground_weight}")
        if self.shot_hidden < 0:
            raise ValueError(f"MSANetConfig: shot_hidden must not be negative, got {self.shot_hidden}")


class MSANet(nn.Module):
    """Multi-similarity and attention network; see :class:`fssops.models.interface.FewShotModel` for its steps.

    Images may have any size and aspect; published are squares of 473 (Pascal) and 641 (COCO) pixels. ``base_learner``
    is frozen: it comes from its own training stage (:class:`fssops.models.pspnet.PSPNet`).
    """

    name = "msanet"
    parts = ("base_learner",)
    class_dependent = ("base_learner.head.classifier.",)

    def __init__(self, config: MSANetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MSANetConfig()
        published = config.behaviour == "published"
        self.base_learner = PSPNet(
            PSPNetConfig(
                backbone=config.backbone,
                base_classes=config.base_classes,
                norm="frozen",
                backbone_width=config.backbone_width,
                head_channels=config.head_channels,
            )
        ).requires_grad_(False)
        backbone = self.base_learner.backbone
        self.stride: int = self.base_learner.stride
        low, middle, _ = backbone.out_features
        self.tap_names = self._frozen().names
        self.query_embedding = Embedding(backbone.channels[middle], backbone.channels[low], config.channels, 0.5)
        self.support_embedding = Embedding(backbone.channels[middle], backbone.channels[low], config.channels, 0.5)
        self.gate = ChannelGate(config.channels, 0.5, "logits" if published else "hidden")
        self.similarity = ConvNorm(
            len(self.tap_names), config.similarity_channels, 1, bias=True, norm="batch", activation=True
        )
        self.decoder = GuidedDecoder(config.channels, config.similarity_channels)
        # Weights (1, 0): at first the ensemble passes the meta learner through.
        self.scene_merge = nn.Conv2d(2, 1, 1, bias=False)
        self.base_merge = nn.Conv2d(2, 1, 1, bias=False)
        for merge in (self.scene_merge, self.base_merge):
            with torch.no_grad():
                merge.weight.copy_(torch.tensor([1.0, 0.0]).view_as(merge.weight))
        self.shot_scorer = (
            ShotScorer(config.shots, config.shot_hidden, unsort=not published) if config.shots > 1 else None
        )

    @property
    def backbone(self) -> nn.Module:
        """The frozen backbone, which is the base learner's."""
        return self.base_learner.backbone

    def _frozen(self) -> TappedBackbone:
        return TappedBackbone(self.base_learner)

    def train(self, mode: bool = True) -> MSANet:
        """As in ``nn.Module``, but what is frozen by the configured behaviour stays in eval mode."""
        super().train(mode)
        self.base_learner.eval()
        if self.config.behaviour == "published":
            self.base_learner.head.dropout.train(mode)
            if self.similarity.norm is not None:
                self.similarity.norm.eval()
        return self

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images; with ``behaviour="published"`` see :class:`MSANetResult`."""
        height, width = batch.query_images.shape[-2:]
        found, ways = self._compare_episodes(batch), batch.support_images.shape[1]
        return self._parts(found, len(batch.support_images), ways, (height, width))["ensemble"]

    def losses(self, batch: FewShotBatch) -> dict[str, Tensor]:
        """Cross entropy of the ensemble, the meta learner and, for the record, the base learner.

        The ensemble leaves out the base class that the episode takes for novel, where ``batch.base_channels`` names it.

        Returns:
            "loss_final", "loss_meta" and, with ``batch.query_base_labels``, "loss_base", which has no gradient.
        """
        found = self._compare_episodes(batch, batch.base_channels)
        labels = batch.query_labels
        ways, size = batch.support_images.shape[1], (labels.shape[-2], labels.shape[-1])
        way = torch.arange(1, ways + 1, device=labels.device).view(1, 1, ways, 1, 1)
        target = torch.where(labels[:, :, None] == IGNORE, IGNORE, (labels[:, :, None] == way).long()).flatten(0, 2)
        share = batch.share
        counted = None if share is None else share.divisor("pixels") * ways
        weight = self.config.foreground_weight
        terms = {
            "loss_final": cross_entropy(self._as_logits(resize(found.ensemble, size)), target, counted, weight),
            "loss_meta": cross_entropy(resize(found.meta, size), target, counted, weight),
        }
        if batch.query_base_labels is not None:
            base_counted = None if share is None else share.divisor("base_pixels")
            base = resize(found.base, size)
            terms["loss_base"] = cross_entropy(base, batch.query_base_labels.flatten(0, 1), base_counted)
        return terms

    def loss_counts(self, batch: FewShotBatch) -> dict[str, float]:
        """Query pixels that are not ``IGNORE``; see :class:`fssops.models.interface.Counted`."""
        counts = {"pixels": float((batch.query_labels != IGNORE).sum())}
        if batch.query_base_labels is not None:
            counts["base_pixels"] = float((batch.query_base_labels != IGNORE).sum())
        return counts

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images [n, 3, H, W]; no gradient, the backbone is frozen.

        Returns:
            every layer that is compared, [n, C, h, w]; with VGG also the outputs of stages 3 and 4; "gram" [n, C, C],
            cosines of the second layer's channels over all positions.

        Raises:
            ValueError: images of another shape, not floating point, or smaller than the stride.
        """
        return self._frozen().encode(images)

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`match` computes of a query image alone, so that it can be kept with the features.

        Args:
            features: of :meth:`encode`.

        Returns:
            "query" [n, C, h, w] and "base" [n, 1 + base classes, h, w].
        """
        low, middle, top = self._frozen().outputs(features)
        return {"query": self.query_embedding(middle, low), "base": self.base_learner.head(top)}

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> MSANetSupport:
        """Summary of support sets; the background is what is not foreground.

        Args:
            features: of :meth:`encode`, [B * N * K, ...].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W]; not used.

        Raises:
            ValueError: with ``behaviour="published"``, another number of ways than 1 or of shots than configured.
        """
        frozen = self._frozen()
        return self._summary(
            foreground, foreground.shape[2], lambda rows, layers: frozen.replayed(features, layers.taker(rows))
        )

    def _support_of(self, batch: FewShotBatch) -> MSANetSupport:
        """Summary of a batch's support sets that never holds the layers of all their images."""
        frozen, images = self._frozen(), batch.support_images.flatten(0, 2)
        # One shot at a time where nothing is kept for gradients: the memory for maps does not grow with the shots.
        step = batch.support_images.shape[2] if torch.is_grad_enabled() else 1
        return self._summary(
            batch.support_foreground, step, lambda rows, layers: frozen.passed(images[rows], rows, layers.taker)
        )

    def _summary(
        self, foreground: Tensor, step: int, run: Callable[[Sequence[int], SupportLayers], Outputs]
    ) -> MSANetSupport:
        """Summary of support sets, ``step`` shots of all of them at a time.

        Args:
            foreground: [B, N, K, H, W].
            step: divides K.
            run: hands the compared layers of some images over, and returns the rest.

        Raises:
            ValueError: see :meth:`summarise`.
        """
        ways, shots = foreground.shape[1:3]
        if self.config.behaviour == "published" and (ways != 1 or shots != self.config.shots):
            raise ValueError(
                f"MSANet.summarise: foreground must have 1 way and {self.config.shots} shots with behaviour "
                f"'published', got {ways} and {shots}"
            )
        masks = foreground.flatten(0, 2)
        sets = len(masks) // shots
        taken = SupportLayers(masks, self._frozen().first_size(masks), exact_mean=self.config.behaviour == "published")
        parts = []
        for first in range(0, shots, step):
            rows = [index * shots + shot for index in range(sets) for shot in range(first, first + step)]
            low, middle, top, gram = run(rows, taken)
            taken.take_top(rows, top)
            del top
            found = self._guides(low, middle, foreground[:, :, first : first + step])
            parts.append((*found, gram.unflatten(0, (-1, step))))
        prototypes, gates, attention, grams = zip(*parts, strict=True)
        layers, kept, top, top_masks = taken.of_sets(sets)
        return MSANetSupport(
            ways=ways,
            layers=layers,
            masks=kept,
            top=top,
            top_masks=top_masks,
            prototypes=torch.cat(prototypes, dim=1),
            gates=torch.cat(gates, dim=1),
            attention=torch.stack(attention).sum(0) / shots,
            gram=torch.cat(grams, dim=1),
        )

    def _guides(self, low: Tensor, middle: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes [E, K, C], gates [E, K, C], and the sum over shots of the gated embeddings [E, C, h, w]."""
        masks, shots = foreground.flatten(0, 1), foreground.shape[2]
        embedded = self.support_embedding(middle, low)
        size = (embedded.shape[-2], embedded.shape[-1])
        small = resize(masks, size).flatten(0, 1)[:, None].to(embedded.dtype)
        with torch.autocast(embedded.device.type, enabled=False):
            prototypes = ops.masked_average_pooling(embedded.float(), small.float(), eps=5e-4)[:, 0]
        inside = F.interpolate(masks, size=size, mode="nearest").flatten(0, 1)[:, None].to(embedded.dtype)
        gates = self.gate((embedded * inside).mean((-2, -1), keepdim=True))
        attention = (gates * embedded).unflatten(0, (-1, shots)).sum(1)
        return prototypes.unflatten(0, (-1, shots)), gates[:, :, 0, 0].unflatten(0, (-1, shots)), attention

    def _compare_episodes(self, batch: FewShotBatch, base_channels: Tensor | None = None) -> MSANetResult:
        """:meth:`compare` of whole episodes, holding no layer of the backbone longer than it is needed."""
        support, images = self._support_of(batch), batch.query_images.flatten(0, 1)
        layers = QueryLayers(support, batch.query_images.shape[1])
        low, middle, top, gram = self._frozen().passed(images, range(len(images)), layers.taker)
        query = self.query_embedding(middle, low)
        del low, middle
        features = {"query": query, "base": self.base_learner.head(top), "gram": gram}
        prior = layers.prior(top)
        support = replace(support, layers=[], masks=[])
        return self._decided(support, features, layers.maps(), prior, base_channels)

    def match(self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images.

        Args:
            support: of B * N support sets.
            features: of :meth:`encode`, [B * Q, ...]; may hold those of :meth:`query_features` as well.
            size: (H, W).
        """
        return self.match_parts(support, features, size)["ensemble"]

    def match_parts(
        self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """As :meth:`match`, with what each learner says on its own.

        Returns:
            "ensemble" and "meta" [B, Q, 1 + N, H, W]; "base" [B, Q, 1 + base classes, H, W].
        """
        batch = support.prototypes.shape[0] // support.ways
        return self._parts(self.compare(support, features), batch, support.ways, size)

    def _parts(self, found: MSANetResult, batch: int, ways: int, size: tuple[int, int]) -> dict[str, Tensor]:
        def joined(pairs: Tensor) -> Tensor:
            pairs = pairs.unflatten(0, (batch, -1, ways))
            return pairs[:, :, 0] if self.config.behaviour == "published" else of_all_ways(pairs)

        return {
            "ensemble": joined(self._as_logits(resize(found.ensemble, size))),
            "meta": joined(resize(found.meta, size)),
            "base": resize(found.base, size).unflatten(0, (batch, -1)),
        }

    def compare(
        self, support: MSANetSupport, features: dict[str, Tensor], base_channels: Tensor | None = None
    ) -> MSANetResult:
        """Everything between features and upsampling.

        Args:
            support: of E = B * N support sets.
            features: of the queries, as in :meth:`match`.
            base_channels: [B, N] base class, from 1, that each way really is and that the base learner must not claim;
                0 for none.
        """
        if "query" not in features or "base" not in features:
            features = {**features, **self.query_features(features)}
        count = len(features["gram"])
        layers = QueryLayers(support, count * support.ways // len(support.prototypes))
        _, _, top, _ = self._frozen().replayed(features, layers.taker(range(count)))
        return self._decided(support, features, layers.maps(), layers.prior(top), base_channels)

    def _decided(
        self,
        support: MSANetSupport,
        features: dict[str, Tensor],
        maps: list[Tensor],
        priors: Tensor,
        base_channels: Tensor | None,
    ) -> MSANetResult:
        """What follows from the similarity ``maps`` [R, K, h, w] of every layer and the ``priors`` [R, K, h, w].

        Of the queries it reads "query", "base" and "gram".
        """
        queries = len(features["gram"]) * support.ways // len(support.prototypes)
        support, query, base, gram = paired(support, features, queries)
        size = (query.shape[-2], query.shape[-1])
        weights, distances = self._shot_weights(gram, support.gram)
        similarity = self._similarity_of(maps, size)
        reduced = self.similarity(similarity)
        prior = resize((weights[:, :, None, None] * priors).sum(1, keepdim=True), size)
        prototype = (weights[..., None] * support.prototypes).sum(1)
        merged = self.decoder.merged(
            query, prototype.to(query.dtype), reduced, prior.to(query.dtype), support.attention
        )
        meta = self.decoder(merged)
        distance = (weights * distances).sum(1)
        own = None if base_channels is None else base_channels[:, None].expand(-1, queries, -1).flatten()
        share = resize(base_share(base, own), (meta.shape[-2], meta.shape[-1]))
        return MSANetResult(
            query=query,
            prototype=prototype,
            similarity=similarity,
            reduced=reduced,
            prior=prior,
            attention=support.attention,
            merged=merged,
            scene_distances=distances,
            shot_weights=weights,
            scene_distance=distance,
            meta=meta,
            base=features["base"],
            base_share=share,
            ensemble=ensemble(meta, share, distance, self.scene_merge, self.base_merge),
        )

    def _similarity_of(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        means = []
        for name, found in zip(self.tap_names, maps, strict=True):
            last_alone = self.config.behaviour == "published" and name.startswith("stage4.")
            mean = found[:, -1:] if last_alone else found.mean(1, keepdim=True)
            means.append(resize(mean, size))
        return torch.cat(means, dim=1)

    def _shot_weights(self, query: Tensor, supports: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and scene distances, [R, K] each, of grams [R, C, C] and [R, K, C, C]."""
        distances = torch.linalg.matrix_norm(query[:, None] - supports) / query.shape[-1]
        shots = distances.shape[1]
        if self.shot_scorer is None or shots != self.config.shots:
            return torch.full_like(distances, 1 / shots), distances
        return self.shot_scorer(distances), distances

    def _as_logits(self, pair: Tensor) -> Tensor:
        return pair if self.config.behaviour == "published" else as_logits(pair)
