"""NF4 as bitsandbytes computes it.

pip install torch==2.13.0 transformers==5.23.0 bitsandbytes==0.50.2
"""

from pathlib import Path

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from tests.golden.make.files import GOLDEN, Arrays, run

ROWS, COLUMNS = 150, 192  # 450 blocks: two groups of scales, the second short


def make(folder: Path) -> dict[str, Arrays]:
    del folder
    matrix = np.random.RandomState(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    matrix *= np.exp(np.random.RandomState(1).standard_normal((ROWS, 1))).astype(np.float32)
    found = {}
    for name, double in (('single', False), ('double', True)):
        codes, state = quantize_4bit(
            torch.from_numpy(matrix), blocksize=64, quant_type='nf4', compress_statistics=double
        )
        found[f'{name}_codes'] = codes.numpy().reshape(ROWS, -1)
        found[f'{name}_scale'] = state.absmax.numpy().reshape(ROWS, -1)
        found[f'{name}_values'] = dequantize_4bit(codes, state).numpy()[::10]
        found['values'] = state.code.numpy()
        if double:
            found['mean'] = state.offset.numpy()
            found['scale_scale'] = state.state2.absmax.numpy()
            found['scale_values'] = state.state2.code.numpy()
    return {'logits.npz': found}


if __name__ == '__main__':
    run(make, [GOLDEN / 'nf4'])
