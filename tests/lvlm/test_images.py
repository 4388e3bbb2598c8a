"""Images as a researcher brings them: turned, wide, closed, huge, or none at all."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

import eah_interp as eah
from eah_interp.errors import InputError
from eah_interp.lvlm.images import SUFFIXES, read_image
from eah_interp.testing import random_image, tiny_lvlm, tiny_processor
from eah_interp.toy import draw_scenes
from eah_interp.toy.language import TOY_KNOWS

PHOTO = random_image(3, width=48, height=32)
WIDE = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)


@pytest.fixture(scope="module")
def model():
    return eah.wrap(tiny_lvlm("llava"), tiny_processor("llava"))


def turned(path, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    PHOTO.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_photo_is_turned_as_its_camera_was_held(tmp_path, orientation, suffix):
    path = turned(tmp_path / f"photo{suffix}", orientation)
    whole = load_image(str(path))
    assert whole.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(read_image(path), whole)
    with Image.open(path) as opened:
        assert np.array_equal(read_image(opened), whole)


def test_every_door_sees_the_turned_photo(model, tmp_path):
    path = turned(tmp_path / "photo.jpg")
    assert model.encode(path).image_sizes == [(48, 32)]
    sizes = [model.encode(value).image_sizes for value in (str(path), [path])]
    assert sizes == [[(48, 32)]] * 2


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_wide_grey_images_keep_their_greys(tmp_path, suffix):
    path = tmp_path / f"wide{suffix}"
    Image.fromarray(WIDE).save(path)
    read = np.asarray(read_image(path))[..., 0].astype(int)
    assert np.abs(read - WIDE / 257).max() <= 0.5
    assert np.array_equal(read_image(Image.fromarray(WIDE)), read_image(path))


def test_floating_point_images_keep_their_greys(tmp_path):
    unit = (WIDE / 65535).astype(np.float32)
    path = tmp_path / "unit.tif"
    Image.fromarray(unit).save(path)
    for value in (path, Image.fromarray(unit), unit):
        read = np.asarray(read_image(value))[..., 0].astype(int)
        assert np.abs(read - unit * 255).max() <= 0.51


def test_32_bit_integers_are_read_like_an_array_of_them():
    grey = np.arange(200, dtype=np.int32).reshape(10, 20)
    assert np.array_equal(read_image(Image.fromarray(grey)), read_image(grey))


def closed():
    image = PHOTO.copy()
    image.close()
    return image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.ones((4, 4, 3), complex), "real numbers, got complex128"),
        (lambda: torch.ones((3, 4, 4), dtype=torch.complex64), "got complex64"),
        (lambda: np.full((4, 4, 3), "a"), "real numbers, got <U1"),
        (lambda: np.full((4, 4), None), "real numbers, got object"),
        (lambda: torch.ones(3, 4, 4).to_sparse(), "dense tensor"),
        (lambda: torch.ones(3, 4, 4, device="meta"), "dense tensor"),
        (lambda: Image.new("RGB", (0, 5)), r"no pixels.*got \(0, 5\)"),
        (closed, "is closed"),
        (lambda: Image.fromarray(WIDE.astype(np.int32)), "from 0 to 255, got 0 to 655"),
        (lambda: Image.fromarray(WIDE.astype(np.float32)), "hold values from 0 to 1"),
        (lambda: "a" * 5000, "no image file at a{80}.*5000 characters.*too long"),
        (lambda: "a\0b", "no image file at"),
        (lambda: "https://example.org/photo.jpg", "got a URL.*download"),
        (lambda: "data:image/png;base64,AAAA", "got a URL"),
        (lambda: ".", "no image file at"),
        (lambda: 3, "expected an image .* got int"),
    ],
)
def test_what_is_no_image_is_refused_by_name(make, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_image(make())


def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    PHOTO.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"too large to be decoded.*MAX_IMAGE_PIXELS"):
        read_image(path)


@pytest.mark.parametrize("seed", range(40))
def test_spoilt_bytes_end_in_an_image_or_a_named_refusal(tmp_path, seed):
    """Pillow's decoders raise errors of many kinds."""
    suffix = SUFFIXES[seed % 8]
    path = turned(tmp_path / f"photo{suffix}")
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 12):
        content[place] = rng.integers(256)
    path.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        assert read_image(path).mode == "RGB"


