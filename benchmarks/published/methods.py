"""The methods of published tables, by their names in the tables."""

from collections.abc import Callable

import peftjax
from benchmarks.published import leaves, modules, prompts, weights
from benchmarks.published.places import NORMS, PLACES, Row, targets_of
from peftjax import PeftTransform

# Keys are prefixes of the names in the tables; the first that fits is used.
_METHODS: dict[str, Callable[[Row, dict[str, str]], PeftTransform | None]] = {
    'full FT': lambda row, places: peftjax.full(),
    'FT-Top2': leaves.top,
    'top layer FT': leaves.top,
    'LoRA(ffn)': modules.sizes,
    'LoRA-FA': weights.of_rank(peftjax.lora_fa),
    'LoRA': weights.lora,
    'DyLoRA/LoRA': weights.lora,
    'rsLoRA': weights.of_rank(peftjax.lora, rslora=True),
    'DoRA': weights.of_rank(peftjax.dora),
    'AdaLoRA': weights.of_rank(peftjax.adalora, 'init_rank', 'init_r'),
    'VeRA': weights.of_rank(peftjax.vera),
    'FourierFT': weights.of_rank(peftjax.fourierft, 'n_frequency', 'n'),
    'LoHa': weights.of_rank(peftjax.loha),
    'LoKr': weights.of_rank(peftjax.lokr, factor=4),
    'HiRA': weights.of_rank(peftjax.hira),
    'SHiRA': weights.of_rank(peftjax.shira),
    'MiSS': weights.of_rank(peftjax.miss),
    'C3A': weights.of_rank(peftjax.c3a, 'block_size', 'b'),
    'RandLoRA': weights.of_rank(peftjax.randlora),
    'OFT': weights.oft,
    'BOFT': weights.boft,
    'LoReFT': modules.loreft,
    'AdapterP': modules.pfeiffer,
    'AdapterH': modules.houlsby,
    'Adapters': modules.houlsby,
    'Houlsby': modules.houlsby,
    'Pfeiffer': modules.pfeiffer,
    'Adapter': modules.adapter,
    'Compacter': modules.compacter,
    'PHM-Adapter': modules.compacter,
    'Adaption prompt': lambda row, places: peftjax.adaption_prompt(
        num_virtual_tokens=row['method_config']['len'], targets=places['core']
    ),
    'RoAd-2': lambda row, places: peftjax.road(variant=2, targets=targets_of(row, places)),
    'VB-LoRA': weights.vblora,
    'PSOFT': weights.psoft,
    'DeLoRA': weights.of_rank(peftjax.delora),
    'Intrinsic-SAID': lambda row, places: peftjax.intrinsic(
        dimension=row['method_config']['dim'], structure_aware=True
    ),
    'BitFit': leaves.bitfit,
    'LayerNorm': lambda row, places: peftjax.select(NORMS),
    'LN tuning': lambda row, places: peftjax.select(NORMS),
    'FishMask': leaves.fish,
    '(IA)3': weights.ia3,
    'PrefixEmbed': prompts.tokens,
    'PrefixLayer': lambda row, places: None,
    'Prefix30': modules.sizes,
    'Prefix': prompts.prefix,
    'PreLayer/Prefix': prompts.prefix,
    'Prompt tuning': prompts.tokens,
    'prompt': prompts.tokens,
    'Prompt': prompts.tokens,
    'P-Tuning': prompts.p_tuning,
    'Trainable tokens': lambda row, places: peftjax.trainable_tokens(
        range(row['method_config']['n']), targets='embed_tokens/embedding'
    ),
    'SA(': modules.sizes,
    'PA(': modules.sizes,
    'MAM': modules.sizes,
}


def transform_of(row: Row) -> PeftTransform | None:
    """The method of a row; None if peftjax does not have it."""
    make = next((make for name, make in _METHODS.items() if row['method'].startswith(name)), None)
    return None if make is None else make(row, PLACES[row['model']['arch']])
