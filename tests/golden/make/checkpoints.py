"""Small random checkpoints with the logits of transformers.

pip install torch==2.13.0 transformers==5.23.0
"""

from pathlib import Path

import torch
import transformers

from tests.golden.make.files import Arrays, bases, class_of, draw, inputs_of, run, write


def make(folder: Path) -> dict[str, Arrays]:
    kind = class_of(folder)
    if not (folder / 'model.safetensors').is_file():
        model = kind(transformers.AutoConfig.from_pretrained(folder))
        draw(folder, model.named_parameters())
        model.save_pretrained(folder)
        (folder / 'generation_config.json').unlink(missing_ok=True)
    model = kind.from_pretrained(folder, attn_implementation='eager').eval()
    if not (folder / 'inputs.npz').is_file():
        drawn = _draw_inputs(model.config)
        write(folder / 'inputs.npz', {name: value.numpy() for name, value in drawn.items()})
    with torch.no_grad():
        logits = model(**inputs_of(folder)).logits
    return {'logits.npz': {'logits': logits.numpy()}}


def _draw_inputs(config: transformers.PretrainedConfig) -> dict[str, torch.Tensor]:
    """Two images, or two rows of tokens with padding, of a family's kind."""
    kind = config.model_type
    if kind in ('vit', 'dinov2'):
        return {'pixel_values': torch.randn(2, 3, config.image_size, config.image_size)}
    written = torch.ones(2, 20, dtype=torch.int64)
    written[0, 17:] = 0
    decoder = {
        'decoder_input_ids': torch.randint(1, config.vocab_size, (2, 20)),
        'decoder_attention_mask': written,
    }
    if kind == 'whisper':
        frames = 2 * config.max_source_positions
        return {'input_features': torch.randn(2, config.num_mel_bins, frames), **decoder}
    mask = torch.ones(2, 24, dtype=torch.int64)
    if kind in ('bert', 'roberta', 't5'):
        mask[1, 15:] = 0
    else:
        mask[0, :5], mask[1, 20:] = 0, 0  # one row padded on the left, one on the right
    inputs = {'attention_mask': mask}
    if kind == 'roberta':  # It numbers its tokens by where the padding is.
        ids = torch.randint(3, config.vocab_size, (2, 24))
        return {'input_ids': torch.where(mask == 1, ids, config.pad_token_id), **inputs}
    inputs['input_ids'] = torch.randint(1, config.vocab_size, (2, 24))
    if 'ForSequenceClassification' in config.architectures[0] and kind != 'bert':
        # A decoder's head reads the last token that is none of padding, whatever the mask says.
        inputs['input_ids'] = inputs['input_ids'] * mask
    if kind == 'bert':
        inputs['token_type_ids'] = (torch.arange(24) > 9).long().expand(2, 24).contiguous()
    return inputs | (decoder if kind == 't5' else {})


if __name__ == '__main__':
    run(make, bases())
