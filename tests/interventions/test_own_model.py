"""Claims about LVLMs that are not in transformers: any decoder of its own that is.

MiniGPT-4, Shikra and Mini-Gemini put pictures into the embeddings of a Hugging Face
decoder themselves. That decoder is wrapped; the embeddings and the places of the
picture are given.
"""

import pytest
import torch
from torch import nn

import eah_interp as eah
from eah_interp.errors import InputError, ModelError
from eah_interp.testing import tiny_lvlm
from tests.oracle_forward import OracleEAH, oracle_generate, oracle_logits

UNUSED_ID = 3
"""No picture stands as tokens in these prompts; wrapping asks for an id anyway."""


class Spectacles(nn.Module):
    """What such a model does before its decoder: words, a picture, more words."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, words.embedding_dim, kernel_size=8, stride=8)

    @torch.no_grad()
    def look(self, pixels, before, after):
        seen = self.patches(pixels).flatten(2).transpose(1, 2)
        parts = [self.words(before), seen, self.words(after)]
        mask = torch.zeros(len(pixels), sum(p.shape[1] for p in parts)).bool()
        mask[:, before.shape[1] : before.shape[1] + seen.shape[1]] = True
        return torch.cat(parts, dim=1), mask


@pytest.fixture(params=["eager", "sdpa"])
def setting(request):
    decoder = tiny_lvlm("llama", n_kv_heads=2, attn_implementation=request.param)
    embeddings, image_mask = Spectacles(decoder.get_input_embeddings()).look(
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        torch.tensor([[1, 9, 12], [1, 30, 7]]),
        torch.tensor([[40, 41, 42, 43], [50, 51, 52, 53]]),
    )
    tokens = torch.ones(image_mask.shape, dtype=torch.long)
    tokens[0, :1] = 0  # padding on the left
    inputs = {"inputs_embeds": embeddings, "attention_mask": tokens}
    return eah.wrap(decoder, image_token_id=UNUSED_ID), inputs, image_mask


def oracle_for(inputs, image_mask):
    decoder = tiny_lvlm("llama", n_kv_heads=2, attn_implementation="eager")
    tokens = inputs["attention_mask"].bool()
    return decoder, OracleEAH(image_mask=image_mask, token_mask=tokens)


def test_a_patched_forward_equals_the_slow_oracle(setting):
    model, inputs, image_mask = setting
    decoder, oracle = oracle_for(inputs, image_mask)
    expected = oracle_logits(decoder, inputs, edit_pattern=oracle).logits
    plain = oracle_logits(decoder, inputs).logits
    with torch.no_grad(), model.trace(**inputs):
        patch = eah.intervene(model, eah.EAH(), image_mask=image_mask)
        logits = model.output.logits.save()
    assert patch.donors.tolist() == oracle.donors[1].tolist()
    real = inputs["attention_mask"].bool()
    size = expected[real].abs().max()
    assert (logits - expected)[real].abs().max() <= 1e-4 * size
    assert (expected - plain)[real].abs().max() > 1e-3 * size


def test_generation_equals_the_slow_oracle(setting):
    model, inputs, image_mask = setting
    decoder, oracle = oracle_for(inputs, image_mask)
    options = {"max_new_tokens": 4, "min_new_tokens": 4}
    expected = oracle_generate(decoder, inputs, edit_pattern=oracle, **options)
    with torch.no_grad(), model.generate(**inputs, **options, do_sample=False) as run:
        eah.intervene(model, eah.EAH(), image_mask=image_mask)
        ids = run.result.save()
    assert ids[:, -4:].tolist() == expected[:, -4:].tolist()


def test_without_the_places_of_the_picture_it_is_refused(setting):
    model, inputs, _ = setting
    refused = pytest.raises(InputError, match="pass image_mask")
    with refused, torch.no_grad(), model.trace(**inputs):
        eah.intervene(model, eah.EAH())


def test_without_an_image_token_id_a_text_model_is_refused():
    with pytest.raises(ModelError, match=r"image_token_id=\.\.\. if images enter"):
        eah.wrap(tiny_lvlm("llama"))
