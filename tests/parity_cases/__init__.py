"""The systems that ``tests/parity.py`` can run: one line each.

A system's module offers ``recognise(description) -> bool`` for the contents of a ``case.json`` and
``run(case) -> Iterator[Line]``; see :mod:`parity_cases.case`.
"""

SYSTEMS: dict[str, str] = {
    "panet": "parity_cases.panet",
    "msanet": "parity_cases.msanet",
    "mm_former": "parity_cases.mm_former",
    "insid3": "parity_cases.insid3",
    "vit": "parity_cases.vit",
    "maskformer": "parity_cases.maskformer",
    "mask2former": "parity_cases.mask2former",
    "mask2former_vis": "parity_cases.mask2former_vis",
    "mp_former": "parity_cases.mp_former",
    "ms_deform_attn": "parity_cases.ms_deform_attn",
}
"""Name of a system to the module that runs its cases."""
