"""INSID3: few-shot segmentation from the features of one frozen vision transformer, without any training.

Source: "INSID3: training-free in-context segmentation with DINOv3", CVPR 2026, and github visinf/INSID3 at f1c9622.
Once the directions that only say where a position lies are taken out of the features, target positions that resemble
the references in both directions are candidates. The target is clustered by its features as they are. The cluster most
like the class is the seed, and those that hold candidates and resemble both class and seed join it.

Where the published code departs from what it means to do, ``behaviour`` chooses:

==================  =====================================  ========================================================
                    published                              sound
==================  =====================================  ========================================================
seed cluster        dropped if its own score is too low:   always part of the mask, as in the paper
                    the mask is empty despite candidates
output              thresholded at the images' size, and   one interpolation, and the largest share wins
                    again after resizing to another
unlabelled pixels   background of the references           neither matched nor background (strokes, borders, padding)
shots               an empty mask is undefined             a shot without the class does not count
==================  =====================================  ========================================================

Both differ from the released code in one thing: it builds its positional basis with the encoder in training mode, whose
rotary coordinates are random, so that scores depend on the seed; here the encoder is never in training mode.

Where the code departs from its paper by choice, both follow the code, which made the published scores: a black image
instead of noise, the forward test, the mean cosine instead of that of the mean, the share of candidates as a weight,
a score above the threshold instead of at it (the paper's side from public summaries, not from the paper itself).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fssops.models.backbones.vit import VIT, VisionTransformer
from fssops.models.checks import check_images
from fssops.models.insid3.aggregation import score_clusters
from fssops.models.insid3.clustering import average_linkage
from fssops.models.insid3.config import PUBLISHED_COMPONENTS, PUBLISHED_WIDTH, INSID3Config
from fssops.models.insid3.debiasing import content_basis, unit
from fssops.models.insid3.matching import backward_votes, feature_masks, forward_matches, prototypes
from fssops.models.insid3.output import class_shares
from fssops.models.layers.image_input import images_a_pass
from fssops.models.layers.tensor_cache import TensorCache
from fssops.normalisation import MEAN, STD
from fssops.structures import FewShotBatch

SMALLEST_SHARE = 1e-6
PUBLISHED_GRID = 64
"""Patches of an image's side: 1,024 pixels of DINOv3."""


@dataclass
class INSID3Support:
    """Summary of B support sets; S = h * w positions, D channels without position.

    Attributes:
        prototypes: [B, N, D] unit vectors; 0 where no shot shows the way.
        references: [B, N, K, S, D] unit features.
        foreground: [B, N, K, S] bool.
        compared: [B, N, K, S] bool: positions that a best match is sought among.
        grid: (h, w).
    """

    prototypes: Tensor
    references: Tensor
    foreground: Tensor
    compared: Tensor
    grid: tuple[int, int]


