"A JupyterLab of its own, in a browser without a window: what a reader sees who runs a notebook"
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER = next((p for name in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(name))), None)
in_lab = pytest.mark.skipif(BROWSER is None, reason='needs a browser: chromium')
ROOT = Path(__file__).parents[2]
SHEET = '[...window.jupyterapp.shell.widgets("main")].find(w => w.sessionContext && w.content?.widgets)' # the open notebook, in JavaScript
SHOTS = Path(os.environ.get('TINYRPN_SCREENSHOTS', ROOT/'runs'/'screenshots')) # not under version control


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Lab:
    "A running JupyterLab with a folder of its own"
    def __init__(self, folder):
        self.folder, self.port, self.token = Path(folder), free_port(), secrets.token_hex(8)
        home = self.folder/'home'; home.mkdir(parents=True)
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
        env.update({f'JUPYTER_{k}_DIR': str(home/k) for k in ('CONFIG', 'DATA', 'RUNTIME')}, IPYTHONDIR=str(home/'ipython'), JUPYTERLAB_SETTINGS_DIR=str(home/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(home/'workspaces'), OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
        (settings := home/'settings'/'@jupyterlab'/'apputils-extension').mkdir(parents=True)
        (settings/'notification.jupyterlab-settings').write_text('{"checkForUpdates": false, "fetchNews": "false"}')
        self.settings = settings
        self.process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser', f'--port={self.port}', f'--IdentityProvider.token={self.token}', f'--ServerApp.root_dir={self.folder}', '--ServerApp.log_level=ERROR'],
                                        cwd=self.folder, env=env, stdout=subprocess.DEVNULL, stderr=(self.folder/'lab.log').open('w'))
        self._wait()

    def _wait(self, seconds=90):
        end = time.time() + seconds
        while time.time() < end:
            if self.process.poll() is not None: break
            try: return self._ask('')
            except OSError: time.sleep(0.1)
        raise RuntimeError('JupyterLab did not start: ' + (self.folder/'lab.log').read_text()[-1000:])

    def _ask(self, path, method='GET'):
        "Its answer, without the proxies of this machine"
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/api{path}?token={self.token}', method=method)
        with urllib.request.OpenerDirector.open(urllib.request.build_opener(urllib.request.ProxyHandler({})), request, timeout=20) as answer: return json.loads(answer.read() or 'null')

    def rest(self):
        "End what notebooks have left running"
        for session in self._ask('/sessions'): self._ask(f'/sessions/{session["id"]}', 'DELETE')

    def theme(self, dark): (self.settings/'themes.jupyterlab-settings').write_text(json.dumps({'theme': f'JupyterLab {"Dark" if dark else "Light"}'}))

    def close(self):
        self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill()


class Sheet:
    "A notebook that is open in the browser; `page` is Playwright's"
    def __init__(self, page): self.page, self.errors = page, []

    def run_all(self): self.page.evaluate('() => { window.jupyterapp.commands.execute("notebook:run-all-cells"); }')

    def output(self, i): return self.page.locator('.jp-Notebook .jp-CodeCell').nth(i).locator('.jp-OutputArea-output, .jp-OutputArea-child').first

    def cell(self, i): return self.page.locator('.jp-Notebook .jp-CodeCell').nth(i)

    def idle(self, i, seconds=90):
        "Wait until the code cell has run"
        self.page.wait_for_function('i => /\\[\\d+\\]/.test(document.querySelectorAll(".jp-Notebook .jp-CodeCell")[i]?.querySelector(".jp-InputPrompt")?.textContent || "")', arg=i, timeout=1000*seconds)

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS/f'{name}.png')


@contextmanager
def opened(lab, *cells, name='try', dark=False, width=1280, height=1400, watch=None):
    "A notebook with these code cells, run from top to bottom in a browser"
    from playwright.sync_api import sync_playwright
    notebook = {'cells': [{'cell_type': 'code', 'id': f'c{i}', 'metadata': {}, 'execution_count': None, 'outputs': [], 'source': c} for i, c in enumerate(cells)], 'metadata': {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}, 'nbformat': 4, 'nbformat_minor': 5}
    (lab.folder/f'{name}.ipynb').write_text(json.dumps(notebook))
    lab.theme(dark)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        page = browser.new_page(viewport={'width': width, 'height': height})
        sheet = Sheet(page)
        page.on('pageerror', lambda e: sheet.errors.append(str(e)))
        try:
            page.goto(f'http://127.0.0.1:{lab.port}/lab/tree/{name}.ipynb?token={lab.token}&reset')
            page.wait_for_function('() => window.jupyterapp && document.querySelector(".jp-Notebook .jp-CodeCell")', timeout=90_000)
            page.wait_for_function(f'() => {{ const n = {SHEET}; return n?.content.isVisible && n.sessionContext.isReady && n.sessionContext.session?.kernel?.status == "idle"; }}', timeout=90_000)
            page.evaluate(f'() => {{ const app = window.jupyterapp; app.shell.activateById({SHEET}.id); app.shell.leftCollapsed || app.commands.execute("application:toggle-left-area"); }}')
            if watch: page.evaluate(watch) # JavaScript, before anything runs
            sheet.run_all()
            yield sheet
        except BaseException: sheet.shot(f'failed_{name}'); raise
        finally: browser.close(); lab.rest()
