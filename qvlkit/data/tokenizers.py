"""Text to token ids and back: Qwen2.5's byte-level BPE, loaded, trained, or stood in for.

Source: Qwen2.5 (arXiv 2412.15115): byte-level BPE, NFC, digits one by one, and 22 added tokens after the base
vocabulary. No id is written here: every id comes from the tokenizer's own tables.

Plain text never turns into a control token: `encode('<|im_end|>')` gives the ids of ten characters. A caller that
wants the control token asks for `special_id('<|im_end|>')`. The two tokens <tool_call> and </tool_call> are
vocabulary, not control, and are found in text as in the released tokenizer.
"""
import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qvlkit.registry import TOKENIZERS, near_names

SPECIAL_TOKENS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>', '<|box_start|>',
    '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>', '<|vision_end|>', '<|vision_pad|>',
    '<|image_pad|>', '<|video_pad|>', '<tool_call>', '</tool_call>', '<|fim_prefix|>', '<|fim_middle|>',
    '<|fim_suffix|>', '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>')  # in the released order
SPLIT_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
FILES = ('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt', 'added_tokens.json',
         'special_tokens_map.json', 'chat_template.json', 'chat_template.jinja')
_CONTROL = re.compile(r'<\|.*\|>', re.DOTALL)
_CACHED_LENGTH, _CACHED_TEXTS = 80, 20_000


class _BPETokenizer:
    """What the tokenizers share: a `tokenizers.Tokenizer` that treats control tokens in text as text.

    Args:
        table: Content of a tokenizer.json, with its added tokens.
    """

    def __init__(self, table: dict):
        for token in table['added_tokens']:
            token['special'] = token['special'] or _CONTROL.fullmatch(token['content']) is not None
        self._open(json.dumps(table))

    def _open(self, table: str) -> None:
        self._tokenizer = Tokenizer.from_str(table)
        self._tokenizer.encode_special_tokens = True  # special tokens in text are encoded as text
        self._vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._cache: dict[str, list[int]] = {}

    def __getstate__(self) -> dict:
        # the flag `encode_special_tokens` does not survive pickling, so the table travels instead
        hidden = ('_tokenizer', '_vocabulary', '_cache')
        return {'_table': self._tokenizer.to_str(),
                **{key: value for key, value in vars(self).items() if key not in hidden}}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        self._open(state.pop('_table'))
        vars(self).update(state)

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one."""
        return max(self._vocabulary.values()) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole table: two tokenizers with the same one encode all texts alike."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added, and control tokens in it stay text."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(text) <= _CACHED_LENGTH:
                if len(self._cache) >= _CACHED_TEXTS:
                    self._cache.clear()
                self._cache[text] = ids
        return list(ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids; ids without a token (padding rows of the embedding) give nothing."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def special_id(self, name: str) -> int:
        """Id of an added token such as '<|im_end|>'; ValueError with near names if there is none."""
        token_id = self._vocabulary.get(name)
        if token_id is None:
            known = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
            raise ValueError(f'the tokenizer has no token {name!r}{near_names(name, known)}')
        return token_id

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / 'tokenizer.json').exists():
            self._tokenizer.save(str(folder / 'tokenizer.json'))
        if not (folder / 'tokenizer_config.json').exists():
            text = json.dumps(self._config(), indent=2, ensure_ascii=False)
            (folder / 'tokenizer_config.json').write_text(text + '\n', encoding='utf-8')

    def _config(self) -> dict:
        added = self._tokenizer.get_added_tokens_decoder()
        known = {token.content for token in added.values()}
        return {
            'tokenizer_class': 'Qwen2Tokenizer', 'add_prefix_space': False, 'add_bos_token': False, 'bos_token': None,
            'eos_token': '<|im_end|>' if '<|im_end|>' in known else None,
            'pad_token': '<|endoftext|>' if '<|endoftext|>' in known else None, 'unk_token': None,
            'clean_up_tokenization_spaces': False, 'split_special_tokens': False, 'errors': 'replace',
            'model_max_length': 131072,
            'added_tokens_decoder': {str(token_id): {
                'content': token.content, 'lstrip': False, 'normalized': False, 'rstrip': False,
                'single_word': False, 'special': token.special} for token_id, token in sorted(added.items())}}


@TOKENIZERS.register_module()
class HFTokenizer(_BPETokenizer):
    """A released tokenizer, from tokenizer.json or from vocab.json, merges.txt and their added tokens.

    Args:
        path: Folder with these files, or a tokenizer.json. `save` carries the folder's files along unchanged.
    """

    def __init__(self, path: str):
        given = Path(path).expanduser()
        file = given / 'tokenizer.json' if given.is_dir() else given
        self.folder = file.parent
        if file.is_file():
            table = _read_table(file)
        elif (given / 'vocab.json').is_file() and (given / 'merges.txt').is_file():
            table = json.loads(_from_vocabulary(given).to_str())
        else:
            raise ValueError(f'tokenizer.path: expected a folder with tokenizer.json, or with vocab.json and '
                             f'merges.txt, got {str(path)!r}')
        super().__init__(table)

    def save(self, folder: str | Path) -> None:
        """Copy the files that were loaded, and write those that transformers needs and the folder lacked."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)
        super().save(folder)