class INSID3(nn.Module):
    """Training-free segmenter; see :class:`fssops.models.interface.FewShotModel` for the steps it offers.

    It has no losses, so it is not :class:`fssops.models.interface.Trainable`, and training refuses it.

    ``encode`` gives the features with and without position, ``query_features`` the clusters, which are those of an
    image whatever the class; ``match`` decides each way on its own, and where two claim a position, the higher score
    has it. Matching is in float32 under any autocast, since near ties decide.
    """

    name = "insid3"

    def __init__(self, config: INSID3Config | None = None) -> None:
        super().__init__()
        self.config = config = config or INSID3Config()
        form = VIT[config.backbone]
        self.backbone = VisionTransformer(form).requires_grad_(False)
        self.stride: int = form.patch
        self.image_side: int = PUBLISHED_GRID * form.patch
        self.components: int = (
            form.width * PUBLISHED_COMPONENTS // PUBLISHED_WIDTH if config.components is None else config.components
        )
        self._bases = TensorCache()
        self.train(False)

    def train(self, mode: bool = True) -> INSID3:
        """As in ``nn.Module``, but the encoder stays in eval mode."""
        super().train(mode)
        self.backbone.train(False)
        return self

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of the query images."""
        support = self.summarise(
            self.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        height, width = batch.query_images.shape[-2:]
        return self.match(support, self.encode(batch.query_images.flatten(0, 1)), (height, width))

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images.

        Args:
            images: [n, 3, H, W] of torchvision's mean and standard deviation.

        Returns:
            "tokens" [n, h, w, C] and "debiased" [n, h, w, D], unit vectors in float32; "size" [n, 2], (H, W); with
            ``refinement="crf"`` also "images" [n, 3, H, W].

        Raises:
            ValueError: images of another shape, not floating point, or smaller than a patch.
        """
        check_images("INSID3.encode", images, self.stride)
        tokens = torch.cat([self._tokens(part) for part in images.split(images_a_pass(images))])
        size = torch.tensor(images.shape[-2:], device=images.device).expand(len(images), 2)
        with _exact(tokens):
            features = {"tokens": tokens, "debiased": self._debiased(tokens), "size": size}
        if self.config.refinement == "crf":
            features["images"] = images
        return features

    @torch.no_grad()
    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features of :meth:`encode` with the clusters of the images, "labels" [n, h, w] int64."""
        tokens = features["tokens"].flatten(1, 2)
        with _exact(tokens):
            labels = [average_linkage(image, 1 - self.config.cluster_similarity)[0] for image in tokens]
        return {**features, "labels": torch.stack(labels).unflatten(1, features["tokens"].shape[1:3])}

    @torch.no_grad()
    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> INSID3Support:
        """Prototypes of support sets, and the features that matches are sought among.

        Args:
            features: as ``encode`` gives them, [B * N * K, ...].
            foreground: [B, N, K, H, W] float in [0, 1].
            background: [B, N, K, H, W] float in [0, 1].

        Raises:
            ValueError: masks of another size than the images.
        """
        episodes = foreground.shape[:3]
        debiased = features["debiased"]
        grid = (int(debiased.shape[1]), int(debiased.shape[2]))
        inside = feature_masks(foreground.flatten(0, 2).float(), self.stride)
        if tuple(inside.shape[1:]) != grid:
            raise ValueError(
                f"INSID3.summarise: foreground must have the size of the images, {grid[0]} x {grid[1]} patches, got "
                f"{foreground.shape[-2]} x {foreground.shape[-1]} pixels"
            )
        if self.config.behaviour == "published":
            compared = torch.ones_like(inside)
        else:
            compared = inside | feature_masks((foreground + background).flatten(0, 2).float(), self.stride)
        references = debiased.flatten(1, 2).unflatten(0, episodes)
        inside, compared = (mask.flatten(1).unflatten(0, episodes) for mask in (inside, compared))
        with _exact(references):
            return INSID3Support(prototypes(references, inside), references, inside, compared, grid)

    @torch.no_grad()
    def match(self, support: INSID3Support, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images: logarithms of each class's share of a pixel.

        Args:
            support: of B support sets.
            features: as ``query_features`` gives them, or ``encode``, [B * Q, ...].
            size: (H, W).

        Raises:
            ValueError: the queries have another size than the supports.
        """
        grid = (int(features["debiased"].shape[1]), int(features["debiased"].shape[2]))
        if grid != support.grid:
            raise ValueError(
                f"INSID3.match: query images must have the size of the supports, {support.grid[0]} x {support.grid[1]} "
                f"patches, got {grid[0]} x {grid[1]}"
            )
        if "labels" not in features:
            features = self.query_features(features)
        episodes, ways = support.prototypes.shape[:2]
        queries = len(features["labels"]) // episodes
        shares = []
        with _exact(features["debiased"]):
            for number in range(len(features["labels"])):
                one = {name: value[number] for name, value in features.items()}
                scores = [self.score_way(support, number // queries, way, one) for way in range(ways)]
                shares.append(self._shares(torch.stack(scores), one, size))
        logits = torch.stack(shares).clamp(min=SMALLEST_SHARE).log()
        return logits.view(episodes, queries, *logits.shape[1:])

    def candidates(self, support: INSID3Support, episode: int, way: int, debiased: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of a target that match a way in both directions, and their cosines with its prototype.

        Args:
            support: of B support sets.
            episode: which of them.
            way: of the episode, from 0.
            debiased: [P, D] features of the target.

        Returns:
            [P] bool, and [P] float32.
        """
        shown = support.foreground[episode, way].any(1)
        similarity = debiased @ support.prototypes[episode, way]
        if not bool(shown.any()):
            return torch.zeros_like(similarity, dtype=torch.bool), similarity
        places = forward_matches(similarity).nonzero()[:, 0]
        votes = backward_votes(
            debiased[places],
            support.references[episode, way][shown],
            support.foreground[episode, way][shown],
            support.compared[episode, way][shown],
        )
        matches = torch.zeros_like(similarity, dtype=torch.bool)
        matches[places] = votes >= (int(shown.sum()) + 1) // 2
        return matches, similarity

    def score_way(self, support: INSID3Support, episode: int, way: int, target: dict[str, Tensor]) -> Tensor:
        """Score [P] float32 of one way at each position of one target: of its cluster, -inf where that does not join.

        Args:
            support: of B support sets.
            episode: which of them.
            way: of the episode, from 0.
            target: features of one image, "labels" included, without their leading axis.
        """
        labels, debiased = target["labels"].flatten(), target["debiased"].flatten(0, 1)
        matches, similarity = self.candidates(support, episode, way, debiased)
        if not bool(matches.any()):
            return torch.full_like(similarity, -torch.inf)
        tokens, prototype = target["tokens"].flatten(0, 1), support.prototypes[episode, way]
        clusters = score_clusters(labels, tokens, debiased, prototype, matches)
        joins = clusters.score > self.config.merge_threshold
        if self.config.behaviour == "sound":
            joins[clusters.seed] = True
        by_label = similarity.new_full((int(labels.max()) + 1,), -torch.inf)
        by_label[clusters.labels[joins]] = clusters.score[joins]
        return by_label[labels]

    def _shares(self, scores: Tensor, target: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        rows, columns = target["labels"].shape
        height, width = target["size"].tolist()
        return class_shares(
            scores,
            (rows, columns),
            self.stride,
            (height, width),
            size,
            hard=self.config.behaviour == "published",
            colours=self._colours(target["images"]) if self.config.refinement == "crf" else None,
        )

    def _colours(self, image: Tensor) -> Tensor:
        """[3, H, W] in 0..1 of a normalised image."""
        mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (MEAN, STD))
        return (image.float() * std + mean).clamp(0, 1)

    def _tokens(self, images: Tensor) -> Tensor:
        """[n, h, w, C] unit features in float32."""
        features: Tensor = self.backbone(images)[self.backbone.taps[-1]]
        tokens = features.permute(0, 2, 3, 1)
        return unit(tokens if tokens.dtype == torch.float64 else tokens.float())

    def _debiased(self, tokens: Tensor) -> Tensor:
        if not self.components:
            return tokens
        return unit(tokens @ self.basis((int(tokens.shape[1]), int(tokens.shape[2]))))

    def basis(self, grid: tuple[int, int]) -> Tensor:
        """Directions free of position at a patch grid, from a black image; made anew when the weights have changed."""
        parameters = list(self.backbone.parameters())
        weights = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        key = (grid, parameters[0].device, parameters[0].dtype, weights)
        return self._bases.of(key, lambda: self._content_basis(grid))

    @torch.no_grad()
    def _content_basis(self, grid: tuple[int, int]) -> Tensor:
        like = next(self.backbone.parameters())
        black = (-like.new_tensor(MEAN) / like.new_tensor(STD)).view(1, 3, 1, 1)
        black = black.expand(1, 3, grid[0] * self.stride, grid[1] * self.stride)
        with _exact(like):
            return content_basis(self._tokens(black).flatten(0, 2), self.components)


def _exact(like: Tensor) -> torch.autocast:
    """No lower precision, whatever surrounds: near ties decide."""
    return torch.autocast(like.device.type, enabled=False)
