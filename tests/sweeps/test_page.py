"""The page about a sweep, in a real browser where one is installed."""

import json
import shutil
from pathlib import Path

import pytest
from playwright import sync_api

from peftjax.sweep.folder import SweepFolder
from peftjax.sweep.page import bands, settings, write_report

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None)
EVIL = '</script><script>document.title = "taken"</script><b>'


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep of 2 ranks, 2 rates and 2 seeds: one row diverged, one waits."""
    rows = {}
    for number in range(8):
        changes = {
            'lora.rank': (2, 8)[number // 4],
            'lr': (1e-3, 3e-3)[number // 2 % 2],
            'seed': number % 2,
        }
        config = {'seed': changes['seed'], 'peft': ['lora'], 'note': EVIL}
        rows[f'{number:03d}'] = {'changes': changes, 'config': config}
    about = {'config': 'configs/x.py', 'sweep': EVIL, 'commit': 'ab' * 20, 'rows': rows}
    (tmp_path / 'sweep.json').write_text(json.dumps(about), encoding='utf-8')
    for name, row in rows.items():
        number = int(name)
        home = tmp_path / 'rows' / name
        home.mkdir(parents=True)
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
        result = {'status': 'done', 'test/accuracy': score, 'validation/accuracy': score}
        result |= {'trainable': 1000 * row['changes']['lora.rank'], 'tflop': 1.5 + number}
        if number == 6:
            result = {'status': 'diverged', 'diverged_at': 2, 'trainable': 8000}
        if number != 7:
            (home / 'result.json').write_text(json.dumps(result))
    return tmp_path


def test_settings_are_means_over_seeds(folder):
    lines = SweepFolder(folder).results()
    found = settings(lines, ['config.lora.rank', 'config.lr', 'config.seed'], 'test/accuracy')
    assert [each['setting'] for each in found] == [
        'lora.rank=8  lr=0.001',
        'lora.rank=2  lr=0.003',
        'lora.rank=2  lr=0.001',
    ]
    assert found[0]['mean'] == pytest.approx(0.69) and found[0]['seeds'] == 2
    assert found[0]['deviation'] == pytest.approx(0.02 / 2**0.5)
    # A row that was stopped has a score too, of another step.
    early = {**lines[0], 'config.lr': 1.0, 'status': 'pruned', 'test/accuracy': 0.9}
    assert settings([*lines, early], ['config.lora.rank', 'config.lr'], 'test/accuracy') == found


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


@pytest.mark.skipif(BROWSER is None, reason='no Chromium or Chrome is installed')
def test_the_page_sorts_filters_and_draws_in_a_browser(folder, tmp_path):
    file, said = write_report(SweepFolder(folder)), []
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        page = browser.new_page(viewport={'width': 1280, 'height': 900})
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        assert page.title() == f'Sweep {EVIL}' and page.locator('h1').inner_text().endswith('<b>')

        def column(place):
            return page.locator(f'#rows tbody tr td:nth-child({place})').all_inner_texts()

        assert column(1) == [f'{number:03d}' for number in range(8)]
        assert page.locator('#count').inner_text() == '8 of 8 rows'
        best = page.locator('#settings tbody tr').first.inner_text()
        assert best.split() == ['lora.rank=8', 'lr=0.001', '0.69', '0.01414', '2', '8,000', '6']
        assert page.locator('#parameters circle').count() == 3
        assert page.locator('#cost polyline.front').count() == 1
        assert page.locator('#curves polyline').count() == 8
        assert page.locator('#heat rect').count() == 4
        heading = page.locator('#rows th', has_text='test/accuracy')
        heading.click()
        assert heading.get_attribute('aria-sort') == 'ascending' and column(1)[0] == '000'
        heading.click()
        assert heading.get_attribute('aria-sort') == 'descending'
        assert column(1) == [
            '005',
            '004',
            '003',
            '002',
            '001',
            '000',
            '006',
            '007',
        ]  # no score: last
        page.locator('#filter').fill('rank=8 seed=0')
        assert sorted(column(1)) == ['004', '006']
        assert page.locator('#count').inner_text() == '2 of 8 rows'
        page.locator('#metric').select_option('test/accuracy')
        page.locator('#curve').select_option('train/loss')
        page.locator('#filter').fill('')
        page.locator('#down').select_option('config.seed')
        assert page.locator('#heat rect').count() == 4
        drawn = page.evaluate('bands([...Array(12).keys()]).map(band => [...band])')
        assert drawn == bands(range(12))
        picture = tmp_path / 'page.png'
        page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 20_000
        browser.close()
    assert said == []