def test_a_path_is_an_image_in_every_door(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turned(tmp_path / "photo.JPG")
    with model.trace("photo.JPG"):
        logits = model.output.logits.save()
    with model.trace() as tracer:
        with tracer.invoke("photo.JPG"):
            invoked = model.output.logits.save()
        with tracer.invoke(PHOTO):
            pass
    with model.trace(**model.encode("photo.JPG")):
        encoded = model.output.logits.save()
    assert torch.equal(logits, encoded)
    assert torch.allclose(invoked, encoded, atol=1e-5)
    with model.generate("photo.JPG", max_new_tokens=2) as tracer:
        ids = tracer.result.save()
    assert model.processor.batch_decode(ids[:, -2:], skip_special_tokens=True) == [
        model.describe("photo.JPG", max_new_tokens=2)
    ]


@pytest.mark.parametrize("how", ["trace", "generate", "scan", "encode", "describe"])
@pytest.mark.parametrize("given", ["gone.png", ["gone.png"]])
def test_a_path_to_nothing_is_refused_in_every_door(model, how, given):
    with pytest.raises(InputError, match=r"no image file at gone\.png"):
        getattr(model, how)(given)


@pytest.mark.parametrize("how", ["trace", "generate", "scan"])
def test_images_and_texts_in_one_list_are_refused(model, how):
    with pytest.raises(InputError, match="images, or of texts, got both: item 1"):
        getattr(model, how)([PHOTO, "what ?"])


def test_text_alone_stays_text(model):
    with model.trace("what is in photo.jpg ?"):
        logits = model.output.logits.save()
    assert logits.shape[1] < 20


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(12).reshape(3, 4).astype(np.uint16), "16-bit integers from 0 to 11"),
        (np.eye(4, dtype=np.uint8), "0 and 1 would be black"),
        (torch.eye(4, dtype=torch.int64), "0 and 1 would be black"),
        (np.eye(4) - 1, "hold values from 0 to 1"),
    ],
)
def test_integers_of_another_range_are_refused(array, message):
    with pytest.raises(InputError, match=message):
        read_image(array)


def test_masks_and_dark_images_are_read():
    assert np.asarray(read_image(np.eye(4, dtype=bool))).max() == 255
    for dark in (np.zeros((4, 4), np.uint8), np.full((4, 4), 2, np.int64)):
        assert np.array_equal(np.asarray(read_image(dark))[..., 0], dark)


def test_a_model_s_folder_may_not_have_an_endless_name():
    with pytest.raises(InputError, match="too long for a path"):
        eah.load("/" + "a" * 5000)


DOORS = {
    "describe": lambda toy, photo: toy.describe(photo, max_new_tokens=1),
    "encode": lambda toy, photo: toy.encode(photo),
    "sinks": eah.score_sinks,
    "attribution": lambda toy, photo: eah.attribute_heads(toy, photo, objects=["cup"]),
    "a twin": lambda toy, photo: eah.edit(toy).describe(photo, max_new_tokens=1),
}


@pytest.mark.parametrize("look", DOORS.values(), ids=DOORS)
def test_the_toy_says_once_in_every_door_that_it_knows_no_photographs(look, caplog):
    toy = eah.load()
    scene, photo = draw_scenes([0])[0].pil(), Image.new("RGB", (48, 32))
    look(toy, scene)
    assert not caplog.records
    look(toy, photo)
    assert [record.message for record in caplog.records] == [TOY_KNOWS]


def test_the_toy_says_once_of_several_photographs(caplog):
    toy = eah.load()
    scene, photo = draw_scenes([0])[0].pil(), Image.new("RGB", (48, 32))
    for _ in range(2):
        toy.describe([scene, photo], max_new_tokens=1)
    assert [record.message for record in caplog.records] == [TOY_KNOWS]
