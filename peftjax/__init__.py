"""peftjax: parameter-efficient fine-tuning as pure transforms of Flax parameter trees."""

import importlib
from typing import TYPE_CHECKING, Any

from peftjax.binding.adapt import adapt
from peftjax.binding.jaxprs import JaxVersionError
from peftjax.core.combine import chain, named_chain
from peftjax.core.entries import Adapter, Entry
from peftjax.core.errors import AdapterError, MergeError
from peftjax.core.frozen import Frozen
from peftjax.core.holes import Hole
from peftjax.core.layout import Layout
from peftjax.core.masks import Mask
from peftjax.core.merge_loss import merge_loss
from peftjax.core.model import Model
from peftjax.core.partition import combine, partition
from peftjax.core.paths import TargetError, targets
from peftjax.core.quantized import QuantizedArray, Scheme, dequantize
from peftjax.core.roles import Roles
from peftjax.core.rules import ROOT, CallRule, LeafRule, MatrixRule, ModuleRule
from peftjax.core.sharding import (
    batch_sharding,
    frozen_shardings,
    make_mesh,
    shardings,
    state_shardings,
)
from peftjax.core.sites import ModuleSite, Sites, WeightSite
from peftjax.core.summary import Summary, summary
from peftjax.core.tokens import Tokens
from peftjax.core.transform import PeftTransform
from peftjax.core.use import AttentionUse, ModelCall, ModuleUse, Use
from peftjax.core.weightwise import weightwise
from peftjax.interop.errors import CheckpointError
from peftjax.methods.bottleneck.adapters import houlsby, parallel_adapter, pfeiffer
from peftjax.methods.bottleneck.bottleneck import bottleneck
from peftjax.methods.bottleneck.compacter import compacter
from peftjax.methods.bottleneck.invertible import invertible_adapter
from peftjax.methods.bottleneck.unions import mam, unipelt
from peftjax.methods.gated import gated
from peftjax.methods.low_rank.activated import activated
from peftjax.methods.low_rank.adalora import adalora, orthogonality
from peftjax.methods.low_rank.delora import delora
from peftjax.methods.low_rank.dora import dora
from peftjax.methods.low_rank.gralora import gralora
from peftjax.methods.low_rank.hira import hira
from peftjax.methods.low_rank.kasa import kasa
from peftjax.methods.low_rank.loftq import loftq
from peftjax.methods.low_rank.loha import loha
from peftjax.methods.low_rank.lora import lora
from peftjax.methods.low_rank.lora_fa import lora_fa
from peftjax.methods.low_rank.miss import miss
from peftjax.methods.low_rank.randlora import randlora
from peftjax.methods.low_rank.vblora import vblora
from peftjax.methods.low_rank.vera import vera
from peftjax.methods.orthogonal.boft import boft
from peftjax.methods.orthogonal.hra import hra
from peftjax.methods.orthogonal.oft import oft
from peftjax.methods.orthogonal.psoft import principal_subspaces, psoft
from peftjax.methods.orthogonal.road import road
from peftjax.methods.prompts.adaption_prompt import adaption_prompt
from peftjax.methods.prompts.p_tuning import export_prompt, p_tuning
from peftjax.methods.prompts.prefix_tuning import export_prefix, prefix_tuning
from peftjax.methods.prompts.prompt_tuning import prompt_tuning
from peftjax.methods.reft.reft import direft, loreft, noreft
from peftjax.methods.sparse.diff_pruning import diff_pruning, expected_entries, keep_entries
from peftjax.methods.sparse.fish_mask import fish_mask, largest_entries
from peftjax.methods.sparse.select import full, select
from peftjax.methods.sparse.shira import shira
from peftjax.methods.sparse.top_layers import top_layers
from peftjax.methods.sparse.trainable_tokens import trainable_tokens
from peftjax.methods.structured.c3a import c3a
from peftjax.methods.structured.fourierft import fourierft
from peftjax.methods.structured.ia3 import ia3
from peftjax.methods.structured.lokr import lokr
from peftjax.methods.subspace.intrinsic import Subspace, intrinsic
from peftjax.quantize.gguf_blocks import Q4_0, Q4_1, Q8_0
from peftjax.quantize.int8 import Int8
from peftjax.quantize.model import quantize
from peftjax.quantize.nf4 import NF4

__version__ = '0.1.0'

