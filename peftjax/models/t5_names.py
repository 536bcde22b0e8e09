"""The names of T5's tensors in a checkpoint, and of its leaves."""

from peftjax.models import names


def _stack_names(stack: str, attentions: dict[str, tuple[int, str]]) -> tuple[names.Rule, ...]:
    block, ours = f'{stack}.block.{{layer}}.layer', f'{stack}/layers'
    last = len(attentions)
    first = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
    return (
        *names.embedding(first, f'{stack}/relative_attention_bias'),
        *(
            rule
            for name, (number, theirs) in attentions.items()
            for rule in (
                *names.norm(f'{block}.{number}.layer_norm', f'{ours}/{name}_layer_norm'),
                *(
                    one
                    for letter in 'qkvo'
                    for one in names.dense(
                        f'{block}.{number}.{theirs}.{letter}', f'{ours}/{name}/{letter}'
                    )
                ),
            )
        ),
        *names.norm(f'{block}.{last}.layer_norm', f'{ours}/ffn_layer_norm'),
        *(
            rule
            for name in ('wi', 'wi_0', 'wi_1', 'wo')
            for rule in names.dense(f'{block}.{last}.DenseReluDense.{name}', f'{ours}/ffn/{name}')
        ),
        *names.norm(f'{stack}.final_layer_norm', f'{stack}/final_layer_norm'),
    )


T5_NAMES = (
    *names.embedding('shared', 'embed'),
    *_stack_names('encoder', {'self_attn': (0, 'SelfAttention')}),
    *_stack_names(
        'decoder', {'self_attn': (0, 'SelfAttention'), 'cross_attn': (1, 'EncDecAttention')}
    ),
    *names.dense('lm_head', 'lm_head'),
)
