"""Which adapters are tried: methods by name, on the places of each family."""

from collections.abc import Callable
from typing import NamedTuple

import peftjax

Make = Callable[['Places'], peftjax.PeftTransform]


class Places(NamedTuple):
    """Patterns of a family's leaves and modules; '' for what it does not have."""

    attention: str
    inner: str
    outer: str
    table: str
    norms: str
    head: str = ''
    convolution: str = ''
    positions: str = ''
    core: str = r'.*/core'

    @property
    def linear(self) -> tuple[str, ...]:
        return self.attention, self.inner


_ENCODER = Places(
    r'layers/.*/(query|value)',
    r'layers/ffn/intermediate',
    r'layers/ffn/output',
    'embeddings/word_embeddings',
    r'layers/.*layer_norm/(scale|bias)',
    r'classifier/.*',
    positions='embeddings/position_embeddings',
)
_DECODER = Places(
    r'.*/[qv]_proj', r'.*/up_proj', r'.*/down_proj', 'embed_tokens', r'.*norm/scale', r'lm_head/.*'
)
_IMAGES = Places(
    r'layers/attention/(query|value)',
    r'layers/ffn/intermediate',
    r'layers/ffn/output',
    '',
    r'layers/layernorm_(before|after)/(scale|bias)',
    r'classifier/.*',
    'embeddings/patch_embeddings',
)

FAMILIES = {
    'tiny_bert': _ENCODER,
    'tiny_bert_tokens': _ENCODER,
    'tiny_roberta': _ENCODER,
    'tiny_gpt2': Places(
        r'layers/attn/c_attn',
        r'layers/mlp/c_fc',
        r'layers/mlp/c_proj',
        'wte',
        r'.*ln_\w+/(scale|bias)',
        positions='wpe',
    ),
    'tiny_llama': _DECODER,
    'tiny_qwen2': _DECODER,
    'tiny_gemma2': _DECODER._replace(head=''),
    'tiny_llama_score': _DECODER._replace(head=r'score/.*'),
    'tiny_t5': Places(
        r'.*/(self|cross)_attn/[qv]',
        r'.*/ffn/wi',
        r'.*/ffn/wo',
        'embed',
        r'.*layer_norm/scale',
        positions=r'.*relative_attention_bias',
    ),
    'tiny_vit': _IMAGES,
    'tiny_dinov2': _IMAGES,
    'tiny_whisper': Places(
        r'.*attn/[qv]_proj',
        r'.*/fc1',
        r'.*/fc2',
        'decoder/embed_tokens',
        r'.*layer_norm/(scale|bias)',
        '',
        r'encoder/conv[12]',
        positions=r'.*/embed_positions',
    ),
}

