"""Names of the classes of the large data sets by index, for models that are used where the data set is not.

Sources: cocodataset.org (panoptic categories by ascending id: 80 things, then 53 stuff) and sceneparsing.csail.mit.edu
(objectInfo150, first synonyms, with the countable classes of Mask2Former's panoptic form).
"""

from __future__ import annotations


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of ``1-3 7``: 1, 2, 3 and 7."""
    spans = (part.partition("-") for part in text.split())
    return tuple(number for first, _, last in spans for number in range(int(first), int(last or first) + 1))


_COCO = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|"
    "parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|"
    "handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|"
    "surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|"
    "broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|toilet|tv|"
    "laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|"
    "scissors|teddy bear|hair drier|toothbrush|banner|blanket|bridge|cardboard|counter|curtain|door-stuff|"
    "floor-wood|flower|fruit|gravel|house|light|mirror-stuff|net|pillow|platform|playingfield|railroad|"
    "river|road|roof|sand|sea|shelf|snow|stairs|tent|towel|wall-brick|wall-stone|wall-tile|wall-wood|"
    "water-other|window-blind|window-other|tree-merged|fence-merged|ceiling-merged|sky-other-merged|"
    "cabinet-merged|table-merged|floor-other-merged|pavement-merged|mountain-merged|grass-merged|dirt-merged|"
    "paper-merged|food-other-merged|building-other-merged|rock-merged|wall-other-merged|rug-merged"
)
COCO_PANOPTIC: list[str] = _COCO.split("|")
"""133 names; the first 80 are the countable ones, in the order of the instance task."""
COCO_THINGS = range(80)
COCO_IDS = _numbers(
    "1-11 13-25 27-28 31-44 46-65 67 70 72-82 84-90 92-93 95 100 107 109 112 118-119 122 125 128 130 133 138 141 "
    "144-145 147-149 151 154-156 159 161 166 168 171 175-178 180-181 184-200"
)
"""Category id of each class in COCO's files."""

_ADE20K = (
    "wall|building|sky|floor|tree|ceiling|road|bed|window|grass|cabinet|sidewalk|person|earth|door|"
    "table|mountain|plant|curtain|chair|car|water|painting|sofa|shelf|house|sea|mirror|rug|field|"
    "armchair|seat|fence|desk|rock|wardrobe|lamp|tub|rail|cushion|base|box|column|signboard|"
    "chest of drawers|counter|sand|sink|skyscraper|fireplace|refrigerator|grandstand|path|stairs|runway|"
    "case|pool table|pillow|screen door|stairway|river|bridge|bookcase|blind|coffee table|toilet|flower|"
    "book|hill|bench|countertop|stove|palm|kitchen island|computer|swivel chair|boat|bar|arcade machine|"
    "hovel|bus|towel|light|truck|tower|chandelier|awning|street lamp|booth|tv|plane|dirt track|clothes|"
    "pole|land|bannister|escalator|ottoman|bottle|buffet|poster|stage|van|ship|fountain|conveyer belt|"
    "canopy|washer|plaything|pool|stool|barrel|basket|falls|tent|bag|minibike|cradle|oven|ball|food|"
    "step|tank|trade name|microwave|pot|animal|bicycle|lake|dishwasher|screen|blanket|sculpture|hood|"
    "sconce|vase|traffic light|tray|trash can|fan|pier|crt screen|plate|monitor|bulletin board|shower|"
    "radiator|glass|clock|flag"
)
ADE20K: list[str] = _ADE20K.split("|")
"""150 names."""

ADE20K_THINGS = _numbers(
    "7-8 10 12 14-15 18-20 22-24 27 30-33 35-39 41-45 47 49-50 53 55-58 62 64-67 69-76 78 80-83 85-90 92-93 95 "
    "97-98 102-104 107-108 110-112 115-116 118-121 123-127 129-130 132-139 142-144 146-149"
)
"""Indices of the 100 countable classes; the instance files have them as category ids."""
