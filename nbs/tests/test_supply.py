"What comes with the package and what it reaches out to: network, the files of a release, the workflows, what the code calls"
import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

import tinyrpn

root = Path(__file__).parents[2]
package = Path(tinyrpn.__file__).parent
settings = ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']
in_clone = pytest.mark.skipif(not (root/'setup.py').is_file(), reason='the package is not used from a clone')


# ---- the network

WATCH = '''
import json, sys
seen, started = [], []
def watch(event, args):
    if event.startswith(('socket.connect', 'socket.getaddrinfo', 'socket.gethostby', 'socket.send', 'socket.bind', 'urllib.Request', 'http.client.connect', 'ftplib', 'smtplib')):
        seen.append(event)
        raise OSError('no network in this test')
    if event in ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.startfile'): started.append(event)
sys.addaudithook(watch)
'''
RUN = WATCH + '''
from pathlib import Path
from tinyrpn.all import *
from tinyrpn.cli import main
by_import = list(seen), list(started)
head = RPNHead(784, 10, create('identity_expansion'), create('lorr_reconciliation'))
learner = Learner(RPN([head]), load_data('mnist_sample', say=lambda *_: None), progress=False)
learner.fit(1)
learner.model.save('m.safetensors')
RPN.load('m.safetensors'); RPN.load('mnist_dual_lphm'); load_config('mnist')
status = [main(['configs']), main(['describe', 'mnist_dual_lphm'])]
Path('small.yaml').write_text(Path('made.yaml').read_text())
status.append(main(['train', 'small.yaml', '--epochs', '1', '--out', 'out']))
print(json.dumps(dict(imported=by_import, seen=seen, started=started, status=status, rows=len(learner.history.rows))))
'''
SMALL = {'name': 'small', 'seed': 1, 'data': 'mnist_sample', 'model': {'layers': [{'m': 784, 'n': 10, 'expansion': 'identity', 'reconciliation': 'lorr'}]}, 'learner': {'epochs': 1}}


def fresh(code, *args):
    "Run code in a fresh interpreter in the test's folder; what its last line of output says"
    done = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(package.parent), os.environ.get('PYTHONPATH', '')])})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_nothing_reaches_for_the_network(tmp_path):
    "Neither the import, nor a training run, nor a file, nor the command line; and no other program is started by tinyrpn"
    (tmp_path/'made.yaml').write_text(yaml.safe_dump(SMALL))
    found = fresh(RUN)
    assert found['rows'] == 1 and found['status'] == [0, 0, 0] and (tmp_path/'out'/'model.safetensors').is_file()
    assert found['imported'][0] == [] and found['seen'] == []
    assert found['started'] == found['imported'][1], 'a program was started at run time'


def test_the_watch_sees_what_it_should():
    "Only the data download goes out, and the watch would have noticed"
    found = fresh(WATCH + "from tinyrpn.data import load_data\nimport os\n"
                  "before = list(seen)\ntry: load_data('mnist', say=lambda *_: None)\nexcept OSError: pass\nprint(json.dumps([before, seen]))")
    assert found[0] == [] and found[1]


def test_the_download_can_be_forbidden():
    assert fresh(WATCH + "from tinyrpn.data import load_data\ntry: load_data('mnist', download=False, say=lambda *_: None)\nexcept OSError: pass\nprint(json.dumps(seen))") == []


# ---- what the code calls

MODULES = sorted(p for p in package.rglob('*.py') if p.name != '_modidx.py')
NEVER = re.compile(r'''(builtins\.)?(eval|exec|compile|__import__|execfile)$ | (c?pickle|_pickle|marshal|shelve|dill|cloudpickle|joblib|pty|ctypes|code|runpy)(\.|$)
    | torch\.(load|save|hub(\..*)?|jit\.load|export\.load|package(\..*)?)$ | yaml\.(load|load_all|unsafe_load|unsafe_load_all|full_load|full_load_all|Loader|UnsafeLoader|FullLoader)$
    | os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork)$ | subprocess(\.|$) | (tarfile|zipfile)(\..*)?\.extract(all)?$ | shutil\.unpack_archive$ | pandas\.read_pickle$''', re.X)
