"One's own components: the template, CONTRIBUTING's example, plugins on the command line and in Python"
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from forked import tinyrpn

from tinyrpn.core import UnknownNameError, _registry, names
from tinyrpn.new import chapter_cells, new_chapter

ROOT = Path(__file__).parents[2]
MODULE = '''
from tinyrpn.domain import Interval
from tinyrpn.expansion import ElementwiseExpansion

CLASS
'''
CONFIG = '''
name: mine
seed: 1
data: {name: mnist_sample, batch_size: 100}
model: {dims: [784, 10], expansion: softsign}
learner: {epochs: 1, optimizer: {name: AdamW, lr: 5.0e-3}}
'''


def walkthrough():
    "The code blocks of CONTRIBUTING's example: the class and the reference"
    return re.findall(r'```python\n(.*?)```', (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8'), re.S)


@pytest.fixture
def clean_registry():
    before = {kind: dict(entries) for kind, entries in _registry.items()}
    yield
    for kind, entries in before.items(): _registry[kind].clear(); _registry[kind].update(entries)


def run(cells):
    "Run the code cells; the checks that fail, and whatever else does"
    space, failed = {}, []
    for kind, source in cells:
        if kind != 'py': continue
        try: exec(source, space)
        except Exception as e: failed.append(source.split('(')[0] if source.startswith('check_') else f'{source[:40]!r}: {e}')
    return failed


@pytest.mark.parametrize('kind', ['expansion', 'reconciliation', 'remainder'])
def test_every_check_of_a_template_fails_as_it_is_written(kind, clean_registry):
    cells = chapter_cells(kind, 'blank')
    checks = [s.split('(')[0] for k, s in cells if k == 'py' and s.startswith('check_')]
    failed = run(cells)
    assert len(checks) >= 4 and set(checks) <= set(failed), set(checks) - set(failed)


def test_contributing_does_what_it_says(clean_registry):
    definition, reference = walkthrough()
    cells = chapter_cells('expansion', 'softsign')
    def filled(source):
        if source.startswith('#| export\nclass'): return definition
        return reference if source.startswith('def reference') else source
    assert run([(k, filled(s)) for k, s in cells]) == []
    assert 'softsign_expansion' in names('expansion')


def test_a_wrong_formula_does_not_pass(clean_registry):
    definition, reference = walkthrough()
    wrong = definition.replace('1 + x.abs()', '2 + x.abs()')
    assert wrong != definition
    cells = [(k, wrong if s.startswith('#| export\nclass') else reference if s.startswith('def reference') else s) for k, s in chapter_cells('expansion', 'softsign')]
    assert run(cells) == ['check_values']


def test_the_chapter_goes_where_contributing_says(tmp_path):
    (tmp_path/'nbs').mkdir(); (tmp_path/'settings.ini').write_text('')
    for f in (ROOT/'nbs').glob('01*.ipynb'): (tmp_path/'nbs'/f.name).write_text('{}')
    (tmp_path/'nbs'/'sidebar.yml').write_text((ROOT/'nbs'/'sidebar.yml').read_text())
    file = new_chapter('expansion', 'softsign', tmp_path)
    assert f'nbs/{file.name}' in (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert file.name in (tmp_path/'nbs'/'sidebar.yml').read_text()


def test_new_on_the_command_line(tmp_path):
    run_ = tinyrpn('new', 'expansion', 'soft_clip')
    assert run_.returncode == 0 and (tmp_path/'soft_clip_expansion.ipynb').is_file() and 'soft_clip_expansion.ipynb written' in run_.stdout
    again = tinyrpn('new', 'expansion', 'soft_clip')
    assert again.returncode == 2 and 'exists already' in again.stderr and again.stderr.count('\n') == 1


@pytest.mark.parametrize('sidebar, words', [(b'contents:\n', 'no line begins with - 01'), (b'\xff\xfe', 'not text in UTF-8')])
def test_a_sidebar_that_cannot_be_used_leaves_no_chapter(tmp_path, capsys, sidebar, words):
    from tinyrpn.cli import main
    (tmp_path/'nbs').mkdir(); (tmp_path/'settings.ini').write_text(''); (tmp_path/'nbs'/'sidebar.yml').write_bytes(sidebar)
    assert main(['new', 'expansion', 'soft_clip', '--folder', str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1 and os.listdir(tmp_path/'nbs') == ['sidebar.yml']


def test_a_sidebar_that_cannot_be_written_leaves_no_chapter(tmp_path, monkeypatch):
    from tinyrpn import new
    (tmp_path/'nbs').mkdir(); (tmp_path/'settings.ini').write_text(''); (tmp_path/'nbs'/'sidebar.yml').write_text('- 01_x')
    whole = new.replace_file
    def full(path, write): return whole(path, write if path.suffix == '.ipynb' else lambda p: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with monkeypatch.context() as m:
        m.setattr(new, 'replace_file', full)
        with pytest.raises(new.FileError, match='the disk is full'): new_chapter('expansion', 'soft_clip', tmp_path)
    assert os.listdir(tmp_path/'nbs') == ['sidebar.yml']
    assert new_chapter('expansion', 'soft_clip', tmp_path).name == '01a_soft_clip.ipynb' and (tmp_path/'nbs'/'sidebar.yml').read_text() == '- 01_x\n- 01a_soft_clip.ipynb\n'


def test_a_plugin_trains_predicts_and_is_named_by_its_file(tmp_path, clean_registry):
    (tmp_path/'my_plugin_module.py').write_text(MODULE.replace('CLASS', walkthrough()[0]))
    (tmp_path/'mine.yaml').write_text(CONFIG)
    without = tinyrpn('train', 'mine.yaml')
    assert without.returncode == 2 and "There is no expansion 'softsign'" in without.stderr
    with_it = tinyrpn('--plugin', 'my_plugin_module', 'train', 'mine.yaml')
    assert with_it.returncode == 0, with_it.stderr
    model = tmp_path/'runs'/'mine'/'model.safetensors'
    stranger = tinyrpn('predict', str(model), 'x.png')
    assert stranger.returncode == 2 and 'my_plugin_module' in stranger.stderr and 'if you trust that code' in stranger.stderr
    assert tinyrpn('--plugin', 'no_such_module', 'configs').returncode == 2

    from tinyrpn.model import RPN
    with pytest.raises(UnknownNameError, match=r"plugins=\['my_plugin_module'\]"): RPN.load(model)
    assert 'my_plugin_module' not in sys.modules, 'loading imported what a file named'
    sys.path.insert(0, str(tmp_path))
    try: loaded = RPN.load(model, plugins=['my_plugin_module'])
    finally: sys.path.remove(str(tmp_path)); sys.modules.pop('my_plugin_module', None)
    assert loaded(torch.zeros(2, 784)).shape == (2, 10)
