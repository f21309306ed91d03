"""Modalities of forks of 4M: TerraMind's satellite pixels and tokens, and AION-1's astronomy.

TerraMind's statistics are those that pixels are standardised by, in the order of the bands; v0.1
has others for some. Names are those of its files; `key_of` reads the names that its users write.
AION's 40 are all tokens, with positions of a grid but for the catalog: a single value is a grid of
1 x 1, a spectrum one of 273 x 1.

Source: TerraMind (Jakubik et al. 2025), AION-1 (Parker et al. 2025)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fourm_lite.errors import ConfigError, UnknownNameError, suggest
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import IN, SEQUENCE_ROWS, Modality

COORDS, CAPTION = "coords", "caption"
Role = Literal["input", "target"]
_S2 = (
    "COASTAL_AEROSOL", "BLUE", "GREEN", "RED", "RED_EDGE_1", "RED_EDGE_2", "RED_EDGE_3",
    "NIR_BROAD", "NIR_NARROW", "WATER_VAPOR",
)  # fmt: skip
BANDS: dict[str, tuple[str, ...]] = {
    "untok_sen2l2a@224": (*_S2, "SWIR_1", "SWIR_2"),
    "untok_sen2l1c@224": (*_S2, "CIRRUS", "SWIR_1", "SWIR_2"),
    "untok_sen2rgb@224": ("RED", "GREEN", "BLUE"),
    "untok_sen1grd@224": ("VV", "VH"),
    "untok_sen1rtc@224": ("VV", "VH"),
    "untok_dem@224": ("DEM",),
}


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of each band."""

    mean: tuple[float, ...]
    std: tuple[float, ...] = field(default=(1.0,))


_S2L2A = Statistics(
    (1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22,
     3162.988, 2424.884, 1857.648),
    (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829,
     1797.379, 1434.261, 1334.311),
)  # fmt: skip
_S2L2A_V01 = Statistics(
    (794.311, 925.161, 1183.128, 1338.041, 1667.254, 2233.633, 2460.96, 2555.569, 2619.542,
     2703.298, 2406.497, 1841.645),
    (1164.883, 1205.586, 1223.713, 1399.638, 1403.298, 1378.513, 1434.924, 1491.141, 1454.089,
     1660.395, 1473.248, 1365.08),
)  # fmt: skip
_S2L1C = Statistics(
    (2357.089, 2137.385, 2018.788, 2082.986, 2295.651, 2854.537, 3122.849, 3040.56, 3306.481,
     1473.847, 506.07, 2472.825, 1838.929),
    (1624.683, 1675.806, 1557.708, 1833.702, 1823.738, 1733.977, 1732.131, 1679.732, 1727.26,
     1024.687, 442.165, 1331.411, 1160.419),
)  # fmt: skip
_GRD = Statistics((-12.599, -20.293), (5.195, 5.89))
_RTC = Statistics((-10.93, -17.329), (4.391, 4.459))
_DEM = Statistics((670.665,), (951.272,))
_DEM_V01 = Statistics((435.726,), (560.326,))
_LULC = Statistics((0.0,), (1.0,))
STATISTICS: dict[str, dict[str, Statistics]] = {
    "v1": {
        "untok_sen2l2a@224": _S2L2A,
        "untok_sen2l1c@224": _S2L1C,
        "untok_sen2rgb@224": Statistics((87.271, 80.931, 66.667), (58.767, 47.663, 42.631)),
        "untok_sen1grd@224": _GRD,
        "untok_sen1rtc@224": _RTC,
        "untok_dem@224": _DEM,
        "tok_sen2l2a@224": _S2L2A,
        "tok_sen1grd@224": _GRD,
        "tok_sen1rtc@224": _RTC,
        "tok_lulc@224": _LULC,
        "tok_dem@224": _DEM,
        "tok_ndvi@224": Statistics((0.327,), (0.322,)),
    },
    "v01": {
        "untok_sen2l2a@224": _S2L2A_V01,
        "tok_sen2l2a@224": _S2L2A_V01,
        "tok_sen1grd@224": _GRD,
        "tok_lulc@224": _LULC,
        "tok_dem@224": _DEM_V01,
    },
}
# stem -> channels and folder, at 264 pixels with a border that crops take away
_WIDE = {
    "sen1grd": (2, "S1GRD/"), "sen1rtc": (2, "S1RTC/"), "sen2l2a": (12, "S2L2A/"),
    "sen2l1c": (13, "S2L1C/"), "sen2rgb": (3, "S2RGB/"), "lulc": (9, "LULC/"), "dem": (1, "DEM/"),
    "ndvi": (1, "NDVI/"),
}  # fmt: skip
_PIXELS = {
    "untok_sen2l2a": "S2L2A", "untok_sen2l1c": "S2L1C", "untok_sen2rgb": "S2RGB",
    "untok_sen1grd": "S1GRD", "untok_sen1rtc": "S1RTC", "untok_dem": "DEM",
}  # fmt: skip
_TOKENS = {
    "tok_sen1grd": (15360, "S1GRD"), "tok_sen1rtc": (15360, "S1RTC"),
    "tok_sen2l2a": (15360, "S2L2A"), "tok_lulc": (4375, "LULC"), "tok_dem": (15360, "DEM"),
    "tok_ndvi": (15360, "NDVI"),
}  # fmt: skip


