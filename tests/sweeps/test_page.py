"""The page about a sweep. The slow tests open it in a real browser."""

import json
import re
import shutil
from pathlib import Path

import pytest
from playwright import sync_api

from peftjax.sweep import figures
from peftjax.sweep.figures import bands
from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.intervals import settings
from peftjax.sweep.page import write_report
from peftjax.train.artifacts import learning_curve

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None)
FIELDS = ['config.lora.rank', 'config.lr', 'config.seed']
EVIL = '</script><script>document.title = "taken"</script><b>'


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep of 2 ranks, 2 rates and 2 seeds: one run diverged, one waits."""
    runs = {}
    for number in range(8):
        changes = {
            'lora.rank': (2, 8)[number // 4],
            'lr': (1e-3, 3e-3)[number // 2 % 2],
            'seed': number % 2,
        }
        config = {'seed': changes['seed'], 'methods': ['lora'], 'note': EVIL}
        runs[f'{number:03d}'] = {'changes': changes, 'config': config}
    about = {'config': 'configs/x.py', 'sweep': EVIL, 'commit': 'ab' * 20, 'runs': runs}
    about['score'] = 'accuracy'
    (tmp_path / 'sweep.json').write_text(json.dumps(about), encoding='utf-8')
    for name, run in runs.items():
        number = int(name)
        home = tmp_path / 'runs' / name
        (home / 'adapter').mkdir(parents=True)
        score = 0.6 + 0.02 * number
        curve = [
            {
                'step': step,
                'train/loss': 1 / (step + number),
                'validation/accuracy': score - 0.1 / step,
            }
            for step in (1, 2, 3)
        ]
        (home / 'metrics.jsonl').write_text(''.join(json.dumps(p) + '\n' for p in curve))
        result = {
            'steps': 3,
            'status': 'done',
            'test/accuracy': score,
            'validation/accuracy': score,
        }
        result |= {'trainable': 1000 * run['changes']['lora.rank'], 'tflop': 1.5 + number}
        if number == 6:
            result = {'steps': 3, 'status': 'diverged', 'diverged_at': 2, 'trainable': 8000}
        if number != 7:
            (home / 'result.json').write_text(json.dumps(result))
    return tmp_path


def test_settings_are_means_over_seeds(folder):
    lines = SweepFolder(folder).results()
    found = settings(lines, FIELDS, 'test/accuracy')
    assert [each.name for each in found] == [
        'lora.rank=8 · lr=0.001',
        'lora.rank=2 · lr=0.003',
        'lora.rank=2 · lr=0.001',
    ]
    assert found[0].score.mean == pytest.approx(0.69) and found[0].score.n == 2
    assert found[0].score.deviation == pytest.approx(0.02 / 2**0.5)
    # A run that was stopped has a score too, of another step.
    early = {**lines[0], 'config.lr': 1.0, 'status': 'pruned', 'test/accuracy': 0.9}
    assert settings([*lines, early], FIELDS, 'test/accuracy') == found


def test_pictures_are_there_and_the_page_needs_no_other_file(folder):
    page = write_report(SweepFolder(folder)).read_text(encoding='utf-8')
    assert EVIL not in page and 'http' not in page.replace('http://www.w3.org/2000/svg', '')
    pictures = sorted(path.name for path in (folder / 'figures').iterdir())
    assert pictures == [
        'heat_map.png',
        'learning_curves.png',
        'score_by_tflop.png',
        'score_by_trainable.png',
    ]


@pytest.mark.parametrize('runs', [0, 1])
def test_a_sweep_that_has_just_begun_has_a_page(folder, runs):
    about = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    about['runs'] = dict(list(about['runs'].items())[:runs])
    (folder / 'sweep.json').write_text(json.dumps(about), encoding='utf-8')
    (folder / 'runs/000/result.json').unlink()
    page = write_report(SweepFolder(folder)).read_text(encoding='utf-8')
    assert f'"best": null, "curves": {{{"" if not runs else chr(34)}' in page


@pytest.fixture
def open_page(folder):
    """Opens the page in a window of some width; what the browser complains of fails the test."""
    assert BROWSER is not None, 'install Chromium or Chrome'
    file, said = write_report(SweepFolder(folder)), []
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])

        def opened(width=1280, **options):
            page = browser.new_page(viewport={'width': width, 'height': 900}, **options)
            page.on('console', lambda message: said.append(message.text))
            page.on('pageerror', lambda error: said.append(str(error)))
            page.goto(file.as_uri())
            return page

        yield opened
        browser.close()
    assert said == []


def column(page, place):
    return page.locator(f'#runs tbody tr td:nth-child({place})').all_inner_texts()


@pytest.mark.slow
def test_the_page_sorts_filters_and_draws_in_a_browser(open_page):
    page = open_page()
    assert page.title() == f'Sweep {EVIL}' and page.locator('h1').inner_text().endswith('<b>')
    names = [f'{number:03d}' for number in range(8)]
    assert column(page, 1) == [name + (' ★' if name == '005' else '') for name in names]
    assert page.locator('#count').inner_text() == '8 of 8 runs'
    assert page.locator('#parameters path.mark').count() == 3
    assert page.locator('#cost polyline.front').count() == 1
    assert page.locator('#curves polyline').count() == 8
    assert page.locator('.legend').first.inner_text().split() == ['lora.rank', '2', '8']
    assert page.locator('#heat rect').count() == 4
    assert page.locator('#heat text:is(.cell, .strong)').count() == 3  # one cell has no run
    heading = page.locator('#runs th', has_text='test/accuracy')
    heading.click()
    assert heading.get_attribute('aria-sort') == 'ascending' and column(page, 1)[0] == '000'
    heading.click()
    assert heading.get_attribute('aria-sort') == 'descending'
    # Runs without a score are last.
    assert [name[:3] for name in column(page, 1)] == [*names[5::-1], '006', '007']
    page.locator('#filter').fill('rank=8 seed=0')
    assert sorted(column(page, 1)) == ['004', '006']
    assert page.locator('#count').inner_text() == '2 of 8 runs'
    page.locator('#metric').select_option('test/accuracy')
    page.locator('#curve').select_option('train/loss')
    page.locator('#filter').fill('')
    page.locator('#down').select_option('config.seed')
    assert page.locator('#heat rect').count() == 4
    drawn = page.evaluate('bands([...Array(12).keys()]).map(band => [...band])')
    assert drawn == bands(range(12))


@pytest.mark.slow
def test_the_page_says_how_to_use_the_best_run_and_any_other(open_page, folder):
    page = open_page()
    card = page.locator('#card')
    assert card.locator('h2').inner_text() == 'Best run by validation/accuracy: 005'
    run = folder / 'runs/005'
    command = f'peftjax train --config {run}/config.json --workdir {folder}-005'
    assert card.locator('code').all_inner_texts() == [
        f'{run}/adapter',
        command,
        f'{run}/config.json',
    ]
    card.locator('summary').click()
    assert json.loads(card.locator('pre').inner_text())['note'] == EVIL
    card.locator('button').first.click()
    sync_api.expect(card.locator('button').first).to_have_text(re.compile('Copied|Selected'))
    page.locator('#runs tr[data-run="003"] td').nth(2).click()
    assert card.locator('h2').inner_text() == 'Run 003'
    page.get_by_text('Show the best run').click()
    assert card.locator('h2').inner_text().endswith('005')


@pytest.mark.slow
def test_the_page_and_python_compute_the_same_intervals(open_page, folder):
    """The reference is the best setting, or any other that is chosen."""
    page = open_page()
    lines = SweepFolder(folder).results()
    for reference in (None, 'lora.rank=2 · lr=0.001'):
        page.locator('#reference').select_option(reference or '')
        found = settings(lines, FIELDS, 'validation/accuracy', reference=reference)
        computed = page.evaluate("""() => {
            const all = bySetting(sweep.runs, state.metric);
            const name = state.reference || all[0].name;
            return all.map(s => [s.name, s.score, difference(s, all.find(r => r.name === name))]);
        }""")
        assert [each[0] for each in computed] == [each.name for each in found]
        for (_, score, difference), setting in zip(computed, found, strict=True):
            for mine, theirs in ((score, setting.score), (difference, setting.difference)):
                assert (mine is None) == (theirs is None)
                if theirs is not None and theirs.n > 1:
                    assert mine['mean'] == pytest.approx(theirs.mean)
                    assert mine['half'] == pytest.approx(theirs.high - theirs.mean, abs=1e-12)
                elif theirs is not None:
                    assert mine['half'] is None
    cells = page.locator('#settings tbody tr').nth(1).locator('td').all_inner_texts()
    assert cells[0] == 'lora.rank=2 · lr=0.003' and cells[3] == '+0.04' and cells[5] == '2'


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1400])
def test_the_page_fits_the_window_and_the_colours_of_the_reader(open_page, scheme, width):
    page = open_page(width, color_scheme=scheme)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    # The last column can be reached, and nothing cuts it off.
    last = page.locator('#runs tbody tr').first.locator('td').last
    last.evaluate("cell => { cell.closest('.scroll').scrollLeft = 1e6; }")
    cell, around = last.bounding_box(), page.locator('#runs').locator('..').bounding_box()
    assert cell['x'] + cell['width'] <= around['x'] + around['width'] + 1
    assert cell['x'] >= around['x'] and around['x'] + around['width'] <= width
    # WCAG's contrast of text on its ground, at least 4.5.
    contrast = page.evaluate("""() => {
        const light = colour => {
            const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(part => {
                const share = part / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const pairs = [
            ['#runs td', '#runs td'], ['#card dt', '#card'], ['#about', 'body'], ['code', 'code'],
        ];
        return pairs.map(([ink, paper]) => {
            const one = light(getComputedStyle(document.querySelector(ink)).color);
            const two = light(getComputedStyle(document.querySelector(paper)).backgroundColor);
            return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
        });
    }""")
    assert min(contrast) >= 4.5
    dark = page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(14, 18, 23)'
    assert dark == (scheme == 'dark')
    # Letters in charts keep their size.
    size = page.locator('#parameters svg').evaluate(
        'svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width'
    )
    assert size == pytest.approx(1)


DOLLARS = r'a$\w*$', r'\$_{$', '$x_$'


def test_dollars_in_names_are_no_mathematics(tmp_path):
    runs = [
        {
            'run': f'{number:03d}',
            'status': 'done',
            'seed': number,
            'config.lora.targets': text,
            'config.a': DOLLARS[0],
            'validation/$l_$': 0.1 * number,
            'trainable': 100 * number + 10,
        }
        for number, text in enumerate(DOLLARS)
    ]
    score, fields = 'validation/$l_$', ['config.lora.targets', 'config.a']
    found = settings(runs, fields, score, False, labels=DOLLARS)
    figures.scatter(tmp_path / 'a.png', found, 'trainable', '$s_$', score, DOLLARS, '$t_$')
    figures.heat_map(tmp_path / 'b.png', runs, fields, score)
    figures.curves(
        tmp_path / 'c.png',
        score,
        {run['run']: [{'step': 1, score: 0.5}, {'step': 2, score: 0.4}] for run in runs},
        dict(zip((run['run'] for run in runs), DOLLARS, strict=True)),
        '$t_$',
        '000',
    )
    learning_curve([{'step': 1, score: 0.5}, {'step': 2, score: 0.4}], tmp_path / 'd.png')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'b.png', 'c.png', 'd.png']
