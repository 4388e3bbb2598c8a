"""A word-level tokenizer with the special tokens that a family's processor expects."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BASE = ("<pad>", "<s>", "</s>", "<unk>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

_WORDS = """
a an the this that it its there here is are was be has have no not yes or and but of
in on at to from with by for as near left right above below behind between before
after what which who where how many why when you your i we they he she do does can
could see tell me say find count look name read describe answer question picture
image photo scene object objects thing color colour shape size place person people
man woman child boy girl dog cat horse bird cow sheep bear boat ship car bus truck
train bicycle plane chair table bed sofa cup bottle bowl plate fork knife spoon
apple orange banana cake tree flower grass sky sea river beach street road house
building door window wall floor light lamp clock book phone television laptop ball
kite umbrella bag hat shoe one two three four five six seven eight nine ten red
green blue yellow black white brown grey big small old young new open closed long
short happy first second next last user assistant system human model detail briefly
please . , ? ! : ; ' " ( ) - / < > | some original crops help better
"""
WORDS = tuple(_WORDS.split())


def build_tokenizer(
    specials: Sequence[str], *, named: Mapping[str, str], add_bos: bool = True
) -> PreTrainedTokenizerFast:
    """Build a left-padding word-level tokenizer; special ids follow the base ids.

    Args:
        specials: Special tokens in the order of their ids, the first of which is 4.
        named: Attribute names of special tokens, such as `image_token="<image>"`.
        add_bos: Whether an encoded text starts with `<s>`.
    """
    vocabulary = {word: i for i, word in enumerate([*BASE, *specials, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([*BASE, *specials])
    if add_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=dict(named),
    )
