"""Tokenizers: round trips, special tokens that text cannot make, and files that transformers loads."""
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlkit.data.tokenizers import SPECIAL_TOKENS, ByteLevelBPE, HFTokenizer
from qvlkit.registry import TOKENIZERS

TEXTS = ["The cat sat on the mat. It's 1234 o'clock.\n", '猫坐在垫子上。', 'naïve café — ½', 'a  b\n\n c\t'] * 5


@pytest.fixture(scope='module')
def trained():
    return ByteLevelBPE(400, texts=TEXTS)


@given(st.text())
def test_text_comes_back_normalised_and_never_special(text):
    import unicodedata
    tokenizer = _trained()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == unicodedata.normalize('NFC', text)
    controls = {tokenizer.special_id(name) for name in SPECIAL_TOKENS if name.startswith('<|')}
    assert not controls & set(ids)


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, 'a', ' ', 'assistant', '\n', '<|', '|>']), max_size=8))
def test_control_tokens_in_text_stay_text(pieces):
    tokenizer = _trained()
    text = ''.join(pieces)
    ids = tokenizer.encode(text)
    controls = {tokenizer.special_id(name) for name in SPECIAL_TOKENS if name.startswith('<|')}
    assert not controls & set(ids)
    assert tokenizer.decode(ids, skip_special=True) == text


def _trained(cache=[]):  # noqa: B006  (hypothesis does not mix with fixtures of a function's scope)
    if not cache:
        cache.append(ByteLevelBPE(400, texts=TEXTS))
    return cache[0]


def test_digits_are_single_and_words_merge(trained):
    assert len(trained.encode('12345')) == 5
    assert len(trained.encode(' the')) < 4


def test_training_is_deterministic_and_small_text_gives_fewer_rows(trained):
    again = TOKENIZERS.build({'type': 'ByteLevelBPE', 'vocab_size': 400}, texts=iter(TEXTS))
    assert [again.encode(text) for text in TEXTS] == [trained.encode(text) for text in TEXTS]
    assert trained.vocab_size <= 400
    assert ByteLevelBPE(400, texts=['ab']).vocab_size <= 280
    assert trained.special_id('<|file_sep|>') == trained.vocab_size - 1
    first = trained.special_id('<|endoftext|>')
    assert [trained.special_id(name) - first for name in SPECIAL_TOKENS] == list(range(22))


def test_stand_in_has_the_released_special_ids():
    tokenizer = TOKENIZERS.build({'type': 'StandInTokenizer'})
    released = {'<|endoftext|>': 151643, '<|im_start|>': 151644, '<|im_end|>': 151645, '<|vision_start|>': 151652,
                '<|vision_end|>': 151653, '<|image_pad|>': 151655, '<|video_pad|>': 151656, '<tool_call>': 151657,
                '<|file_sep|>': 151664}
    assert {name: tokenizer.special_id(name) for name in released} == released
    assert tokenizer.vocab_size == 151665
    ids = tokenizer.encode('Hé <|im_end|>')
    assert max(ids) < 256 and tokenizer.decode(ids) == 'Hé <|im_end|>'


def test_tool_call_is_vocabulary(trained):
    assert trained.encode('<tool_call>')[0] == trained.special_id('<tool_call>')


def test_pickled_tokenizers_still_refuse_control_tokens(trained, tmp_path):
    trained.save(tmp_path)
    for tokenizer in (trained, HFTokenizer(str(tmp_path))):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode('a<|im_end|>') == trained.encode('a<|im_end|>')
        assert copy.vocab_size == trained.vocab_size
        copy.save(tmp_path / 'copy')


def test_encode_gives_a_list_of_its_own(trained):
    trained.encode('cat').append(0)
    assert 0 not in trained.encode('cat')[1:] and trained.decode(trained.encode('cat')) == 'cat'


def test_saved_files_load_in_transformers_and_here(trained, tmp_path):
    auto = pytest.importorskip('transformers').AutoTokenizer
    trained.save(tmp_path)
    theirs, ours = auto.from_pretrained(tmp_path), HFTokenizer(str(tmp_path))
    for text in [*TEXTS, 'unseen Ünïcödé 🎉 <tool_call> 99', ' \n\n x']:
        assert theirs(text).input_ids == trained.encode(text) == ours.encode(text)
    for name in SPECIAL_TOKENS:
        assert theirs.convert_tokens_to_ids(name) == trained.special_id(name) == ours.special_id(name)
    assert theirs.eos_token == '<|im_end|>' and theirs.pad_token == '<|endoftext|>'
    assert len(theirs) == trained.vocab_size


def test_loaded_files_are_carried_along_unchanged(trained, tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    trained.save(source)
    text = (source / 'tokenizer_config.json').read_text()
    (source / 'tokenizer_config.json').write_text(text + '\n\n')
    HFTokenizer(str(source)).save(target)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        assert (source / name).read_bytes() == (target / name).read_bytes()
    HFTokenizer(str(source)).save(source)  # onto itself
    assert (source / 'tokenizer_config.json').read_text() == text + '\n\n'


@pytest.mark.parametrize('with_added', [False, True])
def test_vocabulary_and_merges(trained, tmp_path, with_added):
    table = json.loads(trained._tokenizer.to_str())
    (tmp_path / 'vocab.json').write_text(json.dumps(table['model']['vocab']))
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in table['model']['merges']]
    (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
    if with_added:
        (tmp_path / 'added_tokens.json').write_text(json.dumps(
            {name: trained.special_id(name) for name in reversed(SPECIAL_TOKENS)}))
    loaded = HFTokenizer(str(tmp_path))
    for text in [*TEXTS, 'x<|im_end|><tool_call>']:
        assert loaded.encode(text) == trained.encode(text)
    assert loaded.special_id('<|im_end|>') == trained.special_id('<|im_end|>')
    loaded.save(tmp_path / 'saved')
    assert HFTokenizer(str(tmp_path / 'saved')).encode(TEXTS[0]) == trained.encode(TEXTS[0])
    if with_added:
        (tmp_path / 'added_tokens.json').write_text('{"<|im_end|>": 9999}')
        with pytest.raises(ValueError, match=r"'<\|im_end\|>' claims id 9999"):
            HFTokenizer(str(tmp_path))


def test_errors_for_users(trained, tmp_path):
    with pytest.raises(ValueError, match=r"no token '<\|im_ned\|>', did you mean '<\|im_end\|>'"):
        trained.special_id('<|im_ned|>')
    with pytest.raises(ValueError, match='tokenizer.path: expected a folder'):
        HFTokenizer(str(tmp_path))
    (tmp_path / 'tokenizer.json').write_text('{"model"')
    with pytest.raises(ValueError, match='is not JSON'):
        HFTokenizer(str(tmp_path))
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(ValueError, match="has no 'model'"):
        HFTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match='100 is below 278'):
        ByteLevelBPE(100, texts=[])
    with pytest.raises(ValueError, match='tokenizer.texts'):
        ByteLevelBPE(400)
