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

from fssops.models.msanet.config import MSANetConfig
from fssops.models.msanet.model import MSANet

__all__ = ["MSANet", "MSANetConfig"]
