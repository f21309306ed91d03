"""The 40 modalities of AION-1, all of them tokens, and which codec makes each.

Positions are those of a grid for every one but the catalog: a single value is a grid of 1 x 1, a
spectrum one of 273 x 1.

Source: AION-1 (Parker et al. 2025)
"""

from __future__ import annotations

from collections.abc import Iterator

from fourm_lite.modalities.spec import Modality

CODECS = "codecs"
CATALOG = "catalog"
# of a transformer's catalog ids: pad, unknown, start, end, 200 sentinels; codes come after them
CATALOG_OFFSET, CATALOG_PAD, CATALOG_END = 204, 0, 3

# name -> rows, columns, ids, folder of its codec
_GRIDS: dict[str, tuple[int, int, int, str]] = {
    "tok_image": (24, 24, 4375, "image"),
    "tok_image_hsc": (24, 24, 4375, "image"),
    "tok_spectrum_desi": (273, 1, 1024, "spectrum"),
    "tok_spectrum_sdss": (273, 1, 1024, "spectrum"),
    "tok_segmap": (12, 12, 1000, "segmentation_map"),
    "tok_xp_bp": (55, 1, 1024, "bp_coefficients"),
    "tok_xp_rp": (55, 1, 1024, "rp_coefficients"),
    "tok_z": (1, 1, 1025, "Z"),
}
_VALUES: dict[str, str] = {
    **{f"tok_flux_{b}": f"FLUX_{b.upper()}" for b in ("g", "r", "i", "z", "w1", "w2", "w3", "w4")},
    "tok_shape_r": "SHAPE_R",
    "tok_shape_e1": "SHAPE_E1",
    "tok_shape_e2": "SHAPE_E2",
    "tok_ebv": "EBV",
    **{f"tok_flux_{b}_gaia": f"phot_{b}_mean_flux" for b in ("g", "bp", "rp")},
    "tok_parallax": "parallax",
    "tok_ra": "ra",
    "tok_dec": "dec",
    **{f"tok_mag_{band}": f"{band}_cmodel_mag" for band in "grizy"},
    **{f"tok_a_{band}": f"a_{band}" for band in "grizy"},
    **{f"tok_shape{axis}": f"i_sdssshape_shape{axis}" for axis in ("11", "12", "22")},
}


def _grid(name: str, rows: int, columns: int, ids: int, folder: str) -> Modality:
    return Modality(
        name=name,
        kind="grid",
        grid=(rows, columns),
        max_tokens=rows * columns,
        vocab_size=ids,
        tokenizer=f"{CODECS}/{folder}",
    )


def _all() -> Iterator[Modality]:
    for name, (rows, columns, ids, folder) in _GRIDS.items():
        yield _grid(name, rows, columns, ids, folder)
    for name, folder in _VALUES.items():
        yield _grid(name, 1, 1, 1024, folder)
    yield Modality(
        name=CATALOG,
        kind="sequence",
        vocab_size=3264 + CATALOG_OFFSET,
        max_tokens=100,
        max_positions=50,
        vocab=CATALOG,
        tokenizer=f"{CODECS}/{CATALOG}",
    )


AION_MODALITIES: dict[str, Modality] = {entry.name: entry for entry in _all()}
