"""MP-Former: Mask2Former with mask-piloted training.

Source: Zhang et al., "MP-Former: Mask-piloted transformer for image segmentation", CVPR 2023, and github
IDEA-Research/MP-Former at a71f504. In training every target is also given, noised, to a query of its own: its class as
the query's content, its mask as the attention mask of each layer. These piloted queries must reconstruct the target;
normal queries never see them, so nothing of this exists at inference. Normal queries carry no position embedding, which
is why weights of Mask2Former do not fit.

Where the published code departs from what it means to do, ``behaviour`` chooses:

======================  ===========================================  ============================================
what                    "published"                                  "sound", the default
======================  ===========================================  ============================================
masks after layer 0     inverted in every mode but points:           the noised masks, as in layer 0
                        piloted queries see all but their object
axes of shift, scale    rows move by the box's width, columns by     rows by height, columns by width, each in
                        its height, in units of the map's width      units of its own axis
======================  ===========================================  ============================================

The published results are of mode "points", where both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fssops.losses.piloted_criterion import PilotedPart, PilotedSetCriterion
from fssops.losses.point_sources import ItemPoints, PointSource
from fssops.models.checks import Natural, Share
from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.models.mask_piloting import NoiseSource, PilotOptions, Pilots, RandomNoise, build_pilots
from fssops.models.mask_piloting.noise import PilotMode
from fssops.models.transformer_decoders.outputs import DecoderOutput
from fssops.models.transformer_decoders.piloted import PilotedTransformerDecoder
from fssops.structures import ImageBatch, MaskPredictions, MaskTargets


@dataclass(frozen=True)
class MPFormerConfig(Mask2FormerConfig):
    """Options of :class:`MPFormer`; the defaults are those of the published runs.

    Attributes:
        pilot_mode: noise of the masks: "points" (cells flip), "shift", "scale", "shift_scale", "patch" (a rectangle is
            opened), "points_MAE" (cells are closed).
        pilot_groups: how often each target is copied; groups do not see each other. From 100 on it is the number of
            queries that the groups of an image may have together. 0 trains without piloted queries.
        noise_scale: amount of mask noise; 0 gives the exact masks, which only "points" allows.
        label_noise: share of the copies that are told a random class; 0 none.
        all_layers: give the targets' masks to every layer; else to the first four, and the others see what the piloted
            queries predict.
        head_noise: each attention head has point noise of its own (mode "points").
        enlarge_above: in scale and shift_scale, a copy is enlarged where a uniform draw exceeds this.
        classify_piloted: whether the piloted queries have a class loss.
        behaviour: "sound" or "published", see the module's table.
    """

    pilot_mode: PilotMode = "points"
    pilot_groups: Natural = 1
    noise_scale: float = 0.0
    label_noise: Share = 0.2
    all_layers: bool = True
    head_noise: bool = False
    enlarge_above: Share = 0.5
    classify_piloted: bool = True
    behaviour: Literal["sound", "published"] = "sound"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_scale < float("inf") or (self.noise_scale == 0 and self.pilot_mode != "points"):
            raise ValueError(
                f"MPFormerConfig: noise_scale must be {'at least' if self.pilot_mode == 'points' else 'more than'} 0 in"
                f" mode {self.pilot_mode}, got {self.noise_scale}"
            )
        if self.head_noise and self.pilot_mode != "points":
            raise ValueError(f"MPFormerConfig: head_noise must be off but in mode points, got mode {self.pilot_mode}")

    @property
    def pilots(self) -> PilotOptions:
        """How piloted queries are made."""
        return PilotOptions(
            mode=self.pilot_mode,
            groups=self.pilot_groups,
            noise_scale=self.noise_scale,
            enlarge_above=self.enlarge_above,
            label_noise=self.label_noise,
            all_layers=self.all_layers,
            head_noise=self.heads if self.head_noise else None,
            published=self.behaviour == "published",
        )


class MPFormer(Mask2Former):
    """Mask2Former whose training is piloted by the targets' masks; inference is Mask2Former's.

    Args:
        config: options.
    """

    name = "mp_former"
    class_dependent = (*Mask2Former.class_dependent, "transformer_decoder.label_enc.")
    misfits = (
        (
            r"(^|\.)(query_embed|queries_embedder)\.weight$",
            "these are weights of a system whose queries carry a position embedding (Mask2Former), and MP-Former's"
            " carry none, in training and at inference: its layers would see other queries than they were trained for;"
            " build mask2former for them, or train mp_former from weights of a backbone or of MP-Former",
        ),
    )
    criterion_class = PilotedSetCriterion
    decoder_class = PilotedTransformerDecoder
    config: MPFormerConfig
    criterion: PilotedSetCriterion
    transformer_decoder: PilotedTransformerDecoder

    def __init__(self, config: MPFormerConfig) -> None:
        super().__init__(config)
        self.criterion.classify_piloted = config.classify_piloted

    def predict_piloted(
        self,
        images: Tensor,
        padding: Tensor | None,
        targets: Sequence[MaskTargets],
        draws: NoiseSource | None = None,
    ) -> tuple[MaskPredictions, MaskPredictions | None, Pilots | None]:
        """Predictions of all heads of the normal and of the piloted queries, and what these were told.

        Args:
            images: [B, 3, H, W], normalised and padded.
            padding: [B, H, W] bool, True = padding; None attends to everything.
            targets: one an image; an image may have none. Without any in the batch there is no piloted part.
            draws: where the noise comes from; None draws from the default generator of the device.
        """
        features = self.encode(images, padding)
        memory = self.memory_of(features, padding)
        size = (int(images.shape[2]), int(images.shape[3]))
        decoder = self.transformer_decoder
        pilots = build_pilots(
            targets,
            decoder.label_enc,
            self.config.pilots,
            draws or RandomNoise(images.device),
            classes=self.config.num_classes,
            queries=self.config.num_queries,
            layers=len(decoder.layers),
            sizes=features.sizes,
            padded_size=size,
            padding=memory.padding,
        )
        normal, piloted = decoder.decode_piloted(memory, pilots)

        def predictions(decoded: DecoderOutput) -> MaskPredictions:
            return MaskPredictions(decoded.class_logits, decoded.mask_embeddings, features.mask_features[:, None], size)

        return predictions(normal), None if piloted is None else predictions(piloted), pilots

    def losses(
        self,
        batch: ImageBatch,
        points: PointSource | None = None,
        draws: NoiseSource | None = None,
        piloted_points: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Weighted loss terms of a batch with targets; their sum is the training loss.

        The names do not depend on the batch: without any target the terms of the piloted part are zero.

        Args:
            batch: images of any sizes, each with its targets; a target may be empty.
            points: where the random points of the losses come from; None draws from the default generator.
            draws: where the noise of the piloted queries comes from; None likewise.
            piloted_points: where the points of their losses come from; None takes ``points``.

        Raises:
            ValueError: the batch has no targets, or they do not fit.
        """
        targets = self.checked_targets(batch.images, batch.targets)
        self.criterion.check_labels(targets)  # before their classes are embedded
        images, padding = self.input_of(batch.images)
        normal, piloted, pilots = self.predict_piloted(images, padding, targets, draws)
        part = None
        if piloted is not None and pilots is not None:
            part = PilotedPart(piloted, pilots.layout.matches(), pilots.layout.groups)
        if points is None and batch.seeds:
            points = self.drawn_points(batch, targets, images.device)
            if part is not None and piloted_points is None:
                seeds = [seed + 1 for seed in batch.seeds]
                counts = [part.copies * len(target.labels) for target in targets]
                piloted_points = ItemPoints(images.device, seeds, counts)
        losses: dict[str, Tensor] = self.criterion(normal, targets, points, part, piloted_points, share=batch.share)
        if part is None:
            # Distributed training waits for the gradient of every parameter.
            losses["loss_mask_dn"] = losses["loss_mask_dn"] + self.transformer_decoder.label_enc.weight.sum() * 0.0
        return losses
