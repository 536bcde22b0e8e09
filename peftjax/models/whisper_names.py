"""The names of Whisper's tensors in a checkpoint, and of its leaves."""

from peftjax.models import names


def _stack_names(stack: str, attentions: dict[str, str]) -> tuple[names.Rule, ...]:
    theirs, ours = f'{stack}.layers.{{layer}}', f'{stack}/layers'
    return (
        *names.embedding(f'{stack}.embed_positions', f'{stack}/embed_positions'),
        *names.norm(f'{stack}.layer_norm', f'{stack}/layer_norm'),
        *(
            rule
            for name, attention in attentions.items()
            for rule in (
                *names.norm(f'{theirs}.{attention}_layer_norm', f'{ours}/{name}_layer_norm'),
                *(
                    one
                    for part in ('q_proj', 'k_proj', 'v_proj', 'out_proj')
                    for one in names.dense(f'{theirs}.{attention}.{part}', f'{ours}/{name}/{part}')
                ),
            )
        ),
        *names.norm(f'{theirs}.final_layer_norm', f'{ours}/ffn_layer_norm'),
        *names.dense(f'{theirs}.fc1', f'{ours}/ffn/fc1'),
        *names.dense(f'{theirs}.fc2', f'{ours}/ffn/fc2'),
    )


WHISPER_NAMES = (
    *names.dense('encoder.conv1', 'encoder/conv1'),
    *names.dense('encoder.conv2', 'encoder/conv2'),
    *_stack_names('encoder', {'self_attn': 'self_attn'}),
    *names.embedding('decoder.embed_tokens', 'decoder/embed_tokens'),
    *_stack_names('decoder', {'self_attn': 'self_attn', 'cross_attn': 'encoder_attn'}),
)
