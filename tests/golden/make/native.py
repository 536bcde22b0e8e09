"""Reads what `tests.native.save` wrote, with torch: python -m tests.golden.make.native FOLDER.

pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 scipy
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from tests.golden.make.files import base_of, inputs_of

TOLERANCE = 3e-5


def main(root: Path) -> int:
    count = Counter()
    for family in sorted(path.parent for path in root.glob('*/refused.json')):
        refused = json.loads((family / 'refused.json').read_text())
        for folder in sorted(path.parent for path in family.glob('*/ours.npz')):
            _say(count, folder.relative_to(root), *_judge(folder))
        for name, reason in refused.items():
            if reason:
                _say(count, Path(family.name, name), 'refused', reason[:200])
    print(dict(count))
    return 1 if count['wrong'] or count['unread'] else 0


def _say(count: Counter[str], name: Path, word: str, detail: str) -> None:
    count[word] += 1
    print(f'{name!s:45} {word:8} {detail}', flush=True)


def _judge(folder: Path) -> tuple[str, str]:
    base = base_of(folder)
    inputs = {name: value for name, value in inputs_of(folder).items() if name != 'labels'}
    try:
        with warnings.catch_warnings(record=True) as said, torch.no_grad():
            warnings.simplefilter('always')
            adapted = peft.PeftModel.from_pretrained(base, str(folder)).eval()
            theirs = _logits(adapted, inputs)
    except Exception as error:  # noqa: BLE001 (whatever a file does, the others are judged)
        return 'unread', f'{type(error).__name__}: {str(error)[:150]}'
    missing = [str(each.message)[:150] for each in said if 'missing' in str(each.message)]
    with np.load(folder / 'ours.npz') as file:
        error = _error(inputs, file['logits'], theirs)
    if TOLERANCE < error < 10 * TOLERANCE:
        with torch.no_grad():
            exact = _logits(adapted.double(), _doubled(inputs))
        # Where torch itself loses more digits than elsewhere, so may ours.
        error *= min(1, TOLERANCE / (4 * _error(inputs, theirs, exact)))
    if missing or not error <= TOLERANCE:
        return 'wrong', f'{error:.1e} {missing[:1]}'
    return 'equal', f'{error:.1e}'


def _logits(adapted: peft.PeftModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    try:
        return adapted(**inputs).logits.numpy()
    except AttributeError as error:
        # Whisper looks for the stride of its convolution, and finds the adapter's.
        if 'stride' not in str(error):
            raise
        return adapted.merge_and_unload()(**inputs).logits.numpy()


def _doubled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: each.double() if each.is_floating_point() else each for n, each in inputs.items()}


def _error(inputs: dict[str, torch.Tensor], ours: np.ndarray, theirs: np.ndarray) -> float:
    """Relative to the largest of theirs, where a token is written."""
    mask = inputs.get('decoder_attention_mask', inputs.get('attention_mask'))
    if theirs.ndim == 3:
        length, virtual = min(theirs.shape[1], ours.shape[1]), theirs.shape[1] - ours.shape[1]
        ours, theirs = ours[:, -length:], theirs[:, -length:]
        if mask is not None:
            kept = mask.numpy()[:, -length:] == 1
            if virtual:  # In front of padding on the left there, and behind it here.
                kept &= mask.numpy()[:, :1] == 1
            ours, theirs = ours[kept], theirs[kept]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


if __name__ == '__main__':
    transformers.logging.set_verbosity_error()
    sys.exit(main(Path(sys.argv[1])))