NETWORK = re.compile(r'(urllib\.request|http\.client|requests|httpx|aiohttp|ftplib|smtplib|socketserver|huggingface_hub)(\.|$) | socket\.(socket|create_connection|create_server|getaddrinfo)$', re.X)
ALLOWED = {('bench.py', 'subprocess'), ('bench.py', 'subprocess.run'), # this Python with a line of its own, to measure memory alone
           ('data.py', 'http.client'), ('data.py', 'urllib.request'), ('data.py', 'urllib.request.urlopen'), ('data.py', 'http.client.HTTPException'), # the download
           ('site.py', 'subprocess'), ('site.py', 'subprocess.run'), # `npm pack`, for the letters and scripts of formulas
           *(('tuning.py', f'subprocess{what}') for what in ('', '.Popen', '.PIPE', '.TimeoutExpired'))} # this Python with this module, to try configurations beside each other
IMPORTS = {'core.py': {"f'{package}.{info.name}'", "f'tinyrpn.{room}'"}, 'model.py': {'name'}, 'remainder.py': {"'tinyrpn.contraction'"}} # in model.py: the plugins, which only the caller names


def uses(tree):
    "Every dotted name that the code uses, with what it was imported as filled in"
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): known.update({a.asname or a.name.split('.')[0]: a.name if a.asname else a.name.split('.')[0] for a in node.names}); yield from ((a.name, node) for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: known.update({a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}); yield from ((f'{node.module}.{a.name}', node) for a in node.names)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            try: head, *rest = ast.unparse(node).split('.')
            except RecursionError: continue
            if head.isidentifier(): yield '.'.join([known.get(head, head), *rest]), node


def found_in(text, name='somewhere.py'):
    "What is refused in a module"
    tree = ast.parse(text)
    bad = {used for used, _ in uses(tree) if (NEVER.match(used) or NETWORK.match(used)) and (name, used) not in ALLOWED}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        called = ast.unparse(node.func)
        if called.endswith('import_module') and not ({ast.unparse(node.args[0])} <= IMPORTS.get(name, set())): bad.add(ast.unparse(node))
        if called in ('np.load', 'numpy.load', 'np.lib.format.read_array') and not any(k.arg == 'allow_pickle' and ast.unparse(k.value) == 'False' for k in node.keywords): bad.add(ast.unparse(node))
        if any(k.arg == 'shell' and ast.unparse(k.value) != 'False' or k.arg == 'trust_remote_code' or k.arg == 'weights_only' and ast.unparse(k.value) == 'False' for k in node.keywords): bad.add(ast.unparse(node))
    return bad


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(package)))
def test_no_module_executes_what_it_reads(path): assert found_in(path.read_text(encoding='utf-8'), path.name) == set()


@pytest.mark.parametrize('line', ['eval("1")', 'exec(text)', 'import pickle', 'from pickle import loads as l', 'import torch\ntorch.load(p)', 'from torch import load', 'import torch as t\nt.load(p)', 'torch.hub.load(x)', 'yaml.load(f)', 'import yaml\nyaml.load(f, Loader=yaml.UnsafeLoader)', 'import os\nos.system("x")', 'from os import system', 'import subprocess as s\ns.run(x)',
                                  'np.load(p)', 'np.load(p, allow_pickle=True)', 'importlib.import_module(config["name"])', '__import__("os")', 'import zipfile\nzipfile.ZipFile.extractall(z)', 'import requests', 'from urllib.request import urlopen', 'import socket\nsocket.create_connection(a)', 'run(x, shell=True)', 'torch.export.load(p)', 'import ctypes', 'read = eval'])
def test_the_walk_finds_what_it_should(line):
    assert found_in(line)


def test_the_walk_leaves_the_harmless_alone(): assert found_in("import yaml, socket, numpy as np\nyaml.safe_load(t); socket.gethostname(); np.load(p, allow_pickle=False); model.eval(); re.compile('x'); torch.compile(m); torch.export.save(g, p); importlib.import_module\n") == set()


# ---- the requirements

@in_clone
def test_requirements_are_what_is_imported():
    "Each import of the package is a requirement, of the standard library, or of an extra; nothing comes from an address"
    known = {'pillow': 'PIL', 'PyYAML': 'yaml', 'ipython': 'IPython', 'scikit-learn': 'sklearn'}
    wanted = [r for key in settings if key.endswith('requirements') for r in settings[key].split()]
    assert not [r for r in wanted if '@' in r or '://' in r or r.startswith(('-', '.', '/'))]
    names = {known.get(n := re.split(r'[<>=!~\[]', r)[0], n) for r in wanted}
    found = {a.name.split('.')[0] for node in nodes() if isinstance(node, ast.Import) for a in node.names} | {node.module.split('.')[0] for node in nodes() if isinstance(node, ast.ImportFrom) and not node.level}
    assert {'torch', 'yaml', 'PIL'} <= found and found - set(sys.stdlib_module_names) - names - {'tinyrpn'} == set()