METHODS: dict[str, Make] = {
    'lora': lambda p: peftjax.lora(rank=3, alpha=5, targets=p.linear),
    'lora patterns': lambda p: peftjax.lora(
        rank=3, rank_pattern={p.inner: 2}, alpha_pattern={p.attention: 7}, targets=p.linear
    ),
    'rslora': lambda p: peftjax.lora(rank=4, rslora=True, targets=p.attention),
    'lora, rank above the width': lambda p: peftjax.lora(rank=40, targets=p.attention),
    'lora pissa': lambda p: peftjax.lora(rank=2, alpha=4, init='pissa', targets=p.attention),
    'lora olora': lambda p: peftjax.lora(rank=2, init='olora', targets=p.attention),
    'lora on a table': lambda p: peftjax.lora(rank=2, targets=(p.table, p.attention)),
    'lora on positions': lambda p: peftjax.lora(rank=2, targets=p.positions),
    'lora on the head': lambda p: peftjax.lora(rank=2, targets=(_weights(p.head), p.attention)),
    'lora on a convolution': lambda p: peftjax.lora(rank=2, targets=(p.convolution, p.attention)),
    'lora, head': lambda p: _behind(p.head, peftjax.lora(rank=2, targets=p.attention)),
    'lora, biases': lambda p: _behind(r'.*bias', peftjax.lora(rank=2, targets=p.attention)),
    'lora, norms': lambda p: _behind(p.norms, peftjax.lora(rank=2, targets=p.attention)),
    'lora, tokens': lambda p: peftjax.chain(
        peftjax.trainable_tokens([3, 1], targets=p.table),
        peftjax.lora(rank=2, targets=p.attention),
    ),
    'lora_bias': lambda p: peftjax.lora(rank=2, bias=True, targets=p.linear),
    'kasa': lambda p: peftjax.kasa(rank=2, targets=p.linear),
    'lora_fa': lambda p: peftjax.lora_fa(rank=2, targets=p.attention),
    'dora': lambda p: peftjax.dora(rank=2, targets=p.linear),
    'dora on a table': lambda p: peftjax.dora(rank=2, targets=(p.table, p.attention)),
    'dora on a convolution': lambda p: peftjax.dora(rank=2, targets=(p.convolution, p.attention)),
    'adalora': lambda p: peftjax.adalora(init_rank=3, targets=p.linear),
    'ia3': lambda p: peftjax.ia3(targets=p.attention, feedforward=p.outer),
    'ia3 on a convolution': lambda p: peftjax.ia3(targets=p.convolution),
    'loha': lambda p: peftjax.loha(rank=2, targets=p.linear),
    'loha on a convolution': lambda p: peftjax.loha(rank=2, targets=p.convolution),
    'loha on a table': lambda p: peftjax.loha(rank=2, targets=p.table),
    'lokr': lambda p: peftjax.lokr(rank=2, targets=p.linear),
    'hira': lambda p: peftjax.hira(rank=2, targets=p.linear),
    'hra': lambda p: peftjax.hra(rank=2, targets=p.attention),
    'hra, orthogonal': lambda p: peftjax.hra(rank=2, gram_schmidt=True, targets=p.attention),
    'c3a': lambda p: peftjax.c3a(block_size=4, targets=p.attention),
    'gralora': lambda p: peftjax.gralora(rank=4, blocks=2, targets=p.attention),
    'oft': lambda p: peftjax.oft(block_size=4, targets=p.attention),
    'oft, series': lambda p: peftjax.oft(block_size=4, neumann_terms=5, targets=p.attention),
    'boft': lambda p: peftjax.boft(
        block_size=4, factors=1, whole_blocks=True, scale=True, targets=p.attention
    ),
    'vera': lambda p: peftjax.vera(rank=3, targets=p.attention),
    'fourierft': lambda p: peftjax.fourierft(n_frequency=9, draws='torch', targets=p.attention),
    'shira': lambda p: peftjax.shira(rank=1, targets=p.attention),
    'miss': lambda p: peftjax.miss(rank=2, targets=p.attention),
    'miss, bat': lambda p: peftjax.miss(rank=2, bat=True, targets=p.attention),
    'road': lambda p: peftjax.road(variant=2, group_size=4, targets=p.attention),
    'delora': lambda p: peftjax.delora(rank=2, targets=p.linear),
    'vblora': lambda p: peftjax.vblora(rank=2, num_vectors=6, vector_length=4, targets=p.attention),
    'randlora': lambda p: peftjax.randlora(rank=2, targets=p.attention),
    'norms': lambda p: peftjax.select(p.norms),
    'norms, head': lambda p: _behind(p.head, peftjax.select(p.norms)),
    'tokens': lambda p: peftjax.trainable_tokens([3, 1], targets=p.table),
    'prompt': lambda p: peftjax.prompt_tuning(num_virtual_tokens=3, targets=p.table),
    'p_tuning': lambda p: peftjax.p_tuning(num_virtual_tokens=3, hidden=5, targets=p.table),
    'prefix': lambda p: peftjax.prefix_tuning(num_virtual_tokens=3, targets=p.core),
    'adaption_prompt': lambda p: peftjax.adaption_prompt(num_virtual_tokens=3, targets=p.core),
}


def _weights(head: str) -> str:
    return head.replace('.*', '(.*/)?kernel') if head else ''


def _behind(leaves: str, transform: peftjax.PeftTransform) -> peftjax.PeftTransform:
    if not leaves:
        raise peftjax.TargetError('this family has no such place')
    return peftjax.chain(peftjax.select(leaves), transform)