# The modules of the names that are imported on first use. Flax, which only `wrap` and the model
# families need, and the readers of files took half of the time of `import peftjax`.
_LATE = {
    'wrap': 'peftjax.binding.wrap',
    'generator': 'peftjax.generation.generate',
    'pad_left': 'peftjax.generation.prompts',
    'Sampling': 'peftjax.generation.sampling',
    'export_gguf': 'peftjax.interop.gguf.lora',
    'abstract_inputs': 'peftjax.interop.checkpoints.load',
    'load': 'peftjax.interop.checkpoints.load',
    'PeftAdapter': 'peftjax.interop.peft.files',
    'load_adapter': 'peftjax.interop.peft.files',
    'save_adapter': 'peftjax.interop.peft.files',
    'Restored': 'peftjax.interop.folder.read',
    'restore': 'peftjax.interop.folder.read',
    'save': 'peftjax.interop.folder.write',
    'save_checkpoint': 'peftjax.interop.checkpoints.save',
    'package_path': 'peftjax.interop.files.sources',
    'Tokenizer': 'peftjax.interop.checkpoints.tokenizer',
    'TokenScores': 'peftjax.models.read_out',
    'testing': 'peftjax.testing',
    'merging': 'peftjax.merging',
    'plan': 'peftjax.plan',
    'serving': 'peftjax.serving',
    'train': 'peftjax.train',
}

if TYPE_CHECKING:
    from peftjax import merging, plan, serving, testing, train
    from peftjax.binding.wrap import wrap
    from peftjax.generation.generate import generator
    from peftjax.generation.prompts import pad_left
    from peftjax.generation.sampling import Sampling
    from peftjax.interop.checkpoints.load import abstract_inputs, load
    from peftjax.interop.checkpoints.save import save_checkpoint
    from peftjax.interop.checkpoints.tokenizer import Tokenizer
    from peftjax.interop.files.sources import package_path
    from peftjax.interop.folder.read import Restored, restore
    from peftjax.interop.folder.write import save
    from peftjax.interop.gguf.lora import export_gguf
    from peftjax.interop.peft.files import PeftAdapter, load_adapter, save_adapter
    from peftjax.models.read_out import TokenScores
else:  # A type checker that saw this function would believe that every name exists.

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        module = importlib.import_module(_LATE[name])
        value = module if module.__name__ == f'{__name__}.{name}' else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


__all__ = [
    'AttentionUse',
    'Int8',
    'Mask',
    'NF4',
    'Q4_0',
    'Q4_1',
    'Q8_0',
    'QuantizedArray',
    'Roles',
    'Scheme',
    'dequantize',
    'quantize',
    'abstract_inputs',
    'batch_sharding',
    'make_mesh',
    'shardings',
    'state_shardings',
    'Restored',
    'restore',
    'save',
    'save_checkpoint',
    'package_path',
    'save_adapter',
    'export_gguf',
    'load_adapter',
    'PeftAdapter',
    'Sampling',
    'pad_left',
    'generator',
    'vblora',
    'road',
    'psoft',
    'principal_subspaces',
    'delora',
    'adaption_prompt',
    'ROOT',
    'Adapter',
    'AdapterError',
    'CallRule',
    'CheckpointError',
    'Hole',
    'JaxVersionError',
    'Layout',
    'MergeError',
    'Model',
    'ModelCall',
    'ModuleRule',
    'ModuleSite',
    'ModuleUse',
    'PeftTransform',
    'Sites',
    'Subspace',
    'Summary',
    'TargetError',
    'TokenScores',
    'Tokenizer',
    'Tokens',
    'Use',
    'Entry',
    'Frozen',
    'LeafRule',
    'frozen_shardings',
    'MatrixRule',
    'WeightSite',
    'adalora',
    'adapt',
    'boft',
    'bottleneck',
    'c3a',
    'chain',
    'combine',
    'compacter',
    'diff_pruning',
    'direft',
    'dora',
    'expected_entries',
    'export_prefix',
    'export_prompt',
    'fish_mask',
    'fourierft',
    'full',
    'gated',
    'activated',
    'gralora',
    'hira',
    'houlsby',
    'hra',
    'ia3',
    'intrinsic',
    'invertible_adapter',
    'kasa',
    'keep_entries',
    'largest_entries',
    'load',
    'loftq',
    'loha',
    'lokr',
    'lora',
    'lora_fa',
    'loreft',
    'mam',
    'merge_loss',
    'miss',
    'named_chain',
    'noreft',
    'oft',
    'p_tuning',
    'parallel_adapter',
    'orthogonality',
    'partition',
    'pfeiffer',
    'prefix_tuning',
    'prompt_tuning',
    'randlora',
    'select',
    'serving',
    'shira',
    'summary',
    'targets',
    'testing',
    'merging',
    'plan',
    'train',
    'top_layers',
    'trainable_tokens',
    'unipelt',
    'vera',
    'weightwise',
    'wrap',
]
