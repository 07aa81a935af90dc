"""The masked-attention transformer decoder of Mask2Former.

Source: Cheng et al., "Masked-attention mask transformer for universal image segmentation", CVPR 2022, section 3.2,
and its code. Masks are linear in the mask embedding, so the mask features are resized to each level once, and the
logits that decide where a query may attend are formed at that level's size only: the published code forms every
query's logits at stride 4 after every layer and resizes those. The two differ by float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fssops import ops
from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.derived import Linear, autocast_type, cast, for_products
from fssops.models.layers.feed_forward import MLP, FeedForward
from fssops.models.layers.initialisation import xavier_fill
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.transformer_decoders.outputs import DecoderOutput


@dataclass
class Memory:
    """What the layers attend to, prepared once for all of them; one entry a level.

    Attributes:
        keys: [B, S_l, C], position added.
        values: [B, S_l, C].
        mask_features: [B, E, S_l] detached mask features at the level's size.
        padding: [B, S_l] bool, True = padding, or None.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask_features: list[Tensor]
    padding: list[Tensor | None]


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; residual and LayerNorm after each."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = MultiheadAttention(channels, heads)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attn = MultiheadAttention(channels, heads)
        self.self_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden)
        self.ffn_norm = nn.LayerNorm(channels)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor | None,
        key: Tensor,
        value: Tensor,
        mask: ops.AttentionMask,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            queries: [B, Q, C].
            positions: [Q, C] query positions, or None.
            key: [B, S, C], position added.
            value: [B, S, C].
            mask: attention mask of the cross-attention.
            blocked: bool mask of the self-attention, True = may not attend, or None.

        Returns:
            [B, Q, C].
        """
        placed = queries if positions is None else queries + positions
        queries = self.cross_norm(queries + self.cross_attn.masked(placed, key, value, mask))
        queries = self.self_norm(queries + self.self_attn.self_attention(queries, positions, blocked))
        out: Tensor = self.ffn_norm(queries + self.ffn(queries))
        return out


class MaskedTransformerDecoder(nn.Module):
    """Queries attend, layer after layer, to the inside of the mask they predicted before.

    Args:
        in_channels: channels of the memory.
        channels: C of the queries.
        mask_channels: E of the mask features.
        num_classes: classes without "no object"; None builds no class head (MM-Former's segmenter).
        num_queries: Q.
        heads: attention heads.
        layers: decoder layers; there is one prediction head more.
        hidden: width of the feed-forward sub-layers.
        levels: memory levels, visited round-robin from the coarsest.
        query_positions: whether queries carry a learnt position beside their content (MP-Former's do not).
        enforce_input_proj: project the memory even when its channels fit.
        clips: encode the frame in the positions of the memory (Mask2Former for video).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int | None,
        num_queries: int,
        channels: int = 256,
        mask_channels: int = 256,
        heads: int = 8,
        layers: int = 9,
        hidden: int = 2048,
        levels: int = 3,
        query_positions: bool = True,
        enforce_input_proj: bool = False,
        clips: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.clips = levels, clips
        self.layers = nn.ModuleList(MaskedDecoderLayer(channels, heads, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(num_queries, channels)
        self.query_embed = nn.Embedding(num_queries, channels) if query_positions else None
        self.level_embed = nn.Embedding(levels, channels)
        self.input_proj: nn.ModuleList | None = None
        if in_channels != channels or enforce_input_proj:
            projections = [nn.Conv2d(in_channels, channels, 1) for _ in range(levels)]
            for conv in projections:
                xavier_fill(conv)
            self.input_proj = nn.ModuleList(projections)
        self.class_embed = None if num_classes is None else Linear(channels, num_classes + 1)
        self.mask_embed = MLP(channels, channels, channels, mask_channels)
        self._positions = PositionEncodingCache(channels)

    def prepare(
        self,
        memory: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        mask_features: Tensor,
        padding: Sequence[Tensor | None] | None = None,
    ) -> Memory:
        """Keys, values and resized mask features of every level, shared by all layers.

        Args:
            memory: one [B * T, h_l * w_l, C_in] a level, coarsest first.
            sizes: (h_l, w_l) of each.
            mask_features: [B, T, E, h, w].
            padding: one [B, T * h_l * w_l] bool a level (True = padding), or None.
        """
        batch, frames = mask_features.shape[:2]
        planes = mask_features.detach().flatten(0, 1)  # [B T, E, h, w]
        # Masks are drawn in float32 on a CPU; on a GPU in autocast's type, as the published code draws them.
        wanted = torch.float32 if planes.device.type == "cpu" else autocast_type(planes)
        planes = cast(planes, wanted)
        keys, values, resized = [], [], []
        for level, (tokens, size) in enumerate(zip(memory, sizes, strict=True)):
            if self.input_proj is not None:
                conv = self.input_proj[level]
                assert isinstance(conv, nn.Conv2d)
                tokens = F.linear(tokens, conv.weight.flatten(1), conv.bias)
            tokens = tokens.reshape(batch, -1, tokens.shape[-1])
            value = tokens + self.level_embed.weight[level]
            position = self._positions(size, tokens.device, frames if self.clips else None)
            keys.append(for_products(value + position.to(value.dtype)))
            values.append(for_products(value))
            small = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
            small = small.view(batch, frames, -1, size[0] * size[1]).transpose(1, 2)
            resized.append(small.reshape(batch, small.shape[1], -1))
        blocked: list[Tensor | None] = [None] * self.levels if padding is None else list(padding)
        return Memory(keys, values, resized, blocked)

    def attention_mask(self, mask_embeddings: Tensor, memory: Memory, level: int) -> ops.AttentionMask:
        """Where each query may attend at a level: inside the mask that its embedding predicts there."""
        mask = ops.attention_mask_from_embeddings(mask_embeddings, memory.mask_features[level])
        padding = memory.padding[level]
        return mask if padding is None else mask.with_padding(padding)

    def decode(
        self,
        queries: Tensor,
        positions: Tensor | None,
        memory: Memory,
        *,
        auxiliary: bool,
        blocked: Tensor | None = None,
        piloted: Sequence[ops.AttentionMask | None] = (),
    ) -> DecoderOutput:
        """Run the layers and the prediction heads.

        Args:
            queries: [B, Q, C] initial content.
            positions: [Q, C] query positions, or None.
            memory: of :meth:`prepare`.
            auxiliary: return every head's predictions instead of the last one's only.
            blocked: bool mask of the self-attentions, True = may not attend.
            piloted: for each layer the cross-attention mask of the first queries of the sequence, where it is given
                (MP-Former's piloted queries); None where theirs is predicted, as that of all the others.
        """
        normed = self.decoder_norm(queries)
        embeddings = self.mask_embed(normed)
        states, masks = [normed], [embeddings]
        for index, layer in enumerate(self.layers):
            level = index % self.levels
            given = piloted[index] if piloted else None
            first = 0 if given is None else given.bits.shape[2]
            mask = self.attention_mask(embeddings[:, first:], memory, level)
            if given is not None:
                mask = ops.concatenate_attention_masks([given, mask])
            queries = layer(queries, positions, memory.keys[level], memory.values[level], mask, blocked)
            normed = self.decoder_norm(queries)
            embeddings = self.mask_embed(normed)
            states.append(normed)
            masks.append(embeddings)
        normed, embeddings = normed[None], embeddings[None]
        if auxiliary:
            normed, embeddings = torch.stack(states), torch.stack(masks)
        classes = normed.new_zeros((*normed.shape[:3], 0)) if self.class_embed is None else self.class_embed(normed)
        return DecoderOutput(classes, embeddings)

    def forward(self, memory: Memory, *, auxiliary: bool = True) -> DecoderOutput:
        """Decode the learnt queries against a memory of :meth:`prepare`."""
        batch = len(memory.values[0])
        queries = self.query_feat.weight.expand(batch, -1, -1)
        positions = None if self.query_embed is None else self.query_embed.weight
        return self.decode(queries, positions, memory, auxiliary=auxiliary)