def nodes(): return (node for path in MODULES for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))))


# ---- the files of a release

TREE = {p.relative_to(package.parent).as_posix() for p in [*MODULES, package/'_modidx.py', *(package/'configs').glob('*.yaml'), *(package/'assets').iterdir()] if p.is_file()}
VERSION = settings.get('version', '')
IN_WHEEL = {f'tinyrpn-{VERSION}.dist-info/{f}' for f in ('METADATA', 'WHEEL', 'RECORD', 'entry_points.txt', 'top_level.txt', 'licenses/LICENSE', 'licenses/tinyrpn/assets/LICENSE-mnist.txt')}
IN_SDIST = {f'tinyrpn-{VERSION}/{f}' for f in ('PKG-INFO', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'MANIFEST.in', 'pyproject.toml', 'settings.ini', 'setup.cfg', 'setup.py')}
EGG = re.compile(rf'tinyrpn-{re.escape(VERSION)}/tinyrpn\.egg-info/[\w.-]+\.txt$|tinyrpn-{re.escape(VERSION)}/tinyrpn\.egg-info/(PKG-INFO|not-zip-safe)$')


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "A wheel and an sdist: those in $TINYRPN_DIST, or built here from a copy of the tree with some litter in it"
    if given := os.environ.get('TINYRPN_DIST'): return root/given
    if missing := [m for m in ('build', 'setuptools', 'wheel') if importlib.util.find_spec(m) is None]: pytest.skip(f'building needs {", ".join(missing)}')
    copy, out = tmp_path_factory.mktemp('tree')/'tinyrpn', tmp_path_factory.mktemp('dist')
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'build', 'dist', '*.egg-info', '__pycache__', '_docs', '_proc', 'runs', '.hypothesis', '.pytest_cache', '.benchmarks'))
    for litter in ('runs/x/model.safetensors', 'tinyrpn/.ipynb_checkpoints/core-checkpoint.py', 'tinyrpn/__pycache__/core.cpython-311.pyc', 'tinyrpn/assets/__pycache__/x.pyc', 'data/MNIST/raw/train-images-idx3-ubyte', '.env', 'nbs/.ipynb_checkpoints/a.ipynb', 'tests/test_x.py'):
        (copy/litter).parent.mkdir(parents=True, exist_ok=True); (copy/litter).write_text('litter')
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, copy], capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out


def one(folder, pattern):
    found, = folder.glob(pattern)
    return found


@in_clone
@pytest.mark.slow
def test_the_wheel_holds_what_it_should(dist):
    path = one(dist, '*.whl')
    assert path.name == f'tinyrpn-{VERSION}-py3-none-any.whl' and path.stat().st_size < 2**21
    with zipfile.ZipFile(path) as z:
        held = {i.filename for i in z.infolist()}
        assert held - TREE - IN_WHEEL == set() and TREE | IN_WHEEL <= held
        about = z.read(f'tinyrpn-{VERSION}.dist-info/METADATA').decode()
        for name in TREE: assert z.read(name) == (package.parent/name).read_bytes(), name
    required = [re.sub(r'\s', '', line.partition(': ')[2]) for line in about.splitlines() if line.startswith('Requires-Dist:') and 'extra ==' not in line]
    assert sorted(re.split('[<>=!~]', r)[0] for r in required) == sorted(re.split('[<>=!~]', r)[0] for r in settings['requirements'].split())
    assert '@' not in ''.join(required) and 'License-Expression: MIT' in about or 'License: MIT' in about


@in_clone
@pytest.mark.slow
def test_the_sdist_holds_what_it_should(dist):
    path = one(dist, '*.tar.gz')
    assert path.stat().st_size < 2**21
    with tarfile.open(path) as t:
        members = t.getmembers()
        assert all((m.isfile() or m.isdir()) and not m.name.startswith('/') and '..' not in m.name.split('/') for m in members)
        held = {m.name for m in members if m.isfile() and not EGG.match(m.name)}
    tree = {f'tinyrpn-{VERSION}/{f}' for f in TREE}
    assert held - tree - IN_SDIST == set() and tree | IN_SDIST <= held


