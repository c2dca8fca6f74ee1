"What all tests share: a --slow option, no network, a folder of their own, and limits of time that a slow machine meets"
import gc
import time
from collections import Counter

import pytest


def pytest_addoption(parser): parser.addoption('--slow', action='store_true', help='run slow tests too')


LONG = 'test_site', 'test_twenty_kills', 'at_length', 'test_mutated_headers', 'test_check_estimator', 'JupyterLab', 'test_fuzz', 'test_lesson', 'test_hostile', 'test_parallel', 'test_resume', 'test_composition', 'test_export', 'test_tuning', 'test_supply', 'test_cli', 'test_estimator', 'test_numbers'
APART = 'test_composition', 'test_estimator', 'test_export', 'test_fuzz', 'test_numbers', 'test_parallel', 'test_resume' # files whose long tests have nothing in common


def together(nodeid):
    "What runs in one process: a test of a file of long ones, those in a JupyterLab, else a file"
    file = nodeid.split('::')[0].rpartition('/')[2].removesuffix('.py')
    return 'JupyterLab' if file == 'test_live' or 'by_hand' in nodeid or 'by_keyboard' in nodeid else nodeid if file in APART else file


def pytest_collection_modifyitems(config, items):
    "The longest first, so that no process waits long for another at the end"
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'): item.add_marker(pytest.mark.skip(reason='slow; use --slow'))
    items.sort(key=lambda item: next((i for i, part in enumerate(LONG) if part in together(item.nodeid)), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "With `-n`, processes take what belongs together, one after the other"
    from xdist.scheduler import LoadScopeScheduling
    if config.getvalue('dist') != 'load': return None
    config.option.loadscopereorder = False
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = together
    return scheduler


def pace():
    "How many times longer a loop of Python takes here and now than where the limits were set, at least 1"
    start = time.process_time()
    sum(i*i for i in range(10**6))
    return max(1., (time.process_time() - start)/0.03)


def within(seconds, limit):
    "Less than so many seconds, at the pace of this machine, which is looked at where it matters"
    return seconds < limit or seconds < limit*pace()


def settle():
    "What there is now is no longer searched for garbage: all that has been imported takes Python a third of a second"
    gc.unfreeze(); gc.collect(); gc.freeze()


def pytest_collection_finish(): settle()


@pytest.fixture(scope='module')
def settled(): settle() # again, since more has been imported meanwhile


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "One JupyterLab for all tests that open a notebook in it"
    from lab import Lab
    lab = Lab(tmp_path_factory.mktemp('lab'))
    yield lab
    lab.close()


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
