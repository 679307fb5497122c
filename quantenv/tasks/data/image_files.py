"""Image files of any kind that Pillow reads, as red, green and blue; what has no clear meaning is refused by name."""

import logging
from collections.abc import Callable

import numpy as np
from PIL import Image

from quantenv.core.errors import QuantenvError

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112
#: Modes with as many bits as Pillow's whole numbers of 16.
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
_WHITE = 65535


class ImageReader:
    """Reads image files, and says of the first file of each kind what is left out of it."""

    def __init__(self) -> None:
        """Starts with nothing said."""
        self._said: set[str] = set()

    def read(self, path: str) -> Image.Image:
        """Reads an image.

        Colours are as torchvision's `ImageFolder` reads them: of an animation the first frame, under transparency what
        is stored there, and as the camera was held whatever EXIF says of that; each is said once in the log.

        Returns:
            An RGB image of 8 bits; or, of grey images with more, one of mode F in [0, 1].

        Raises:
            QuantenvError: If the file is no sound image, or holds numbers that mean no certain brightness.
        """
        try:
            with Image.open(path) as image:
                self._say(path, image)
                return _grey(image) if image.mode in (*_SIXTEEN, "I", "F") else image.convert("RGB")
        except Exception as error:  # Pillow raises many kinds, according to the format and the byte that is wrong
            if isinstance(error, MemoryError):
                raise
            reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
            raise QuantenvError(f"Cannot read the image {path}: {reason}. Mend or remove it.") from error

    def _say(self, path: str, image: Image.Image) -> None:
        kinds: dict[str, Callable[[], bool]] = {
            "has several frames or pages, of which the first is taken": lambda: getattr(image, "n_frames", 1) > 1,
            "has transparent pixels, of which the stored colours are taken": lambda: _transparent(image),
            "has an EXIF orientation, which is not applied: torchvision does not either": (
                lambda: image.getexif().get(_ORIENTATION, 1) != 1
            ),
        }
        for kind, holds in kinds.items():
            if kind not in self._said and holds():
                self._said.add(kind)
                logger.warning("%s %s (so may other images).", path, kind)


def _transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(lowest, int | float) and lowest < 255


def _grey(image: Image.Image) -> Image.Image:
    """Returns a grey image of more than 8 bits in mode F, black 0 and white 1."""
    values = np.asarray(image).astype(np.float32)
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in ("PNG", "PPM")):  # of 16 bits
        return Image.fromarray(values / _WHITE)
    if image.mode == "I":
        raise ValueError("it holds whole numbers of 32 bits, of which none is known to be white; save it with 8 or 16")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"it holds floats from {values.min():.4g} to {values.max():.4g}; expected 0, black, to 1, white"
        )
    return Image.fromarray(values)
