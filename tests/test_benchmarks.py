"""The counts of the benchmarks obey arithmetic, on small models; times are not tested."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import peftjax
from benchmarks import report, step_time, turns
from benchmarks.cases import BATCHES, SIZES, Program, program, workload, zeros
from benchmarks.counting import cost
from benchmarks.step_cost import Row, cells

LORA = 'LoRA r=8, all-linear'
EMBEDDING = 'LoRA r=8, q v and tied embedding'
LAYERS = 4


@pytest.fixture(scope='module')
def llama():
    """Costs of the small Llama: {(method, route, scanned): Cost}."""
    works = {scan: workload('llama', 'tiny', scan=scan, layers=LAYERS) for scan in (True, False)}
    wanted = [
        ('full', 'rules', True),
        ('full', 'rules', False),
        (LORA, 'rules', True),
        (LORA, 'merged', True),
        (EMBEDDING, 'rules', True),
        (EMBEDDING, 'rules', False),
    ]
    return {
        (method, route, scan): cost(
            program(works[scan], works[scan].methods[method].transform, route), LAYERS
        )
        for method, route, scan in wanted
    }


@pytest.mark.slow
def test_lora_costs_less_than_full_and_its_rules_less_than_merging(llama):
    full, rules, merged = (
        llama[key].flops
        for key in (('full', 'rules', True), (LORA, 'rules', True), (LORA, 'merged', True))
    )
    assert rules < 0.75 * full
    assert rules < 0.75 * merged
    assert llama[LORA, 'rules', True].temporary < llama['full', 'rules', True].temporary


# Both methods carry gradients down to the embedding. One that only adapts layers need not in a
# looped model, whose first layer is then honestly cheaper than in the scanned one.
@pytest.mark.parametrize('method', ['full', EMBEDDING])
def test_scanned_counts_agree_with_looped_ones(llama, method):
    scanned, looped = llama[method, 'rules', True], llama[method, 'rules', False]
    assert scanned.scans == 2, 'one loop forward, one backward'
    assert looped.scans == 0
    assert scanned.flops == pytest.approx(looped.flops, rel=0.02)


def test_full_counts_at_least_its_matrix_products(llama):
    config, (batch, length) = SIZES['llama']['tiny'], BATCHES['llama']['tiny']
    width, key_width = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 2 * width * (width + key_width) + 3 * width * config.intermediate_size
    # Products of weights forward, and twice backward; attention's own two products as well.
    weights = 6 * batch * length * (LAYERS * layer + config.vocab_size * width)
    attention = 12 * batch * length * length * width * LAYERS
    found = llama['full', 'rules', True].flops
    assert weights + attention < found < 1.25 * (weights + attention)


@pytest.mark.parametrize('length', [1, 6, 7])
def test_loops_are_counted_in_full(length):
    matrix = jax.ShapeDtypeStruct((32, 32), jnp.float32)

    def step(state, frozen, batch):
        del frozen, batch
        return jax.lax.scan(lambda x, _: (x @ x, None), state, length=length)[0]

    counted = cost(Program(step, optax.identity(), matrix, None, None), length)
    assert counted.flops == pytest.approx(length * 2 * 32**3, rel=1e-3)


@pytest.mark.parametrize('scan', [True, False])
def test_trained_parameters_follow_their_formulas(scan):
    def trained(work, method):
        return peftjax.summary(work.methods[method].transform, work.model).trainable

    work = workload('llama', 'tiny', scan=scan)
    config = SIZES['llama']['tiny']
    width, inner = config.hidden_size, config.intermediate_size
    key_width = config.num_key_value_heads * config.head_dim
    attention = (width + width) + (width + key_width)  # q and v
    every = attention + (width + key_width) + (width + width) + 3 * (width + inner)
    layers = config.num_hidden_layers
    assert trained(work, 'LoRA r=8, q v') == 8 * layers * attention
    assert trained(work, LORA) == 8 * layers * every
    assert trained(work, EMBEDDING) == 8 * (layers * attention + config.vocab_size + width)
    assert trained(work, 'select, norms') == (2 * layers + 1) * width
    assert trained(work, 'bottleneck 64') == 2 * layers * (2 * 64 * width + 64 + width)
    assert trained(work, 'full') == sum(
        math.prod(x.shape) for x in jax.tree.leaves(work.model.params)
    )


def test_a_second_step_and_a_new_adapter_compile_nothing(caplog):
    work = workload('llama', 'tiny', scan=True, layers=2)
    transform = work.methods['LoRA r=8, q v'].transform
    made = program(work, transform, 'rules')
    step = jax.jit(made.function, donate_argnums=0)
    state, frozen, batch = zeros((made.state._replace(key=None), made.frozen, made.batch))
    state = state._replace(key=jax.random.key(0))
    other = jax.tree.map(jnp.copy, state)
    other = other._replace(adapter=jax.tree.map(lambda x: x + 0.1, other.adapter))
    with jax.log_compiles():
        first, _ = step(state, frozen, batch)
        assert sum('Compiling' in record.getMessage() for record in caplog.records) > 0
        caplog.clear()
        step(first, frozen, batch)
        step(other, frozen, batch)
    assert not [record.getMessage() for record in caplog.records]


def test_the_table_compares_with_full_and_with_looped(llama):
    costs = [('full', 'rules', False), ('full', 'rules', True), (EMBEDDING, 'rules', True)]
    rows = [
        Row(method, route, 'scanned' if scan else 'looped', 1234, llama[method, route, scan])
        for method, route, scan in costs
    ]
    header, looped, scanned, lora = cells(rows)
    assert scanned[header.index('of full')] == '1.000'
    assert looped[header.index('of looped')] == ''
    assert float(scanned[header.index('of looped')]) == pytest.approx(1.0, abs=0.02)
    assert lora[header.index('of looped')] == ''
    assert lora[header.index('trainable')] == '1,234'


def test_a_worker_takes_steps():
    task = {'family': 'bert', 'size': 'tiny', 'method': 'LoRA r=8, q v', 'route': 'rules'}
    task |= {'scan': True, 'vocab_size': 256, 'shape': (4, 16), 'cores': 1, 'warm_up': 1}
    command = [sys.executable, '-m', 'benchmarks.jax_step_time', json.dumps(task)]
    with turns.Worker(command) as worker:
        answer = worker.steps(2)
    width, layers = 128, 4
    assert answer['trainable'] == 8 * layers * 2 * (width + width) + 2 * width + 2
    assert len(answer['ms']) == len(answer['cpu_ms']) == 2
    assert answer['loss'] < worker.first['loss']


def test_a_worker_that_ends_is_an_error():
    with pytest.raises(RuntimeError, match='ended with status 3'):
        turns.Worker([sys.executable, '-c', 'raise SystemExit(3)'])


def test_ratios_are_taken_pair_by_pair():
    def turn(ms, trainable=10):
        return {'ms': ms, 'cpu_ms': ms, 'peak_rss_mib': 1.0, 'trainable': trainable, 'loss': 0.0}

    ours, theirs = [turn([1, 2, 3]), turn([30])], [turn([4]), turn([20])]
    cells_of_row = step_time.row('full', ours, theirs)
    assert cells_of_row[3:6] == ('0.50 1.50', '1.00', '1.00')
    with pytest.raises(ValueError, match='the steps must be the same'):
        step_time.row('full', ours, [turn([4], trainable=11)] * 2)


def test_sections_of_the_page_are_replaced(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbelow\n')
    report.write_section('a', 'new \\1', page)
    assert page.read_text() == 'above\n<!-- a: begin -->\nnew \\1\n<!-- a: end -->\nbelow\n'
    with pytest.raises(ValueError, match='lacks the section'):
        report.write_section('b', 'text', page)
