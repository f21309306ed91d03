"""NumPy's .npy files, read without pickle and without believing their header.

`numpy.load` allocates what the header declares; here the file must be as long as it says.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.errors import FourMError

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """The array of an .npy file.

    Raises:
        FourMError: the bytes are no .npy file, hold objects, or are not as long as declared
    """
    stream = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    # A hostile header is Python syntax: reading it may fail in any way, but runs nothing.
    except Exception as error:
        raise FourMError(
            f"expected an .npy file of version 1 or 2, got {len(data)} bytes that are none "
            f"({type(error).__name__}); write one with numpy.save"
        ) from error
    if dtype.hasobject:
        raise FourMError("this .npy file holds Python objects, which would run code; save numbers")
    start = stream.tell()
    declared = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or declared != len(data) - start:
        raise FourMError(
            f"the .npy file declares {dtype}{list(shape)}, {declared} bytes, but "
            f"{len(data) - start} follow; it is cut off or damaged"
        )
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")
