"""Small tokenizers of every kind that is met, trained here on a few lines."""

import json
from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

_TEXT = [
    "The mother tongue of Danielle Darrieux is French. The owner of Café São Tomé is Zürich.",
    "The capital city of France is Paris, and that of Italy is Rome; Spain has Madrid.",
    "Marie Curie was born in Warsaw in 1867; she worked as a physicist (not a painter).",
    "Therefore I think that you know because the Eiffel Tower is in the city of Paris.",
    "user assistant: What is the capital of France? It is Rome. Jean-Paul Sartre's wife, U.S.",
    "def print(value): return value + 1 # Saint-Denis 'quoted' [list] {set} “Rome”",
    "The wife of O'Neill is called Jean.",
    "法国的首都是巴黎。意大利的首都是罗马。小明是一个学生。西游记的作者是吴承恩。",
    "フランスの首都はパリです。東京は日本の首都です。",
    "عاصمة فرنسا هي باريس. عاصمة مصر هي القاهرة.",
    "Столица Франции Москва и Париж. 프랑스의 수도는 파리 로마이다.",
    "เมืองหลวงของฝรั่งเศสคือปารีส",
    "user: What is the capital of Italy?\n\nassistant:\n\n",
    "The flag is 🎭 and 👍 and 🇫🇷 family 👨‍👩‍👧.",
] * 4  # fmt: skip
_LATIN = [line for line in _TEXT if max(map(ord, line)) < 0x2100]
_ENDS = ["<s>", "</s>", "<unk>"]
_CHAT = ["<|im_start|>", "<|im_end|>"]


def _byte_level(
    normalizer=None,
    *,
    bos: bool = False,
    side: str = "right",
    prefix: bool = False,
    size: int = 600,
) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*_ENDS[:2], *_CHAT], initial_alphabet=alphabet,
            show_progress=False,
        ),
    )  # fmt: skip
    if bos:
        _put_in_front(made)
    return _wrapped(made, padding_side=side, additional_special_tokens=_CHAT)


def _sentence_piece(kind: str, *, bos: bool) -> PreTrainedTokenizerFast:
    """BPE over whole texts with ▁ for blanks and bytes as a fallback: Llama 2's way, or Gemma's."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    blanks = normalizers.Replace(" ", "▁")
    llama = kind == "llama"
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if llama else blanks
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[^▁])(?=▁)"), "isolated")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=[*_ENDS, *bytes_], limit_alphabet=60, show_progress=False
        ),
    )
    made = _with_bytes_as_words(made)
    made.pre_tokenizer = None if llama else pre_tokenizers.Split(" ", "merged_with_previous")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if llama else [])])
    if bos:
        _put_in_front(made)
    return _wrapped(made, unk_token="<unk>")


def _unigram(*, spells_bytes: bool) -> PreTrainedTokenizerFast:
    """NFKC, ▁ before every word, and EOS behind every text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    made.train_from_iterator(
        _LATIN,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=_ENDS, unk_token="<unk>", show_progress=False
        ),
    )
    if spells_bytes:
        state = json.loads(made.to_str())
        state["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        state["model"]["byte_fallback"] = True
        made = Tokenizer.from_str(json.dumps(state))
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return _wrapped(made, unk_token="<unk>")


def _words() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=_ENDS, show_progress=False)
    made.train_from_iterator(_LATIN, trainer)
    return _wrapped(made, unk_token="<unk>")


def _word_pieces() -> PreTrainedTokenizerFast:
    """Without case and accents, between [CLS] and [SEP]."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(_LATIN, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", **names)


_MADE = {
    "byte-level": _byte_level,
    "byte-level, large": lambda: _byte_level(size=900),
    "byte-level, NFC": lambda: _byte_level(normalizers.NFC()),
    "byte-level, NFKC": lambda: _byte_level(normalizers.NFKC()),
    "byte-level, lower case": lambda: _byte_level(normalizers.Lowercase()),
    "byte-level, BOS": lambda: _byte_level(bos=True),
    "byte-level, BOS, left": lambda: _byte_level(bos=True, side="left"),
    "byte-level, blank in front": lambda: _byte_level(prefix=True),
    "llama": lambda: _sentence_piece("llama", bos=False),
    "llama, BOS": lambda: _sentence_piece("llama", bos=True),
    "gemma": lambda: _sentence_piece("gemma", bos=True),
    "unigram, NFKC, EOS": lambda: _unigram(spells_bytes=False),
    "unigram, NFKC, EOS, bytes": lambda: _unigram(spells_bytes=True),
    "words": _words,
    "word pieces, uncased": _word_pieces,
}
NAMES = tuple(_MADE)


@cache
def made(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of that name."""
    return _MADE[name]()


def _put_in_front(made: Tokenizer) -> None:
    begin = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )


def _with_bytes_as_words(made: Tokenizer) -> Tokenizer:
    """Tokens of bytes are ordinary ones, as in real checkpoints."""
    state = json.loads(made.to_str())
    added = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps({**state, "added_tokens": added}))


def _wrapped(made: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends, **options)
