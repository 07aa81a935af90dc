"""Names of the classes of YouTube-VIS and OVIS by ascending id, which starts at 1."""

from __future__ import annotations

_YTVIS2019 = (
    "person|giant_panda|lizard|parrot|skateboard|sedan|ape|dog|snake|monkey|hand|rabbit|duck|cat|cow|fish|train|horse|"
    "turtle|bear|motorbike|giraffe|leopard|fox|deer|owl|surfboard|airplane|truck|zebra|tiger|elephant|snowboard|boat|"
    "shark|mouse|frog|eagle|earless_seal|tennis_racket"
)
_YTVIS2021 = (
    "airplane|bear|bird|boat|car|cat|cow|deer|dog|duck|earless_seal|elephant|fish|flying_disc|fox|frog|giant_panda|"
    "giraffe|horse|leopard|lizard|monkey|motorbike|mouse|parrot|person|rabbit|shark|skateboard|snake|snowboard|"
    "squirrel|surfboard|tennis_racket|tiger|train|truck|turtle|whale|zebra"
)
_OVIS = (
    "Person|Bird|Cat|Dog|Horse|Sheep|Cow|Elephant|Bear|Zebra|Giraffe|Poultry|Giant_panda|Lizard|Parrot|Monkey|Rabbit|"
    "Tiger|Fish|Turtle|Bicycle|Motorcycle|Airplane|Boat|Vehical"
)

NAMES: dict[str, list[str]] = {
    "ytvis2019": _YTVIS2019.split("|"),
    "ytvis2021": _YTVIS2021.split("|"),
    "ovis": _OVIS.split("|"),
}
"""Data set -> class names."""
