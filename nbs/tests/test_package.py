"The package as a user meets it: imports, names, documentation, files"
import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import within

import tinyrpn
import tinyrpn.all as everything

package = Path(tinyrpn.__file__).parent
modules = sorted(p for p in package.rglob('*.py') if p.name != '_modidx.py')
chapters = sorted(Path(__file__).parent.parent.glob('*.ipynb'))


def python(code):
    "Run code in a fresh interpreter; returns what it printed"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()


def test_create_is_enough():
    assert python("from tinyrpn.core import create; print(create('taylor_expansion', d=2).dim(784))") == ['615440']


def test_core_is_light():
    loaded = python("import time; t = time.time(); import tinyrpn.core, sys; print(time.time() - t); print(*[m for m in ('torch', 'matplotlib', 'ipywidgets', 'torchmetrics', 'torchvision') if m in sys.modules])")
    assert within(float(loaded[0]), 2.5) and loaded[1:] == []


def test_heavy_libraries_are_imported_where_they_are_used():
    assert python("import tinyrpn.config, tinyrpn.compat, sys; print(*[m for m in ('matplotlib', 'ipywidgets', 'torchmetrics', 'torchvision') if m in sys.modules])") == []


@pytest.mark.parametrize('name, place', [('TaylorExpansion', 'expansion'), ('IdentityExpansion', 'expansion'), ('IdentityReconciliation', 'reconciliation'), ('Learner', 'learner'), ('load_config', 'config'), ('rpn_config', 'compat')])
def test_names_are_where_they_should_be(name, place):
    assert python(f'from tinyrpn.{place} import {name}; print({name}.__name__)') == [name]


def test_star_import_brings_every_public_name():
    assert {'RPN', 'Learner', 'create', 'TaylorExpansion', 'load_data', 'plot_history', 'contract'} <= set(everything.__all__)
    for name in everything.__all__: assert hasattr(everything, name)


def test_no_pickle_anywhere():
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.Import, ast.ImportFrom)): assert 'pickle' not in ast.unparse(node), path
            if isinstance(node, ast.Call): assert ast.unparse(node.func) not in ('torch.load', 'torch.save', 'eval', 'exec', 'yaml.load', 'yaml.unsafe_load'), (path, ast.unparse(node))
            if isinstance(node, ast.keyword) and node.arg == 'allow_pickle': assert node.value.value is False, path


def functions():
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield path, node


def test_functions_fit_on_a_screen():
    for path, node in functions():
        if isinstance(node, ast.FunctionDef): assert node.end_lineno - node.lineno < 40, f'{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines'


def test_public_classes_and_functions_say_what_they_are():
    for name in everything.__all__:
        value = getattr(everything, name)
        if inspect.isclass(value) and not issubclass(value, tuple) or inspect.isfunction(value): assert inspect.getdoc(value), f'{name} has no docstring'


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_chapter_has_what_a_chapter_has(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in nb['cells']]
    assert re.match(r'# .+\n\n> .+', cells[0][1]), 'a title and a one-line description come first'
    code = [(s, o) for kind, s, o in cells if kind == 'code']
    assert not any('eval: false' in s for s, _ in code), 'a cell is never run'
    assert all(s.count('\n') < 60 for s, _ in code if '#| export' in s), 'an exported cell is longer than a screen'
    assert path.stat().st_size < 500_000, 'the notebook is too heavy'
    assert any(o for _, o in code) or path.stem == 'index', 'no outputs are kept'
    assert not any(out.get('output_type') == 'error' for _, o in code for out in o)
    solutions = [o for s, o in code if s.startswith('#| code-fold: true\n#| code-summary: "Solution"\n')]
    headings = [s for kind, s, _ in cells if kind == 'markdown' and re.search('^## Exercises$', s, re.M)]
    if path.stem != 'index': assert len(headings) == 1 and len(solutions) >= (1 if path.stem in ('15a_main', '17_all') else 2), 'it closes with exercises whose solutions run'
    text = json.dumps(nb)
    assert not re.search(r'/(home|root|work|Users)/\w', re.sub(r'"image/png": "[^"]*"', '', text)), 'a path of somebody\'s machine'


def documented():
    "Public functions, and classes with a constructor of their own, with the parameters that they write down"
    for name in everything.__all__:
        value = getattr(everything, name)
        if inspect.isfunction(value): yield name, value
        elif inspect.isclass(value) and '__init__' in vars(value) and value.__module__.startswith('tinyrpn') and not issubclass(value, Exception) and not dataclasses.is_dataclass(value): yield name, value.__init__


def test_every_public_parameter_says_what_it_is():
    "A docment (a comment behind the parameter) for each"
    missing = []
    for name, function in documented():
        lines = inspect.getsource(function)
        node = ast.parse(lines.strip() if not lines.startswith(' ') else inspect.cleandoc('\n' + lines)).body[0]
        arguments = [a for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs if a.arg not in ('self', 'cls')]
        rows = inspect.cleandoc('\n' + lines).splitlines()
        missing += [f'{name}({a.arg})' for a in arguments if '#' not in rows[a.end_lineno - 1]]
    assert not missing, missing