# What users write beside the names of the files, in lower case: "sen2" is "s2" too
_READ = {
    "untok_sen2l2a": ("s2l2a",), "untok_sen2l1c": ("s2l1c",), "untok_sen1rtc": ("s1rtc",),
    "untok_sen1grd": ("s1grd", "s1"), "untok_sen2rgb": ("rgb", "s2rgb"), "untok_dem": ("dem",),
    "tok_lulc": ("lulc",), "tok_ndvi": ("ndvi",), COORDS: (COORDS, "location"),
    CAPTION: (CAPTION,),
}  # fmt: skip
_MADE = {
    "tok_sen2l2a": ("s2", "s2l2a", "s2l1c"), "tok_sen1rtc": ("s1rtc",),
    "tok_sen1grd": ("s1grd", "s1"), "tok_dem": ("dem",), "tok_lulc": ("lulc",),
    "tok_ndvi": ("ndvi",), COORDS: (COORDS, "location"), CAPTION: (CAPTION,),
}  # fmt: skip


def _names(table: Mapping[str, tuple[str, ...]], stem: str) -> tuple[str, ...]:
    """The names in one of the tables, both as they are written short and long."""
    return tuple(n for name in table.get(stem, ()) for n in dict.fromkeys((name, _long(name))))


def _long(name: str) -> str:
    return re.sub(r"^s(?=[12])", "sen", name)


def pixels(name: str, size: int, channels: int, folder: str) -> Modality:
    """Pixels in patches of 16, as TerraMind reads them."""
    side = size // 16
    return Modality(
        name=name, kind="pixels", image_size=size, patch_size=16, channels=channels,
        grid=(side, side), max_tokens=side * side, directions=IN, folder=folder,
        input_names=_names(_READ, name.removesuffix("@224")),
    )  # fmt: skip


def _all() -> Iterator[Modality]:
    for stem, (channels, folder) in _WIDE.items():
        yield pixels(f"{stem}@264", 264, channels, folder)
    for stem, folder in _PIXELS.items():
        name = f"{stem}@224"
        yield pixels(name, 224, len(BANDS[name]), f"{folder}_untokenized")
    for stem, (ids, folder) in _TOKENS.items():
        yield Modality(
            name=f"{stem}@224", kind="grid", image_size=224, patch_size=16, vocab_size=ids,
            grid=(14, 14), max_tokens=196, folder=f"{folder}_tokens",
            tokenizer=f"tokenizers/{folder}", input_names=_names(_READ, stem),
            target_names=_names(_MADE, stem),
        )  # fmt: skip
    yield Modality(
        name=COORDS, kind="sequence", vocab_size=30000, max_tokens=4, vocab=COORDS, folder=COORDS,
        text_format="place", input_names=_names(_READ, COORDS),
        target_names=_names(_MADE, COORDS),
    )  # fmt: skip
    yield Modality(
        name=CAPTION, kind="sequence", vocab_size=30000, max_tokens=256, vocab="text",
        folder="captions_txt", text_format="marked_text", input_names=_names(_READ, CAPTION),
        target_names=_names(_MADE, CAPTION),
    )  # fmt: skip


OWN: dict[str, Modality] = {entry.name: entry for entry in _all()}
# what its code still knows of 4M's, unchanged
_OF_4M = ("rgb", "tok_rgb", "tok_depth", "tok_normal", "tok_semseg", "tok_clip")
TERRAMIND_MODALITIES: dict[str, Modality] = {
    **OWN,
    **{f"{stem}@{size}": MODALITIES[f"{stem}@{size}"] for stem in _OF_4M for size in (224, 448)},
    "det": MODALITIES["det"],
}


