"""peftjax: parameter-efficient fine-tuning as pure transforms of Flax parameter trees."""

from peftjax import testing
from peftjax.binding.adapt import adapt
from peftjax.binding.wrap import wrap
from peftjax.core.base import (
    ROOT,
    Adapter,
    AdapterError,
    CallRule,
    MergeError,
    Model,
    ModelCall,
    ModuleRule,
    ModuleUse,
    PeftTransform,
    Use,
    WeightAdapter,
    WeightRule,
)
from peftjax.core.combine import chain, named_chain
from peftjax.core.layout import Layout
from peftjax.core.partition import Hole, combine, partition
from peftjax.core.paths import TargetError
from peftjax.core.sites import ModuleSite, Sites, WeightSite
from peftjax.core.summary import Summary, summary
from peftjax.core.weightwise import weightwise
from peftjax.interop.errors import CheckpointError
from peftjax.interop.load import load
from peftjax.methods.adalora import adalora, orthogonality
from peftjax.methods.bottleneck import bottleneck
from peftjax.methods.c3a import c3a
from peftjax.methods.dora import dora
from peftjax.methods.fourierft import fourierft
from peftjax.methods.hira import hira
from peftjax.methods.hra import hra
from peftjax.methods.loha import loha
from peftjax.methods.lokr import lokr
from peftjax.methods.lora import lora
from peftjax.methods.lora_fa import lora_fa
from peftjax.methods.miss import miss
from peftjax.methods.oft import oft
from peftjax.methods.select import full, select
from peftjax.methods.shira import shira
from peftjax.methods.vera import vera

__all__ = [
    'Adapter',
    'AdapterError',
    'CallRule',
    'CheckpointError',
    'Hole',
    'Layout',
    'MergeError',
    'Model',
    'ModelCall',
    'ModuleRule',
    'ModuleSite',
    'ModuleUse',
    'PeftTransform',
    'ROOT',
    'Sites',
    'Summary',
    'TargetError',
    'Use',
    'WeightAdapter',
    'WeightRule',
    'WeightSite',
    'adalora',
    'adapt',
    'bottleneck',
    'c3a',
    'chain',
    'combine',
    'dora',
    'fourierft',
    'full',
    'hira',
    'hra',
    'load',
    'loha',
    'lokr',
    'lora',
    'lora_fa',
    'miss',
    'named_chain',
    'oft',
    'orthogonality',
    'partition',
    'select',
    'shira',
    'summary',
    'testing',
    'vera',
    'weightwise',
    'wrap',
]
