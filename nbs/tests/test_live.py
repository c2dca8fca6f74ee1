"A run that one watches: the callbacks from code, and in a real JupyterLab"
import re

import pytest
from lab import in_lab, opened

SETUP = '''
from tinyrpn.all import *
from tinyrpn.data import Batches
import torch
set_seed(0)
data = load_data('mnist_sample', say=lambda *_: None)
loaders = Batches(data.train.x, data.train.y, batch_size=20, shuffle=True), Batches(data.test.x, data.test.y, batch_size=250)
model = RPN.from_config({'model': {'dims': [784, 64, 10], 'expansion': {'name': 'taylor', 'd': 2, 'post': 'LayerNorm'}, 'reconciliation': {'name': 'lorr', 'r': 2}}})
learner = Learner(model, loaders, optimizer={'name': 'AdamW', 'lr': 5e-3}, device='cpu', progress='live')
'''


@pytest.mark.slow
@in_lab
def test_a_run_is_watched_and_stopped(lab, tell):
    "The curve is replaced in place, a click in the middle of an epoch ends the run after that step, and everything is kept"
    watch = '''() => {
        window.seen = {texts: new Set(), heights: new Set(), empty: 0};
        const look = () => {
            const area = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[1], shown = area.querySelectorAll('.tinyrpn');
            if (window.begun && !shown.length) window.seen.empty++;
            if (shown.length) { window.begun = true; window.seen.texts.add(shown[0].querySelector('p').textContent); window.seen.most = Math.max(window.seen.most || 0, shown.length); window.seen.heights.add(shown[0].offsetHeight); }
        };
        new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
    }'''
    with opened(lab, SETUP, 'learner.fit(100);', "print(learner.history.note, len(learner.history.steps), learner.done, learner.epoch, 'kept')", watch=watch, name='live') as sheet:
        stop = sheet.page.locator('.jupyter-button', has_text='Stop')
        stop.wait_for(timeout=25_000)
        sheet.page.wait_for_function('() => /test_accuracy/.test(document.body.innerText) && [...window.seen.texts].length > 4', timeout=25_000)
        sheet.shot('live_running')
        stop.focus(); sheet.page.keyboard.press('Enter') # a click would do as well
        sheet.idle(2, 60)
        kept = sheet.cell(2).inner_text()
        note, steps, done, epoch = re.search(r'(interrupted .*?) (\d+) (\d+) (\d+) kept', kept).groups()
        assert int(steps) == 100*int(epoch) + int(done) < 10_000 and f'epoch {int(epoch) + (int(done) > 0)}' in note
        seen = sheet.page.evaluate('() => ({texts: [...seen.texts], most: seen.most, empty: seen.empty, heights: [...seen.heights]})')
        assert note in seen['texts'][-1] and seen['most'] == 1 and seen['empty'] == 0, seen
        assert max(seen['heights']) - min(h for h in seen['heights'] if h) < 30, 'the page does not jump'
        assert any(re.search(r'about \d+ (s|min)', t) for t in seen['texts'])
        assert sheet.page.locator('.jupyter-button', has_text=note).is_disabled() and sheet.errors == []
        sheet.shot('live_stopped')
        tell(f'JupyterLab: {len(seen["texts"])} pictures of a run in one place, which stopped at the button after step {done} of epoch {int(epoch) + 1}')


PANEL = SETUP + '''
from tinyrpn.panel import TrainingPanel
panel = TrainingPanel({'seed': 0, 'model': {'dims': [784, 10], 'expansion': {'name': 'taylor', 'd': 2, 'post': 'LayerNorm'}, 'reconciliation': {'name': 'lorr', 'r': 2}}, 'learner': {'epochs': 2, 'optimizer': {'name': 'AdamW', 'lr': 5e-3}}}, loaders)
panel
'''


@pytest.mark.slow
@in_lab
def test_the_panel_by_hand(lab):
    "Typed into and started by keyboard, stopped by mouse, gone on with; the kernel answers meanwhile"
    with opened(lab, PANEL, "print('the kernel is free:', panel.run)", name='panel', dark=True) as sheet:
        page = sheet.page
        start, stop, more = (page.locator('.jupyter-button', has_text=t) for t in ('Start', 'Stop', 'Go on'))
        start.wait_for(timeout=60_000)
        assert stop.is_disabled() and more.is_disabled()
        page.locator('.widget-dropdown select').first.focus(); page.keyboard.press('a'); page.keyboard.press('ArrowUp')
        assert page.locator('.jp-Notebook .jp-Cell').count() == 2, 'the keys are the panel\'s, not the notebook\'s'
        epochs, lr = page.locator('.widget-text input').nth(0), page.locator('.widget-text input').nth(1)
        assert (epochs.input_value(), float(lr.input_value())) == ('2', 0.005)
        epochs.focus(); page.keyboard.press('Control+a'); page.keyboard.type('4000'); page.keyboard.press('Enter')
        lr.focus(); page.keyboard.press('Control+a'); page.keyboard.type('0.002'); page.keyboard.press('Enter')
        start.focus(); page.keyboard.press('Enter')
        page.wait_for_function('() => /epoch [1-9]\\d*.4000 .*test_accuracy.* about .* left/.test(document.querySelector(".tinyrpn")?.textContent || "")', timeout=60_000)
        assert start.is_disabled() and epochs.is_disabled() and page.locator('.tinyrpn svg').count()
        sheet.shot('panel_running')
        stop.click()
        page.wait_for_function('() => /interrupted in epoch/.test(document.querySelector(".tinyrpn")?.textContent || "")', timeout=60_000)
        page.wait_for_function('() => ![...document.querySelectorAll(".jupyter-button")].find(b => /Go on/.test(b.textContent)).disabled')
        epochs.focus(); page.keyboard.press('Control+a'); page.keyboard.type('1'); page.keyboard.press('Enter')
        more.click()
        page.wait_for_function('() => /done/.test(document.querySelector(".tinyrpn")?.textContent || "")', timeout=60_000)
        sheet.shot('panel_done')
        lr.focus(); page.keyboard.press('Control+a'); page.keyboard.type('-1'); page.keyboard.press('Enter')
        start.click()
        page.wait_for_function('() => /ParameterError: lr=-1/.test(document.body.innerText)', timeout=60_000)
        assert sheet.errors == []
