r"""The tokenizer of a model, by one door: bytes for ours, its own vocabulary for one of other software.

    folder with tokenizer.json    byte-pair encoding, WordPiece …, as the `tokenizers` package reads it
    GGUF file                     the byte-pair encoding in its settings
    .npz file                     pairs of characters, in NAME.tokenizer.json beside NAME.npz
    any other, or none            bytes

A folder of ours has a tokenizer.json where an adapter was merged into a base that brought a vocabulary: see `files_of`.
The mark that ends a text, starts a sequence and pads a batch is the vocabulary's own end, or [SEP].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import TransformerConfig
from .disk.reading import read_json, read_regular
from .formats.disk import only, shown
from .formats.folders import gguf_file, is_foreign, npz_file
from .installed import base_path
from .tokenizers import ByteTokenizer, Tokenizer
from .tokenizers import begun as begun

VOCABULARY, ABOUT = "tokenizer.json", "tokenizer_config.json"
ENDS = ("eos_token", "sep_token")  # of tokenizer_config.json, the first that is there
PRETOKENIZERS = ("gpt-2", "default", "smollm")  # how GGUF files say what is cut apart before pairs are joined
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")  # the first ids of a vocabulary of characters, glassllm's
SPACE = "▁"  # what stands there for a space
CONTROL = 3  # what a GGUF file calls a token that no text holds


@dataclass(frozen=True)
class FileTokenizer:
    """A vocabulary as the `tokenizers` package holds it, with the members of `Tokenizer`."""

    library: Any
    end: int
    vocab: int

    def encode(self, text: str, /) -> NDArray[np.int64]:
        """The ids of `text`, none of them special; a text that spells its end, or no text, raises ValueError."""
        ids = np.array(self._encoded(text, special=False), np.int64)
        if (ids == self.end).any():
            raise ValueError(f"text must not contain {self.library.id_to_token(self.end)!r}, which marks its end")
        return ids

    def begun(self, text: str, /) -> NDArray[np.int64]:
        """The ids of a text that goes on, with what its vocabulary puts before it, if anything."""
        ids = np.array(self._encoded(text, special=True), np.int64)
        return ids if len(ids) else np.array([self.end])

    def classified(
        self, first: str, second: str = "", most: int | None = None, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As the vocabulary lays out one text or two, of which [CLS] and [SEP] are a part; else begun, and an end."""
        if most is not None:
            self.library.enable_truncation(max(most, 4))  # room for what stands around two texts
        try:
            found = self.library.encode(first, second or None, add_special_tokens=True)
        finally:
            self.library.no_truncation()
        if found.ids and found.ids[-1] == self.end:
            return np.array(found.ids, np.int64), np.array(found.type_ids, np.int64)
        ids = np.append(self.begun(f"{first}\t{second}" if second else first)[: most and most - 1], self.end)
        return ids, np.zeros_like(ids)

    def decode(self, tokens: ArrayLike, /) -> str:
        """The text of all `tokens`, its end dropped wherever it stands."""
        ids = np.asarray(tokens)
        if ids.size and (ids.dtype.kind not in "iu" or not 0 <= ids.min() <= ids.max() < self.vocab):
            raise ValueError(f"tokens must be whole numbers in 0..{self.vocab - 1}, got {ids.min()}..{ids.max()}")
        return str(self.library.decode(ids[ids != self.end].astype(int).tolist(), skip_special_tokens=False))

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text must be encodable as UTF-8, got the lone surrogate {text[error.start]!r} "
                f"at character {error.start}: remove it"
            ) from None
        return list(self.library.encode(text, add_special_tokens=special).ids)


def tokenizer_of(folder: str | Path | None, config: TransformerConfig | None = None) -> Tokenizer:
    """The tokenizer of a model folder, or file.

    Raises ValueError or OSError in one line where one of other software brings none, or one that does not fit into
    the vocabulary of `config`.
    """
    path = None if folder is None else base_path(folder)
    if path is None or not (is_foreign(path) or (path / VOCABULARY).exists()):
        return ByteTokenizer()
    if gguf := gguf_file(path):
        found = _of_gguf(gguf)
    else:
        found = _of_characters(path) if npz_file(path) else _of_folder(path)
    if config is not None and found.vocab > config.vocab:
        raise ValueError(
            f"{path}: its tokenizer has {found.vocab} tokens, and the model knows {config.vocab}: they do not belong "
            "together"
        )
    return found


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files beside a model from which `tokenizer_of` makes this tokenizer again; none for bytes."""
    if not isinstance(tokenizer, FileTokenizer):
        return {}
    about = {ENDS[0]: tokenizer.library.id_to_token(tokenizer.end)}
    return {VOCABULARY: tokenizer.library.to_str(pretty=True).encode(), ABOUT: json.dumps(about, indent=2).encode()}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError('vocabularies need the tokenizers package: pip install "lora_np[checkpoints]"') from None
    return tokenizers


def _of_folder(folder: Path) -> FileTokenizer:
    path = folder / VOCABULARY
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: a model of other software needs its tokenizer beside it")
    package, data = _library(), read_regular(path).data
    library = _made(path, lambda: package.Tokenizer.from_str(data.decode("utf-8")))
    library.no_padding()
    library.no_truncation()
    return FileTokenizer(library, _end(folder, library), library.get_vocab_size(with_added_tokens=True))


def _made(path: Path, make: Callable[[], Any]) -> Any:
    """What the library makes of the contents of this file; whatever it makes of bad ones becomes a ValueError."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # it raises nothing more exact, and a panic in Rust is no Exception
        raise ValueError(f"{path} holds no tokenizer that can be read: {shown(str(error), quoted=False)}") from None


