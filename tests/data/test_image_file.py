"""Image files of every kind keep their meaning, or are refused with their name and mode."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymi.data import image_file, load_splits
from raymi.data.image_file import read_image
from raymi.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(read_image(path).image)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2)


def png_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, C) uint16 as PNG, which Pillow does only for grey."""
    png(path, pixels.astype(">u2"), 16, kind={1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]])


def png(path: Path, pixels: np.ndarray, depth: int, kind: int, palette: bytes = b"") -> None:
    """Writes (H, W, C) as PNG of a number of bits and a colour type."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (palette and chunk(b"PLTE", palette))
    chunks += chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))


def tiff(path: Path, pixels: np.ndarray, order: str = "<", **tags: int) -> None:
    """Writes (H, W) or (H, W, C) pixels as uncompressed TIFF of the given byte order."""
    height, width, *channels = pixels.shape
    samples = channels[0] if channels else 1
    kinds = {"u": 1, "i": 2, "f": 3}
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = {
        256: width,
        257: height,
        258: pixels.dtype.itemsize * 8,
        259: 1,
        262: 2 if samples == 3 else 1,
        273: 8,
        277: samples,
        278: height,
        279: len(content),
        339: kinds[pixels.dtype.kind],
    } | {int(tag[1:]): value for tag, value in tags.items()}
    spread = 8 + len(content)  # where the values of tags with one value per sample lie
    directory = struct.pack(order + "H", len(values))
    later = b""
    for tag, value in sorted(values.items()):
        if tag in (258, 339) and samples > 1:
            place = spread + len(later)
            later += struct.pack(f"{order}{samples}H", *[value] * samples)
            directory += struct.pack(order + "HHII", tag, 3, samples, place)
        else:
            directory += struct.pack(order + "HHII", tag, 4, 1, value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(order + "I", spread + len(later))
    path.write_bytes(mark + start + content + later + directory + b"\0\0\0\0")


def netpbm(path: Path, pixels: np.ndarray, white: int) -> None:
    """Writes binary PGM or PPM of 16 bits."""
    magic = b"P6" if pixels.ndim == 3 else b"P5"
    size = f"{pixels.shape[1]} {pixels.shape[0]} {white}\n".encode()
    path.write_bytes(magic + b"\n" + size + pixels.astype(">u2").tobytes())


def pil(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


RAMP_16 = RAMP.astype(np.uint16) * 257

GREY_OF_MANY_BITS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "png": ("x.png", lambda path: pil(path, RAMP_16)),
    "tiff, little endian": ("x.tif", lambda path: tiff(path, RAMP_16)),
    "tiff, big endian": ("x.tif", lambda path: tiff(path, RAMP_16, ">")),
    "tiff, compressed": (
        "x.tiff",
        lambda path: Image.fromarray(RAMP_16).save(path, compression="tiff_lzw"),
    ),
    "tiff, white is 0": ("x.tif", lambda path: tiff(path, 65535 - RAMP_16, t262=0)),
    "pgm": ("x.pgm", lambda path: netpbm(path, RAMP_16, 65535)),
    "pgm, 12 bits": ("x.pgm", lambda path: netpbm(path, np.rint(RAMP / 255 * 4095), 4095)),
    "float tiff": ("x.tif", lambda path: tiff(path, (RAMP / 255).astype(np.float32))),
    "float tiff, big endian": ("x.tif", lambda path: tiff(path, (RAMP / 255).astype("f4"), ">")),
}


@pytest.mark.parametrize("kind", GREY_OF_MANY_BITS)
def test_grey_of_more_than_8_bits_is_scaled(kind, tmp_path):
    name, write = GREY_OF_MANY_BITS[kind]
    write(tmp_path / name)
    assert (read(tmp_path / name) == grey(RAMP)).all()


def test_white_of_12_bit_tiff_is_4095(tmp_path):
    levels = np.rint(RAMP / 255 * 4095).astype(int)
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]  # two pixels in 3 bytes
    content = np.stack(packed, axis=2).reshape(16, 24).astype(np.uint8)
    tiff(tmp_path / "x.tif", content, t256=16, t258=12)
    assert (read(tmp_path / "x.tif") == grey(RAMP)).all()


def test_levels_are_rounded_to_8_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (16, 16)).astype(np.uint16)
    pil(tmp_path / "x.png", pixels)
    assert (read(tmp_path / "x.png") == grey(np.rint(pixels / 257))).all()


COLOUR_16 = np.random.default_rng(1).integers(0, 2**16, (6, 5, 3)).astype(np.uint16)

COLOUR_OF_MANY_BITS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "png": ("x.png", lambda path: png_of_16_bits(path, COLOUR_16)),
    "png, opaque": (
        "x.png",
        lambda path: png_of_16_bits(path, np.dstack([COLOUR_16, np.full((6, 5), 65535)])),
    ),
    "tiff": ("x.tif", lambda path: tiff(path, COLOUR_16)),
    "tiff, big endian": ("x.tif", lambda path: tiff(path, COLOUR_16, ">")),
    "ppm": ("x.ppm", lambda path: netpbm(path, COLOUR_16, 65535)),
}


@pytest.mark.parametrize("kind", COLOUR_OF_MANY_BITS)
def test_colour_of_16_bits_keeps_its_upper_8_bits(kind, tmp_path):
    name, write = COLOUR_OF_MANY_BITS[kind]
    write(tmp_path / name)
    assert np.abs(read(tmp_path / name) - COLOUR_16 / 257).max() <= 1


def one_pixel(value: float, dtype: str = "f4") -> np.ndarray:
    pixels = np.full((4, 4), 0, dtype)
    pixels[2, 1] = value
    return pixels


def animation(path: Path) -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def with_alpha(path: Path, mode: str = "RGBA", lowest: int = 128) -> None:
    image = Image.fromarray(grey(RAMP)).convert(mode)
    alpha = np.full((16, 16), 255, np.uint8)
    alpha[3, 3] = lowest
    image.putalpha(Image.fromarray(alpha))
    image.save(path)


def palette_with_transparency(path: Path) -> None:
    image = Image.fromarray(grey(RAMP)).quantize(16)
    image.save(path, transparency=image.getpixel((0, 0)))


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "float above 1": ("x.tif", lambda p: tiff(p, one_pixel(255)), "mode F.*0 to 255.*scale"),
    "float below 0": ("x.tif", lambda p: tiff(p, one_pixel(-0.5)), "mode F.* -0.5 to 0, exp"),
    "NaN": ("x.tif", lambda p: tiff(p, one_pixel(np.nan)), "mode F.*nan"),
    "infinite": ("x.tif", lambda p: tiff(p, one_pixel(np.inf)), "mode F.*inf"),
    "32 bits": ("x.tif", lambda p: tiff(p, one_pixel(7, "u4")), "integers of 32 bits .mode I"),
    "signed 32": ("x.tif", lambda p: tiff(p, one_pixel(7, "i4")), "signed integers of 32 bits"),
    "signed 16": ("x.tif", lambda p: tiff(p, one_pixel(7, "i2")), "signed integers of 16 bits"),
    "signed 8": ("x.tif", lambda p: tiff(p, one_pixel(7, "i1")), "mode L"),
    "LAB": ("x.tif", lambda p: tiff(p, grey(RAMP), t262=8), "mode LAB.*save it as RGB"),
    "alpha": ("x.png", with_alpha, "transparent pixels .mode RGBA.*background"),
    "webp alpha": ("x.webp", lambda p: with_alpha(p), "transparent pixels .mode RGBA"),
    "tiff alpha": ("x.tif", lambda p: with_alpha(p), "transparent pixels .mode RGBA"),
    "grey alpha": ("x.png", lambda p: with_alpha(p, "L", 0), "transparent pixels .mode LA"),
    "16-bit alpha": (
        "x.png",
        lambda p: png_of_16_bits(p, np.dstack([COLOUR_16, COLOUR_16[..., :1]])),
        "transparent pixels .mode RGBA",
    ),
    "palette": ("x.png", palette_with_transparency, "transparent pixels .mode P"),
    "gif": ("x.gif", palette_with_transparency, "transparent pixels"),
    "transparent colour": (
        "x.png",
        lambda p: Image.fromarray(grey(RAMP)).save(p, transparency=(5, 5, 5)),
        "transparent pixels .mode RGB",
    ),
    "transparent 16-bit level": (
        "x.png",
        lambda p: Image.fromarray(RAMP_16).save(p, transparency=257),
        "transparent pixels .mode I",
    ),
    "palette of too few colours": (
        "x.png",
        lambda p: png(p, RAMP[..., None] // 64, 8, kind=3, palette=bytes(9)),
        "pixels without a colour in its palette of 3",
    ),
    "no palette": (
        "x.png",
        lambda p: png(p, RAMP[..., None], 8, kind=3),
        "pixels without a colour in its palette of 0",
    ),
    "animated webp": ("x.webp", animation, "2 frames or pages"),
    "animated png": ("x.png", animation, "2 frames or pages"),
    "animated gif": ("x.gif", animation, "2 frames or pages"),
    "pages": ("x.tif", animation, "2 frames or pages.*files of their own"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_files_are_refused(kind, tmp_path):
    name, write, message = REFUSED[kind]
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} has .*{message}.*remove it") as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def opaque(path: Path, mode: str) -> None:
    with_alpha(path, mode, lowest=255)


def phone_photo(path: Path) -> None:
    """A JPEG file with a preview behind its image (MPO)."""
    preview = Image.new("RGB", (4, 4))
    Image.fromarray(grey(RAMP)).save(
        path, "MPO", save_all=True, append_images=[preview], quality=100, subsampling=0
    )


USUAL: dict[str, tuple[str, Callable[[Path], None]]] = {
    "grey": ("x.png", lambda p: pil(p, RAMP)),
    "opaque": ("x.png", lambda p: opaque(p, "RGB")),
    "opaque grey": ("x.png", lambda p: opaque(p, "L")),
    "palette": ("x.png", lambda p: Image.fromarray(RAMP).convert("P").save(p)),
    "palette, unused transparency": (
        "x.png",
        lambda p: Image.fromarray(np.maximum(RAMP, 1)).convert("P").save(p, transparency=0),
    ),
    "gif": ("x.gif", lambda p: pil(p, RAMP)),
    "cmyk": ("x.tif", lambda p: Image.fromarray(grey(RAMP)).convert("CMYK").save(p)),
    "phone": ("x.jpg", phone_photo),
    "tiff": ("x.tif", lambda p: tiff(p, grey(RAMP))),
}


@pytest.mark.parametrize("kind", USUAL)
def test_usual_modes_are_converted(kind, tmp_path):
    name, write = USUAL[kind]
    write(tmp_path / name)
    expected = np.maximum(RAMP, 1) if "unused" in kind else RAMP
    assert np.abs(read(tmp_path / name).astype(int) - grey(expected)).max() <= 2


def test_bilevel_images_become_black_and_white(tmp_path):
    Image.fromarray(RAMP > 99).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png") == grey(np.where(RAMP > 99, 255, 0))).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    """The corner that EXIF says is the top left one is dark."""
    stored = np.full((32, 48), 255, np.uint8)
    upright = stored.T.copy() if orientation > 4 else stored.copy()
    upright[:16, :16] = 0
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: np.rot90,  # to be turned clockwise
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(undo(upright)))
    assert image.size == (48, 32)
    image.convert("RGB").save(tmp_path / f"x.{suffix}", exif=exif)
    found = read(tmp_path / f"x.{suffix}")
    assert found.shape[:2] == upright.shape
    assert np.abs(found.astype(int) - grey(upright)).mean() < 3


def test_damaged_exif_data_are_ignored(tmp_path):
    Image.fromarray(grey(RAMP)).save(tmp_path / "x.png", exif=b"Exif\0\0nonsense")
    assert (read(tmp_path / "x.png") == grey(RAMP)).all()


def test_files_of_unsupported_formats_start_no_program(tmp_path):
    path = tmp_path / "x.png"  # Pillow's reader of EPS starts Ghostscript
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    Image.open(path).close()
    with pytest.raises(UserError, match=r"x.png cannot be read .*cannot identify image file"):
        read_image(path)


@pytest.mark.parametrize("white", [0, 1, 16])
def test_nearly_black_sets_of_8_bits_are_refused(white, tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            pil(tmp_path / part / name / "0.png", (RAMP > 99).astype(np.uint8) * white)
    with pytest.raises(UserError, match=r"all 2 images .*train are nearly black"):
        load_splits("folder", tmp_path)


def test_too_large_images_are_refused_before_decoding(tmp_path):
    for width in (10_001, 60_000):  # the second one is refused by Pillow itself
        path = tmp_path / f"{width}.pgm"
        path.write_bytes(f"P5\n{width} 10000 255\n".encode())  # decoding would find no pixels
        with pytest.raises(UserError, match=rf"{width}.pgm .*(10001x10000 pixels|too large)"):
            read_image(path)


def test_the_limit_counts_pixels(tmp_path, monkeypatch):
    pil(tmp_path / "x.png", RAMP)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 256)
    read_image(tmp_path / "x.png")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 255)
    with pytest.raises(UserError, match=r"16x16 pixels, expected at most 255: scale it down"):
        read_image(tmp_path / "x.png")


def test_colour_ppm_has_the_depth_of_its_white(tmp_path):
    netpbm(tmp_path / "x.ppm", grey(RAMP_16 // 16), 65535)
    assert read_image(tmp_path / "x.ppm").brightest == 16 / 255
    pil(tmp_path / "y.ppm", grey(RAMP))
    assert read_image(tmp_path / "y.ppm").brightest is None
    (tmp_path / "z.pbm").write_text("P1 2 1 0 1")
    assert read_image(tmp_path / "z.pbm").brightest is None


@pytest.mark.parametrize("channels", [1, 3])
def test_sets_of_12_bits_stored_in_16_are_refused(channels, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 4096, (8, 8, channels)).astype(np.uint16)
                png_of_16_bits(tmp_path / part / name / f"{i}.png", pixels)
    message = r"all 6 images .*train are nearly black: .*[56]\.?\d?% .*65535"
    with pytest.raises(UserError, match=message):
        load_splits("folder", tmp_path)
    for path in tmp_path.rglob("*.png"):
        pixels = rng.integers(0, 4096, (8, 8, channels)).astype(np.uint16)
        png_of_16_bits(path, pixels * 16)
    assert load_splits("folder", tmp_path).train.images.max() > 250


def test_one_dark_16_bit_image_is_accepted(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            pil(tmp_path / part / name / "0.png", RAMP_16)
            pil(tmp_path / part / name / "1.png", RAMP_16 // 16)
    assert load_splits("folder", tmp_path, val_fraction=0).train.images.max() == 255
