"""What `eah.load` reads back from a folder is what was saved, in every family."""

import pytest
import torch

import eah_interp as eah
from eah_interp.errors import ExtraMissingError, InputError, ModelError
from eah_interp.testing import FAMILIES, tiny_lvlm, tiny_processor, tiny_tokenizer
from tests.alignment import (
    ALIGNED,
    KernelsByAddress,
    assert_as_alike,
    misalign,
    share_tensors,
)
from tests.tiny_families import (
    PICTURES,
    SUPPORTED,
    attention_of,
    encode,
    ignore_renamed,
    share_model,
    sweep,
)

pytestmark = ignore_renamed

BARE = [name for name in SUPPORTED if FAMILIES[name].build_processor is None]
MISSING = "Can't load (image processor|video processor|feature extractor)"
TORCHVISION = ("mistral3",)
"""Bare families whose tokenizer alone makes transformers ask for torchvision."""


def save(family, folder):
    share_model(family)._module.save_pretrained(folder)
    preprocessor = tiny_tokenizer if family in BARE else tiny_processor
    preprocessor(family).save_pretrained(folder)
    return str(folder)


def run_patched(model, encoding):
    with torch.no_grad(), model.trace(**encoding):
        patch = eah.intervene(model, eah.EAH())
        logits = model.output.logits.save()
    return patch, logits


@pytest.mark.parametrize("family", sweep(SUPPORTED))
def test_a_saved_model_is_patched_as_the_one_in_memory(family, tmp_path):
    """Where no processor can be built, the tokenizer stands for it."""
    options = {"attn_implementation": attention_of(family)}
    if family in BARE:
        options["processor"] = tiny_tokenizer(family)
    loaded = eah.load(save(family, tmp_path), **options)
    assert loaded.verified
    assert type(loaded._module).__name__ == FAMILIES[family].model
    encoding = encode(family, PICTURES[1:], [" is there a boat ?"])
    if family not in BARE:
        again = loaded.encode(PICTURES[1], " is there a boat ?")
        assert all(torch.equal(again[name], encoding[name]) for name in encoding)
    in_memory = share_model(family)
    found, logits = run_patched(loaded, encoding)
    expected, expected_logits = run_patched(in_memory, encoding)
    assert found.donors.tolist() == expected.donors.tolist()
    torch.testing.assert_close(found.density, expected.density)
    with torch.no_grad():
        plain = [one._module(**encoding).logits for one in (loaded, in_memory)]
    assert_as_alike(logits, expected_logits, plain=plain)


def test_where_transformers_finds_a_tokenizer_alone_pictures_are_refused(tmp_path):
    """The tokenizer would take them, and leave them out with a line in the log."""
    loaded = eah.load(save("kosmos2", tmp_path))
    with pytest.raises(InputError, match="has a tokenizer for a processor, so images"):
        loaded.encode(PICTURES[0], "what ?")


@pytest.mark.parametrize("family", [name for name in BARE if name != "kosmos2"])
def test_a_folder_without_its_processor_is_refused_by_name(family, tmp_path):
    share_model(family)._module.config.save_pretrained(tmp_path)
    tiny_tokenizer(family).save_pretrained(tmp_path)
    if family in TORCHVISION:
        refusal = pytest.raises(ExtraMissingError, match="requires the Torchvision")
    else:
        refusal = pytest.raises(ModelError, match=MISSING)
    with refusal:
        eah.load(tmp_path)


def test_weights_off_alignment_compute_the_same_but_for_their_last_bits():
    """As on AMD's processors, where a mapped file's weights get other kernels."""
    model, encoding = share_model("llava"), encode("llava")
    options = {"n_kv_heads": 2, "attn_implementation": attention_of("llava")}
    other = eah.wrap(misalign(tiny_lvlm("llava", **options)))
    weights = [*other._module.parameters()]
    assert all(weight.data_ptr() % ALIGNED == 8 for weight in weights)
    with KernelsByAddress():
        found, logits = run_patched(other, encoding)
        expected, expected_logits = run_patched(model, encoding)
        with torch.no_grad():
            plain = [one._module(**encoding).logits for one in (other, model)]
            again = other._module(**encoding).logits
    assert not torch.equal(*plain)
    assert torch.equal(plain[0], again)
    assert found.donors.tolist() == expected.donors.tolist()
    assert_as_alike(logits, expected_logits, plain=plain)
    with KernelsByAddress():
        share_tensors(other._module, model._module)
        _, shared_logits = run_patched(other, encoding)
    assert torch.equal(shared_logits, expected_logits)