def _end(folder: Path, library: Any) -> int:
    """The id of the end: as tokenizer_config.json names it, or config.json numbers it."""
    about = folder / ABOUT
    named: Mapping[str, Any] = read_json(about) if about.exists() else {}
    for role in ENDS:
        token = named.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (number := library.token_to_id(token)) is not None:
            return int(number)
    number = read_json(folder / "config.json").get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    if type(number) is int and library.id_to_token(number) is not None:
        return number
    raise ValueError(f"{folder}: neither tokenizer_config.json nor config.json says which token ends a text")


def _of_gguf(path: Path) -> FileTokenizer:
    """Byte-pair encoding as GPT-2's, from the lists in the settings."""
    from .formats.gguf import open_gguf

    package = _library()
    _, settings = open_gguf(path, whole=True)
    about = {name.removeprefix("tokenizer.ggml."): value for name, value in settings.items() if "tokenizer" in name}
    words, pairs, end = about.get("tokens"), about.get("merges"), about.get("eos_token_id")
    if about.get("model") != "gpt2" or not (isinstance(words, list) and isinstance(pairs, list)):
        raise ValueError(f"{path}: only vocabularies of byte pairs are read, this one is {shown(about.get('model'))}")
    if about.get("pre", "default") not in PRETOKENIZERS:
        raise ValueError(f"{path}: text is cut as {shown(about['pre'])} says; known are {only(PRETOKENIZERS)}")
    if type(end) is not int or not 0 <= end < len(words):
        raise ValueError(
            f"{path}: tokenizer.ggml.eos_token_id must be one of its {len(words)} tokens, got {shown(end)}"
        )
    if not all(isinstance(word, str) for word in (*words, *pairs)):
        raise ValueError(f"{path}: the tokens and the merges of a vocabulary must be texts")
    merges = [tuple(pair.split(" ", 1)) for pair in pairs]
    vocabulary = {word: i for i, word in enumerate(words)}
    library = _made(path, lambda: package.Tokenizer(package.models.BPE(vocabulary, merges)))
    bytes_ = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [package.pre_tokenizers.Digits(individual_digits=True)] if about.get("pre") == "smollm" else []
    library.pre_tokenizer = package.pre_tokenizers.Sequence([*digits, bytes_])
    library.decoder = package.decoders.ByteLevel()
    kinds = about.get("token_type")
    kinds = kinds if isinstance(kinds, list) else []
    control = [word for word, kind in zip(words, kinds, strict=False) if kind == CONTROL]
    library.add_special_tokens(control)
    return FileTokenizer(library, end, len(words))


def _of_characters(path: Path) -> FileTokenizer:
    """Characters, and pairs of them, each word joined for itself; a character that is not known is lost."""
    package, beside = _library(), path.with_suffix(".tokenizer.json")
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is missing: a model of other software needs its tokenizer beside it")
    about = read_json(beside)
    alphabet, merges = about.get("alphabet"), about.get("merges")
    texts = isinstance(alphabet, list) and all(isinstance(letter, str) for letter in alphabet)
    if not (texts and isinstance(merges, list) and all(map(_is_pair, merges))):
        raise ValueError(f"{beside} must hold an alphabet, a list of characters, and merges, a list of pairs")
    words = [*SPECIAL, *(alphabet or []), *(first + second for first, second in merges)]
    known = {word: number for number, word in enumerate(words)}
    if wrong := [pair for pair in merges if not set(pair) <= set(known)]:
        raise ValueError(f"{beside}: merges join {shown(wrong[0])}, which are not in its vocabulary")
    library = package.Tokenizer(package.models.BPE(known, list(map(tuple, merges)), unk_token=SPECIAL[1]))
    library.normalizer = package.normalizers.Replace(" ", SPACE)
    library.pre_tokenizer = package.pre_tokenizers.Split(SPACE, "merged_with_next")
    library.decoder = package.decoders.Sequence([package.decoders.Replace(SPACE, " "), package.decoders.Fuse()])
    return FileTokenizer(library, SPECIAL.index("<eos>"), len(words))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
