"""The toy's tokenizer and processor.

A unigram model over a hand-made list of pieces, in the manner of Llama's: a word
carries its leading space (`▁boat`), unknown words fall apart into letters, and four
objects are two pieces each (`▁light` `house`), so that multi-token objects are met.
"""

import re
from typing import TYPE_CHECKING

from eah_interp.toy.language import (
    CAPTION_PROMPTS,
    CAPTIONS,
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    QUESTIONS,
)
from eah_interp.toy.world import COLOURS, OBJECTS, World

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

SPLIT_WORDS: dict[str, tuple[str, str]] = {
    "lighthouse": ("light", "house"),
    "butterfly": ("butter", "fly"),
    "mushroom": ("mush", "room"),
    "bicycle": ("bi", "cycle"),
}
"""Objects of two pieces; the second piece carries no leading space."""

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN)

_PIECE_SCORE, _LETTER_SCORE = -1.0, -20.0


def list_pieces() -> list[tuple[str, float]]:
    """List the vocabulary with unigram scores: special tokens, words, then letters."""
    texts = (*CAPTIONS, *CAPTION_PROMPTS, *QUESTIONS, "USER ASSISTANT Yes No and a")
    plain = re.sub(r"\{\w+\}", "", " ".join(texts))
    words = dict.fromkeys([*re.findall(r"[A-Za-z]+", plain), *COLOURS, *OBJECTS])
    pieces = dict.fromkeys(SPECIAL_TOKENS, 0.0)
    for word in words:
        first, *rest = SPLIT_WORDS.get(word, (word,))
        pieces[f"▁{first}"] = _PIECE_SCORE
        pieces.update(dict.fromkeys(rest, _PIECE_SCORE))
        if word[0].isupper():
            pieces[word] = _PIECE_SCORE
    pieces.update(dict.fromkeys("▁\n.,?:", _PIECE_SCORE))
    for code in range(33, 127):
        pieces.setdefault(chr(code), _LETTER_SCORE)
    return list(pieces.items())


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer: `<s>` first, left padding, text restored exactly.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.tokenize("a lighthouse, a boat")
        ['▁a', '▁light', 'house', ',', '▁a', '▁boat']
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = list_pieces()
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    start = [piece for piece, _ in pieces].index("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor(world: World) -> "LlavaProcessor":
    """Build the processor that turns pictures and prompts into model inputs.

    Args:
        world: Says how large pictures and patches are.

    Returns:
        A `LlavaProcessor` with a PIL image processor (no torchvision needed).
    """
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import (
        CLIPImageProcessorPil,
    )

    side = world.image_size
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=world.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
