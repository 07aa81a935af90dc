"""MM-Former: segment first, match later. Proposals of the query are matched with the support by prototypes, and merged.

Source: Jiao et al., "Mask matching transformer for few-shot segmentation", NeurIPS 2022, and github
Picsart-AI-Research/Mask-Matching-Transformer at eb474f8. The first stage is
:class:`fssops.models.mm_former.segmenter.MMFormerSegmenter`.

Where the published code departs from what it means to do, ``behaviour`` chooses:

====================  ============================================  ================================================
what                  "published"                                   "sound", the default
====================  ============================================  ================================================
frozen backbone       normalises by batch statistics in training,   its statistics are those it came with
                      and they go on moving, in both stages
segmenter's loss      takes the proposal of the second highest      takes the best
                      overlap with the object
dice                  of the sigmoid of probabilities               of the probabilities
ranking loss          the wrong extreme costs 100                   similarities stay within 0.001 to 0.999
ignored pixels        are background in losses and overlaps         do not count
resizing              corners aligned in pooling and in the         pixel centres everywhere
                      pyramid, pixel centres elsewhere
keys of 15 x n        used whole where a side is 15 by chance       always shortened
pooling               an empty proposal gives NaN                   gives 0
empty support         is averaged with the others                   is left out; without any there is no foreground
result                one minus the merge, and the merge            their log ratio, so that a softmax of the result is
                                                                    their share
ways                  one                                           any
====================  ============================================  ================================================

Both read the authors' checkpoints; use "published" for their numbers. Kernels that the authors store as products of
singular values are multiplied out when they are loaded, with both. Images of any size and aspect work with both.
Otherwise K shots are treated as published: prototypes of query and support are averaged over the shots.
"""

from fssops.models.mm_former.config import MMFormerConfig, MMFormerSegmenterConfig
from fssops.models.mm_former.model import LEVELS, MMFormer
from fssops.models.mm_former.segmenter import MMFormerSegmenter

__all__ = ["LEVELS", "MMFormer", "MMFormerConfig", "MMFormerSegmenter", "MMFormerSegmenterConfig"]