@TOKENIZERS.register_module()
class ByteLevelBPE(_BPETokenizer):
    """A small BPE trained on the run's own data, with Qwen2.5's splitting and added tokens. Deterministic.

    Args:
        vocab_size: Ids in all, at least 278: 256 bytes and 22 added tokens. Little text gives fewer.
        texts: The training texts.
    """

    def __init__(self, vocab_size: int, *, texts: Iterable[str] | None = None):
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise ValueError(f'tokenizer.vocab_size: {vocab_size} is below {smallest} (256 bytes and '
                             f'{len(SPECIAL_TOKENS)} added tokens)')
        if texts is None:
            raise ValueError('tokenizer.texts: ByteLevelBPE is trained on the data of the run, and none was given')
        tokenizer = _with_qwen_steps(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(texts, trainer=trainer)
        _add_tokens(tokenizer, dict.fromkeys(SPECIAL_TOKENS))
        super().__init__(json.loads(tokenizer.to_str()))


@TOKENIZERS.register_module()
class StandInTokenizer(_BPETokenizer):
    """The released special ids without the released vocabulary: one token for each byte of text.

    For timing and shape tests of a full-size model where no checkpoint folder is at hand.

    Args:
        vocab_size: Base vocabulary and the 22 added tokens; ids between the bytes and the added tokens are unused.
    """

    def __init__(self, vocab_size: int = 151665):
        base = vocab_size - len(SPECIAL_TOKENS)
        if base < 256:
            raise ValueError(f'tokenizer.vocab_size: {vocab_size} is below {256 + len(SPECIAL_TOKENS)}')
        vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        vocabulary.update({f'<unused {i}>': i for i in range(256, base)})
        tokenizer = _with_qwen_steps(models.BPE(vocab=vocabulary, merges=[]))
        _add_tokens(tokenizer, dict.fromkeys(SPECIAL_TOKENS))
        super().__init__(json.loads(tokenizer.to_str()))


def _read_table(file: Path) -> dict:
    """The content of a tokenizer.json; ValueError if it is not one."""
    try:
        table = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'tokenizer.path: {str(file)!r} is not JSON: {error}') from error
    if not isinstance(table, dict) or not isinstance(table.get('model'), dict):
        raise ValueError(f"tokenizer.path: {str(file)!r} is not a tokenizer.json: it has no 'model'")
    table.setdefault('added_tokens', [])
    return table


def _with_qwen_steps(model: models.BPE) -> Tokenizer:
    """Qwen2.5's normalizer, splitting and decoder around a BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: dict[str, int | None]) -> None:
    """Append added tokens in order; ValueError where a token does not get the id that is claimed for it."""
    for content, claimed in tokens.items():
        special = _CONTROL.fullmatch(content) is not None
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
        if claimed is not None and tokenizer.token_to_id(content) != claimed:
            raise ValueError(f'tokenizer.path: the added token {content!r} claims id {claimed}, but the vocabulary '
                             f'gives it {tokenizer.token_to_id(content)}')


def _from_vocabulary(folder: Path) -> Tokenizer:
    """vocab.json + merges.txt, with the tokens of added_tokens.json or tokenizer_config.json, else the released 22."""
    tokenizer = _with_qwen_steps(models.BPE.from_file(str(folder / 'vocab.json'), str(folder / 'merges.txt')))
    claimed: dict[str, int | None] = {}
    config, added = folder / 'tokenizer_config.json', folder / 'added_tokens.json'
    if config.is_file():
        listed = json.loads(config.read_text(encoding='utf-8')).get('added_tokens_decoder', {})
        claimed.update({token['content']: int(token_id) for token_id, token in listed.items()})
    if added.is_file():
        claimed.update(json.loads(added.read_text(encoding='utf-8')))
    ordered = dict(sorted(claimed.items(), key=lambda item: item[1])) or dict.fromkeys(SPECIAL_TOKENS)
    _add_tokens(tokenizer, ordered)
    return tokenizer
