#!/usr/bin/env bash
# Pillow: resizing a four-band tile changes its first three bands wherever the fourth is small.
#
# Behaviour: an array uint8[H, W, 4] opens as mode RGBA, and `resize` multiplies the first three bands by the
#   fourth before it filters and divides by it afterwards. Every filter but NEAREST does so. Bands that are
#   resized one by one differ by up to tens of grey values; where the fourth band is 0 the others become 0.
# Why a guess is wrong: a resize is taken to be linear and to treat bands alike, and so it does for RGB, for CMYK
#   (also four bands) and for each band alone. The mode is not chosen by the user: four bands are RGBA.
# Who meets it: whoever resizes Sentinel-2 10 m tiles (blue, green, red, near infrared), aerial RGB + near infrared
#   or RGB + depth for a multimodal model. Near infrared is close to 0 over water.
# Instead: resize each band as mode L or F, or use mode CMYK as a mere container.
#
# Seen with pillow 13.0.0, numpy 2.4.6:
#   mode RGBA, BILINEAR: bands differ by at most [78 69 78 0] from bands resized alone
#   mode RGBA, NEAREST: bands differ by at most [0 0 0 0]
#   mode CMYK, BILINEAR: bands differ by at most [0 0 0 0]
#   water (fourth band 0): band 1 was 120 everywhere, is 0 after resize
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import numpy as np, PIL
from PIL import Image
from PIL.Image import Resampling

print("pillow", PIL.__version__)
tile = np.random.default_rng(0).integers(50, 200, (64, 64, 4), dtype=np.uint8)
tile[:32, :, 3] = 3


def worst(image, how):
    whole = np.asarray(image.resize((32, 32), how)).astype(int)
    alone = [np.asarray(Image.fromarray(tile[..., i]).resize((32, 32), how)) for i in range(4)]
    off = np.abs(whole - np.stack(alone, -1).astype(int)).reshape(-1, 4).max(0)
    print(f"mode {image.mode}, {how.name}: bands differ by at most {off} from bands resized alone")
    return off


image = Image.fromarray(tile)
assert image.mode == "RGBA"
assert worst(image, Resampling.BILINEAR)[:3].min() > 20, "bands no longer bleed"
assert worst(image, Resampling.NEAREST).max() == 0
assert worst(Image.frombytes("CMYK", image.size, tile.tobytes()), Resampling.BILINEAR).max() == 0
water = np.full((8, 8, 4), 120, np.uint8)
water[..., 3] = 0
after = np.asarray(Image.fromarray(water).resize((4, 4), Resampling.BILINEAR))
print(f"water (fourth band 0): band 1 was 120 everywhere, is {after[..., 0].max()} after resize")
assert after[..., 0].max() == 0, "bands under a fourth band of 0 are kept now"
PY