# ---- the workflows

WORKFLOWS = {p.stem: yaml.safe_load(p.read_text(encoding='utf-8')) for p in sorted((root/'.github'/'workflows').glob('*.yml'))}
JOBS = [(name, job) for name, flow in WORKFLOWS.items() for job in flow['jobs']]
steps = lambda name, job: WORKFLOWS[name]['jobs'][job]['steps']
said = lambda name, job: '\n'.join(s.get('run', s.get('uses', '')) for s in steps(name, job))


@in_clone
def test_the_workflows_are_there(): assert set(WORKFLOWS) >= {'test', 'pages', 'publish'}


@in_clone
@pytest.mark.parametrize('name,job', JOBS, ids=lambda v: str(v))
def test_actions_are_pinned_and_tokens_stay_away(name, job):
    for step in steps(name, job):
        uses = step.get('uses')
        assert uses is None or re.fullmatch(r'[\w-]+/[\w/.-]+@[0-9a-f]{40}', uses), f'{uses}: a full commit is needed'
        if uses and uses.startswith('actions/checkout@'): assert step['with']['persist-credentials'] is False
        for text in (step.get('run', ''), *map(str, step.get('env', {}).values())): assert 'secrets.' not in text
        assert '${{ github.event' not in step.get('run', ''), 'what others write must not become part of a script'
    assert 'timeout-minutes' in WORKFLOWS[name]['jobs'][job]


@in_clone
@pytest.mark.parametrize('name', WORKFLOWS)
def test_each_commit_says_its_version(name):
    for line in (root/'.github'/'workflows'/f'{name}.yml').read_text(encoding='utf-8').splitlines():
        if 'uses:' in line: assert re.search(r'@[0-9a-f]{40} # v\d+(\.\d+)*$', line), line


@in_clone
@pytest.mark.parametrize('name', WORKFLOWS)
def test_permissions_are_least(name):
    assert WORKFLOWS[name]['permissions'] == {'contents': 'read'}
    more = {job: p for job, j in WORKFLOWS[name]['jobs'].items() if (p := j.get('permissions'))}
    assert more == {'pages': {'site': {'pages': 'write', 'id-token': 'write'}}, 'publish': {'publish': {'id-token': 'write'}}}.get(name, {})
    for job in more: assert not any('run' in s or 'checkout' in s.get('uses', '') for s in steps(name, job)), f'{job} may write and runs code of the repository'
    assert 'pull_request_target' not in str(WORKFLOWS[name])


@in_clone
def test_requirements_are_audited():
    text = said('test', 'audit')
    assert 'pip-audit --strict --requirement requirements.txt' in text and 'schedule' in (WORKFLOWS['test'].get('on') or WORKFLOWS['test'][True])
    command = next(line for line in text.splitlines() if line.startswith('sed '))
    if not shutil.which('sed'): pytest.skip('no sed here')
    made = subprocess.run(['sh', '-c', command.partition(' > ')[0]], capture_output=True, text=True, cwd=root, check=True).stdout.split()
    assert made == [r for key in settings if key in ('requirements', 'onnx_requirements') for r in settings[key].split()] and 'torch' in made


@in_clone
def test_a_release_is_built_checked_and_published_without_a_password():
    assert (WORKFLOWS['publish'].get('on') or WORKFLOWS['publish'][True]) == {'release': {'types': ['published']}} # YAML reads a bare `on` as true
    jobs, text = WORKFLOWS['publish']['jobs'], said('publish', 'build')
    assert text.index('python -m build') < text.index('twine check --strict dist/*') < text.index('actions/upload-artifact@')
    assert set(jobs['publish']['needs']) == {'build', 'contents'} and jobs['publish']['environment'] == 'pypi' and 'test_supply.py' in said('publish', 'contents')
    last = steps('publish', 'publish')[-1]
    assert last['uses'].startswith('pypa/gh-action-pypi-publish@') and last['with'] == {'attestations': True}
    assert shlex.split(next(s['run'] for s in steps('publish', 'build') if 'settings.ini' in s.get('run', '')))[0] == 'test'


@in_clone
def test_the_security_policy_says_what_it_should():
    text = (root/'SECURITY.md').read_text(encoding='utf-8')
    for word in ('Supported versions', 'Reporting', 'safetensors', 'plugin', '.pt2', 'checkpoint', 'Limits'): assert word in text, word
