"What all tests share: a --slow option, no network, a folder of their own, and limits of time that a slow machine meets"
import time
from collections import Counter

import pytest


def pytest_addoption(parser): parser.addoption('--slow', action='store_true', help='run slow tests too')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'): return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='slow; use --slow'))


def pace():
    "How many times longer a loop of Python takes here and now than where the limits were set, at least 1"
    start = time.process_time()
    sum(i*i for i in range(10**6))
    return max(1., (time.process_time() - start)/0.03)


@pytest.fixture
def tell(request):
    "Say a line at the end of the run, whichever process the test ran in"
    return lambda line: request.node.user_properties.append(('said', line))


def pytest_terminal_summary(terminalreporter):
    properties = [p for kind in terminalreporter.stats.values() for r in kind if getattr(r, 'when', None) == 'call' for p in (r.user_properties if r.passed else [])]
    counts = Counter(what for key, what in properties if key == 'counted')
    if said := [f'{n} {what}' for what, n in counts.items()] + [line for key, line in properties if key == 'said']:
        terminalreporter.section('what the tests have counted and measured')
        for line in said: terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "Each test in an empty folder, with an empty cache, and with every download refused"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TINYRPN_DATA', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setattr('urllib.request.urlopen', lambda *a, **k: (_ for _ in ()).throw(OSError('no network in tests')))
