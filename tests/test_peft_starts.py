"""LoRA in files of peft: starts that took from the base, biases, and a frozen first factor."""

import jax
import numpy as np
import pytest

import peftjax
from tests.peft_folders import IDS, base, changed, saved


@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('init', ['pissa', 'olora'])
def test_a_start_that_took_from_the_base_is_written_as_lora_on_the_whole_base(
    init, rslora, tmp_path
):
    model = base('llama', True)
    transform = peftjax.lora(
        rank=3,
        rslora=rslora,
        init=init,
        rank_pattern={r'.*v_proj/kernel': 2},
        targets=r'.*/[qv]_proj',
    )
    adapter, frozen, config, tensors = saved(tmp_path, model, transform)
    assert config['r'] == 6 and set(config['rank_pattern'].values()) == {4}
    assert {value.shape[0] for name, value in tensors.items() if 'lora_A' in name} == {4, 6}
    loaded = peftjax.load_adapter(tmp_path / 'new', model)
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **IDS),
        peftjax.adapt(model, loaded.transform)(loaded.adapter, loaded.frozen, **IDS),
        atol=2e-5,
    )
    # Nothing of the base's own is lost where nothing has trained.
    fresh, _ = transform.init(jax.random.key(5), model)
    peftjax.save_adapter(tmp_path / 'fresh', model, transform, fresh)
    again = peftjax.load_adapter(tmp_path / 'fresh', model)
    merged = again.transform.merge(again.adapter, again.frozen)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ('source', 'fields', 'told'),
    [
        ('llama/lora_pissa', {'init_lora_weights': 'pissa_niter_4'}, 'convert it to plain LoRA'),
        ('llama/lora_pissa', {'use_dora': True}, 'lora_magnitude_vector'),
        ('llama/dora_embedding', {'init_lora_weights': 'pissa'}, "use_dora with 'pissa'"),
        ('llama/lora_lm_head', {'lora_bias': True}, 'lacks .*lora_B.bias'),
        ('llama/lora', {'kasa_config': {}}, 'lacks .*lora_diag'),
        (
            'llama/lora',
            {'layer_replication': [[0, 2], [1, 2]]},
            'layer_replication gives the base layers',
        ),
        ('llama/lora', {'lora_bias': True, 'kasa_config': {}}, 'lora_bias with kasa_config'),
        (
            'llama/lora',
            {'use_bdlora': {'nblocks': 3, 'target_modules_bd_a': ['q_proj']}},
            '3 blocks',
        ),
        ('llama/lora', {'use_bdlora': {'nblocks': 2, 'new': 1}}, "use_bdlora .*'new'"),
    ],
)
def test_starts_and_biases_that_do_not_fit_are_refused(source, fields, told, tmp_path):
    with pytest.raises(peftjax.CheckpointError, match=told):
        peftjax.load_adapter(changed(tmp_path, source, fields), base('llama', True))


def test_olora_of_transposed_weights_is_refused(tmp_path):
    folder = changed(tmp_path, 'gpt2/lora_bias_all', {'init_lora_weights': 'olora'})
    with pytest.raises(peftjax.CheckpointError, match='decomposes the other way round'):
        peftjax.load_adapter(folder, base('gpt2', True))


def test_a_frozen_first_factor_is_written_as_lora(tmp_path):
    model = base('llama', True)
    transform = peftjax.lora_fa(rank=3, alpha=5, targets=r'.*/[qv]_proj')
    adapter, frozen, config, _ = saved(tmp_path, model, transform)
    assert config['peft_type'] == 'LORA' and config['r'] == 3
    loaded = peftjax.load_adapter(tmp_path / 'new', model)
    np.testing.assert_allclose(
        peftjax.adapt(model, transform)(adapter, frozen, **IDS),
        peftjax.adapt(model, loaded.transform)(loaded.adapter, loaded.frozen, **IDS),
        atol=2e-5,
    )