def key_of(name: str, role: Role = "input") -> str:
    """The modality that a user's name means: "S2L2A" is read as pixels and made as tokens.

    Raises:
        UnknownNameError: no modality is called so

    >>> key_of("S2L2A"), key_of("sen1rtc"), key_of("S2L1C", "target")
    ('untok_sen2l2a@224', 'untok_sen1rtc@224', 'tok_sen2l2a@224')
    """
    if name in TERRAMIND_MODALITIES:
        return name
    table = {n: m.name for m in OWN.values() for n in getattr(m, f"{role}_names")}
    plain = name.lower()
    found = table.get(plain) or next((k for k in OWN if k.startswith(f"{plain}@224")), None)
    if found is None:
        raise UnknownNameError(
            f"TerraMind has no {role} called {name!r}; users write {', '.join(sorted(table))}."
            f"{suggest(plain, table)}"
        )
    return found


def coords_text(lon: float, lat: float) -> str:
    """What the tokenizer of coordinates reads: both rounded to quarters of a degree.

    >>> coords_text(12.2, 45.1)
    'lat=45.00 lon=12.25 [EOS]'
    """
    return f"lat={_quarters(lat)} lon={_quarters(lon)} [EOS]"


def place_text(place: Iterable[float]) -> str:
    """The same of (longitude, latitude), without its end.

    Raises:
        ConfigError: no place on the earth

    >>> place_text((12.2, 45.1))
    'lat=45.00 lon=12.25'
    """
    degrees = [float(number) for number in place]
    if len(degrees) != 2 or not (abs(degrees[0]) <= 180 and abs(degrees[1]) <= 90):
        raise ConfigError(
            "a place is (longitude, latitude) in degrees, or a text such as 'lat=45.1 lon=12.2', "
            f"got {degrees}"
        )
    return coords_text(*degrees).removesuffix(" [EOS]")


def _quarters(degrees: float) -> str:
    # halves to even, and -0.1 keeps its sign as "-0.00": as in its own code
    return f"{math.copysign(round(abs(degrees) * 4) / 4, degrees):.2f}"


def coords_of(text: str) -> tuple[float, float]:
    """Longitude and latitude of a generated text; NaN where it cannot be read.

    >>> coords_of("lat=45.00 lon=12.25 [EOS]")
    (12.25, 45.0)
    """
    found = re.match(r"\s*lat=\s*(-?\d+(?:\.\d+)?)\s+lon=\s*(-?\d+(?:\.\d+)?)", text)
    return (float(found[2]), float(found[1])) if found else (math.nan, math.nan)


CODECS = "codecs"
CATALOG = "catalog"
# of a transformer's catalog ids: pad, unknown, start, end, 200 sentinels; codes come after them
CATALOG_OFFSET, CATALOG_PAD, CATALOG_END = 204, 0, 3

# the bands of whole images, whose tokens do not tell them
SURVEYS: dict[str, tuple[str, ...]] = {
    "tok_image": ("DES-G", "DES-R", "DES-I", "DES-Z"),
    "tok_image_hsc": ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y"),
}
# name -> rows, columns, ids, folder of its codec
_AION_GRIDS: dict[str, tuple[int, int, int, str]] = {
    "tok_image": (24, 24, 4375, "image"),
    "tok_image_hsc": (24, 24, 4375, "image"),
    "tok_spectrum_desi": (273, 1, 1024, "spectrum"),
    "tok_spectrum_sdss": (273, 1, 1024, "spectrum"),
    "tok_segmap": (12, 12, 1000, "segmentation_map"),
    "tok_xp_bp": (55, 1, 1024, "bp_coefficients"),
    "tok_xp_rp": (55, 1, 1024, "rp_coefficients"),
    "tok_z": (1, 1, 1025, "Z"),
}
_AION_VALUES: dict[str, str] = {
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


def _aion_grid(name: str, rows: int, columns: int, ids: int, folder: str) -> Modality:
    return Modality(
        name=name,
        kind="grid",
        grid=(rows, columns),
        max_tokens=rows * columns,
        vocab_size=ids,
        tokenizer=f"{CODECS}/{folder}",
    )


def _aion_entries() -> Iterator[Modality]:
    for name, (rows, columns, ids, folder) in _AION_GRIDS.items():
        yield _aion_grid(name, rows, columns, ids, folder)
    for name, folder in _AION_VALUES.items():
        yield _aion_grid(name, 1, 1, 1024, folder)
    yield Modality(
        name=CATALOG,
        kind="sequence",
        vocab_size=3264 + CATALOG_OFFSET,
        max_tokens=100,
        max_given=SEQUENCE_ROWS,
        max_positions=50,
        vocab=CATALOG,
        tokenizer=f"{CODECS}/{CATALOG}",
    )


AION_MODALITIES: dict[str, Modality] = {entry.name: entry for entry in _aion_entries()}
