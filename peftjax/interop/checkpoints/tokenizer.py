"""Tokenizers, from a tokenizer.json or from the vocabulary inside a GGUF file."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Encoding, Regex, decoders, models, pre_tokenizers

from peftjax.interop.errors import CheckpointError
from peftjax.interop.files.bounded_json import read_object


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` without padding or truncation, and what a checkpoint says about it.

    `backend` is the Rust tokenizer, for batches and offsets. Ids are None if the checkpoint does
    not name the token; `chat_template` is the Jinja source. `end_ids` are the tokens that end a
    text, as generation_config.json or config.json lists them.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = None
    end_ids: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text: `eos_id` first, then those of `end_ids`."""
        own = () if self.eos_id is None else (self.eos_id,)
        return tuple(dict.fromkeys((*own, *self.end_ids)))

    @property
    def special(self) -> dict[str, str]:
        """The texts of special tokens, by their names in chat templates."""
        named = (('bos_token', self.bos_id), ('eos_token', self.eos_id), ('pad_token', self.pad_id))
        return {
            name: '' if number is None else self.decode([number], skip_special_tokens=False)
            for name, number in named
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text; special tokens as the checkpoint's own tokenizer adds them.

        Raises:
            ValueError: see `encoded`.
        """
        return encoded(self.backend, text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)


def encoded(backend: tokenizers.Tokenizer, text: Any, *more: Any, **options: Any) -> Encoding:
    """Calls `backend.encode`, and raises errors that name the text if it fails.

    The patterns of a tokenizer.json may backtrack. The library stops after ten million steps at one
    place of a text, and then panics.

    Raises:
        ValueError: a text with half of a character, which no encoding has; a text on which a
            pattern of the tokenizer does not come to an end.
    """
    try:
        return backend.encode(text, *more, **options)
    except TypeError:
        raise ValueError(f'{ascii(str(text)[:60])} is no text that can be encoded') from None
    except BaseException as error:  # The panic of a Rust library is not an Exception.
        if type(error).__name__ != 'PanicException':
            raise
        raise ValueError(
            'a pattern in tokenizer.json does not come to an end on '
            f'{ascii(str(text)[:60])}: {error}'
        ) from None


def tokenizer_from_folder(folder: pathlib.Path) -> Tokenizer | None:
    """Reads tokenizer.json and the files beside it; None if the folder has no tokenizer.json.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    path = folder / 'tokenizer.json'
    if not path.is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (the parser raises nothing more precise)
        raise CheckpointError(f'{path} cannot be read as a tokenizer: {error}') from None
    # Files of sentence encoders pad every text to 128 tokens; here the caller makes batches.
    backend.no_padding()
    backend.no_truncation()
    settings: dict[str, Any] = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        if (folder / name).is_file():
            settings |= read_object(folder / name)
    template, jinja = settings.get('chat_template'), folder / 'chat_template.jinja'
    try:
        bos, eos, pad = (
            _token_id(backend, settings.get(f'{role}_token')) for role in ('bos', 'eos', 'pad')
        )
        template = _default_template(template)
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f'{folder}: a special token or chat_template is of the wrong kind: {error}'
        ) from None
    if jinja.is_file():
        try:
            template = jinja.read_text(encoding='utf-8')
        except UnicodeDecodeError as error:
            raise CheckpointError(f'{jinja} is not UTF-8: {error}') from None
    return Tokenizer(backend, bos, eos, pad, template, _end_ids(folder, backend))


def _end_ids(folder: pathlib.Path, backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that generation_config.json, or else config.json, lists as the ends of a text."""
    for name in ('generation_config.json', 'config.json'):
        path = folder / name
        found = read_object(path).get('eos_token_id') if path.is_file() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(each) is int and 0 <= each < 2**31 for each in ids):
            raise CheckpointError(
                f'{path}: eos_token_id is {str(found)[:60]}, but ids are numbers from 0 to 2**31'
            )
        return tuple(each for each in ids if backend.id_to_token(each) is not None)
    return ()


def _token_id(backend: tokenizers.Tokenizer, token: str | Mapping[str, Any] | None) -> int | None:
    content = token['content'] if isinstance(token, Mapping) else token
    return None if content is None else backend.token_to_id(content)


def _default_template(template: Any) -> str | None:
    """Some checkpoints name several templates; the one named 'default' is for plain chat."""
    if isinstance(template, list):
        template = {entry['name']: entry['template'] for entry in template}.get('default')
    if template is not None and not isinstance(template, str):
        raise TypeError(f'{str(template)[:60]!r} is no template')
    return template


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# How text is cut before merging, by llama.cpp's names.
_PRE_TOKENIZERS = {
    'gpt-2': _GPT2,
    'smollm': pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    'llama-bpe': _split(_WORDS + r'\p{N}{1,3}' + _REST),
    'qwen2': _split(_WORDS + r'\p{N}' + _REST),
}
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """Builds the byte-level BPE tokenizer that a GGUF file embeds.

    Raises:
        CheckpointError: a tokenizer of another kind, or vocabulary and merges that do not fit.
    """
    kind, cut = metadata.get('tokenizer.ggml.model'), metadata.get('tokenizer.ggml.pre', 'gpt-2')
    if kind != 'gpt2' or cut not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f'{where}: tokenizer.ggml.model {kind!r} with pre {cut!r} is not supported, only '
            f"'gpt2' with {', '.join(sorted(_PRE_TOKENIZERS))}"
        )
    tokens = metadata.get('tokenizer.ggml.tokens', [])
    kinds = metadata.get('tokenizer.ggml.token_type', [])
    merges = [tuple(merge.split(' ')) for merge in metadata.get('tokenizer.ggml.merges', [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if not tokens or len(kinds) != len(tokens) or len(vocabulary) != len(tokens):
        raise CheckpointError(
            f'{where}: {len(tokens)} tokens, {len(vocabulary)} different, {len(kinds)} types'
        )
    for pair in merges:
        if len(pair) != 2 or not vocabulary.keys() >= {*pair, ''.join(pair)}:
            raise CheckpointError(f'{where}: merge {" ".join(pair)!r} is not in the vocabulary')
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = _PRE_TOKENIZERS[cut]
    backend.decoder = decoders.ByteLevel()
    for wanted, add in (
        (_CONTROL, backend.add_special_tokens),
        (_USER_DEFINED, backend.add_tokens),
    ):
        add(
            [
                AddedToken(token, normalized=False)
                for token, token_kind in zip(tokens, kinds, strict=True)
                if token_kind == wanted
            ]
        )
    # Newer files have a second token, which ends a turn of a conversation.
    turn = metadata.get('tokenizer.ggml.eot_token_id')
    return Tokenizer(
        backend,
        metadata.get('tokenizer.ggml.bos_token_id'),
        metadata.get('tokenizer.ggml.eos_token_id'),
        metadata.get('tokenizer.ggml.padding_token_id'),
        metadata.get('tokenizer.chat_template'),
        () if turn is None else (turn,),
    )
