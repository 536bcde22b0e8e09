"""LoRA as Hugging Face's peft writes it: `lora_A` [r, in], `lora_B` [out, r]."""

import peftjax
from tests.oracle.cases import Case, Converted, Tensors
from tests.oracle.names import entry, kernel_of, modules_of, with_saved


def lora(case: Case) -> Converted:
    modules = {name: kernel_of(case, name) for name in modules_of(case, '.lora_A.weight')}

    def convert(tensors: Tensors) -> dict[str, peftjax.WeightAdapter]:
        return {
            leaf: entry(
                case,
                leaf,
                {
                    'a': tensors[f'{name}.lora_A.weight'].T,
                    'b': tensors[f'{name}.lora_B.weight'].T,
                },
            )
            for name, leaf in modules.items()
        }

    transform = peftjax.lora(
        rank=case.config['r'],
        alpha=case.config['lora_alpha'],
        rslora=case.config['use_rslora'],
        targets=tuple(modules.values()),
    )
    return with_saved(case, Converted(transform, convert))


CONVERTERS = {'lora': lora, 'lora_all_linear': lora, 'rslora': lora}
