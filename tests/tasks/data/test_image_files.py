import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from quantenv.core.errors import QuantenvError
from quantenv.tasks.data.image_files import ImageReader
from quantenv.tasks.imagefolder import Images, Preprocessing
from quantenv.tasks.networks.vision import torchvision

RAMP = np.linspace(0, 1, 64)[None].repeat(16, 0)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 64, 3), dtype=np.uint8)


def eight(mode):
    return Image.fromarray(COLOURS).convert(mode)


def with_alpha(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.putalpha(Image.fromarray((255 * RAMP).astype(np.uint8)))
    return image


def sixteen():
    return Image.fromarray((65535 * RAMP).astype(np.uint16))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", sixteen()),
        ("a.tif", sixteen()),
        ("a.pgm", sixteen()),
        ("big_endian.tif", Image.frombytes("I;16B", (64, 16), (65535 * RAMP).astype(">u2").tobytes())),
        ("float.tif", Image.fromarray(RAMP.astype(np.float32))),
    ],
)
def test_grey_images_of_many_bits_keep_their_brightness(tmp_path, name, image):
    image.save(tmp_path / name)
    read = np.asarray(ImageReader().read(str(tmp_path / name)))
    assert np.abs(read - RAMP).max() < 1e-4


def test_they_are_resized_and_normalised_as_grey_of_8_bits_is(tmp_path):
    sixteen().save(tmp_path / "fine.png")
    Image.fromarray((255 * RAMP).astype(np.uint8)).save(tmp_path / "coarse.png")
    data = Images([(str(tmp_path / name), 3) for name in ("fine.png", "coarse.png")], Preprocessing(12, 8))
    (fine, label), (coarse, _) = data[0], data[1]
    assert fine.shape == (3, 8, 8)
    assert label == 3
    assert torch.allclose(fine, coarse, atol=0.02)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        *((f"{mode}.png", eight(mode)) for mode in ("1", "L", "P", "RGB")),
        *((f"{mode}.png", with_alpha(mode)) for mode in ("L", "RGB")),
        ("cmyk.jpg", eight("CMYK")),
        ("cmyk.tif", eight("CMYK")),
        ("grey.jpg", eight("L")),
        ("still.webp", eight("RGB")),
    ],
)
def test_all_others_are_as_torchvision_reads_them(tmp_path, name, image):
    image.save(tmp_path / name)
    read, expected = ImageReader().read(str(tmp_path / name)), torchvision().datasets.folder.default_loader
    assert np.array_equal(np.asarray(read), np.asarray(expected(str(tmp_path / name))))


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    eight("RGB").save(path, exif=exif)


def palette(path):
    image = eight("P")
    image.save(path, transparency=image.getpixel((0, 0)))


@pytest.mark.parametrize(
    ("name", "save", "sentence"),
    [
        ("a.gif", lambda path: eight("P").save(path, save_all=True, append_images=[eight("L")]), "several frames"),
        ("a.tif", lambda path: eight("L").save(path, save_all=True, append_images=[eight("L")]), "several frames"),
        ("a.png", lambda path: with_alpha("RGB").save(path), "has transparent pixels"),
        ("la.png", lambda path: with_alpha("L").save(path), "has transparent pixels"),
        ("p.png", palette, "has transparent pixels"),
        ("a.jpg", turned, "has an EXIF orientation, which is not applied"),
    ],
)
def test_what_is_left_out_is_said_once(tmp_path, name, save, sentence, caplog):
    reader = ImageReader()
    save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reader.read(str(tmp_path / name))
    (message,) = caplog.messages
    assert sentence in message
    assert name in message


def test_opaque_images_are_nothing_to_speak_of(tmp_path, caplog):
    image = eight("RGB")
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    ImageReader().read(str(tmp_path / "a.png"))
    assert not caplog.messages


def truncated(name, **options):
    def write(path):
        eight("RGB").save(path, **options)
        path.write_bytes(path.read_bytes()[:-400])

    return name, write


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("a.tif", lambda path: Image.fromarray((1e6 * RAMP).astype(np.int32)).save(path), "whole numbers of 32 bits"),
        ("a.tif", lambda path: Image.fromarray((255 * RAMP).astype(np.float32)).save(path), "floats from 0 to 255"),
        ("a.tif", lambda path: Image.fromarray((RAMP * np.nan).astype(np.float32)).save(path), "floats from nan"),
        ("a.png", lambda path: path.write_bytes(b""), "cannot identify image file"),
        ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60)), ""),
        (*truncated("a.jpg"), "truncated"),
        (*truncated("a.png"), ""),
        (*truncated("a.bmp"), "truncated"),
        ("a.png", bomb, "exceeds limit"),
    ],
)
def test_what_is_no_sound_image_is_named(tmp_path, name, write, sentence):
    write(tmp_path / name)
    with pytest.raises(
        QuantenvError, match=rf"Cannot read the image .*{re.escape(name)}: .*{sentence}.*Mend or remove"
    ):
        ImageReader().read(str(tmp_path / name))
