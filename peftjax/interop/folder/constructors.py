"""What a file may name: the functions that make transforms, and the values they take."""

from collections.abc import Callable
from typing import Any

from peftjax.core.combine import chain, named_chain
from peftjax.core.holes import Hole
from peftjax.core.layout import Layout
from peftjax.core.paths import Selection
from peftjax.core.transform import PeftTransform
from peftjax.methods.bottleneck.adapters import houlsby, parallel_adapter, pfeiffer
from peftjax.methods.bottleneck.bottleneck import bottleneck
from peftjax.methods.bottleneck.compacter import compacter
from peftjax.methods.bottleneck.invertible import invertible_adapter
from peftjax.methods.bottleneck.unions import mam, unipelt
from peftjax.methods.gated import gated
from peftjax.methods.low_rank.activated import activated
from peftjax.methods.low_rank.adalora import adalora
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
from peftjax.methods.orthogonal.psoft import psoft
from peftjax.methods.orthogonal.road import road
from peftjax.methods.prompts.adaption_prompt import adaption_prompt
from peftjax.methods.prompts.p_tuning import p_tuning
from peftjax.methods.prompts.prefix_tuning import prefix_tuning
from peftjax.methods.prompts.prompt_tuning import prompt_tuning
from peftjax.methods.reft.reft import direft, loreft, noreft
from peftjax.methods.sparse.diff_pruning import diff_pruning
from peftjax.methods.sparse.fish_mask import fish_mask
from peftjax.methods.sparse.select import full, select
from peftjax.methods.sparse.shira import shira
from peftjax.methods.sparse.top_layers import top_layers
from peftjax.methods.sparse.trainable_tokens import trainable_tokens
from peftjax.methods.structured.c3a import c3a
from peftjax.methods.structured.fourierft import fourierft
from peftjax.methods.structured.ia3 import ia3
from peftjax.methods.structured.lokr import lokr
from peftjax.methods.subspace.intrinsic import intrinsic
from peftjax.quantize.gguf_blocks import Q4_0, Q4_1, Q8_0
from peftjax.quantize.int8 import Int8
from peftjax.quantize.nf4 import NF4

METHODS: dict[str, Callable[..., PeftTransform]] = {
    make.__name__: make
    for make in (
        activated,
        adalora,
        adaption_prompt,
        boft,
        bottleneck,
        c3a,
        chain,
        compacter,
        delora,
        diff_pruning,
        direft,
        dora,
        fish_mask,
        fourierft,
        full,
        gated,
        gralora,
        hira,
        houlsby,
        hra,
        ia3,
        intrinsic,
        invertible_adapter,
        kasa,
        loftq,
        loha,
        lokr,
        lora,
        lora_fa,
        loreft,
        mam,
        miss,
        named_chain,
        noreft,
        oft,
        p_tuning,
        parallel_adapter,
        pfeiffer,
        prefix_tuning,
        prompt_tuning,
        psoft,
        randlora,
        road,
        select,
        shira,
        top_layers,
        trainable_tokens,
        unipelt,
        vblora,
        vera,
    )
}
"""Every public function that makes a described transform. A file calls nothing else."""

VALUES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Hole, Int8, Layout, NF4, Q4_0, Q4_1, Q8_0, Selection)
}
"""Dataclasses that stand in arguments or in trees of parameters."""

ACTIVATIONS = (
    *('celu', 'elu', 'gelu', 'hard_sigmoid', 'hard_silu', 'hard_tanh', 'identity', 'leaky_relu'),
    *('log_sigmoid', 'mish', 'relu', 'relu6', 'selu', 'sigmoid', 'silu', 'soft_sign', 'softplus'),
    *('sparse_plus', 'sparse_sigmoid', 'squareplus', 'tanh'),
)
"""Functions of `jax.nn` that a file may name."""
