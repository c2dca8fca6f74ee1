"The documentation site: made once, checked, and opened page by page in a browser"
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import tinyrpn.site
from tinyrpn.site import check_site

root = Path(__file__).parent.parent.parent
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
ARGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
VARIANTS = [(width, scheme) for scheme in ('light', 'dark') for width in (1280, 390)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (root/'settings.ini').is_file(), reason='no clone'), pytest.mark.skipif(not shutil.which('npm'), reason='no npm here, which KaTeX comes from')]
in_browser = pytest.mark.skipif(not BROWSER, reason='no Chromium or Chrome here')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "(folder of the whole site, what the command answered and said, seconds), made once from a copy of the chapters, for all processes of the test run"
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'site'
    with FileLock(f'{place}.lock'):
        if not (place/'done.json').is_file():
            place.mkdir()
            shutil.copy(root/'settings.ini', place)
            shutil.copytree(root/'nbs', place/'nbs', ignore=shutil.ignore_patterns('tests', '.*'))
            start = time.perf_counter()
            done = subprocess.run([sys.executable, '-c', 'import sys; from tinyrpn.site import main; sys.exit(main())'], cwd=place, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'})
            (place/'done.json').write_text(json.dumps([done.returncode, (done.stdout + done.stderr)[-3000:], time.perf_counter() - start]))
    status, said, seconds = json.loads((place/'done.json').read_text())
    assert (place/'_docs'/'index.html').is_file(), said
    return place/'_docs', (status, said), seconds


@pytest.fixture(scope='module')
def address(site):
    "Where the site is served"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown(); server.server_close()


@pytest.fixture(scope='module')
def context(address):
    "A browser in which every request to another host is refused and noted"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=[*ARGS, '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'])
        context = browser.new_context()
        context.remote = []
        context.on('request', lambda r: r.url.startswith((address, 'data:', 'blob:')) or context.remote.append(r.url))
        yield context
        browser.close()


@pytest.fixture
def tab(context):
    "A page that keeps its errors, in `tab.errors`"
    tab = context.new_page()
    tab.errors = []
    tab.on('console', lambda m: m.type == 'error' and tab.errors.append(f'console: {m.text}'))
    tab.on('pageerror', lambda e: tab.errors.append(f'script: {e}'))
    tab.on('response', lambda r: r.status >= 400 and tab.errors.append(f'{r.status}: {r.url}'))
    yield tab
    tab.close()
    assert context.remote == [] and tab.errors == []


def chapters(): return yaml.safe_load((root/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']


def page_of(chapter): return re.sub(r'^\d+[a-z]?_', '', chapter).replace('.ipynb', '.html')


# ---- the files

def test_it_is_made_without_a_complaint(site, tell):
    folder, (status, said), seconds = site
    assert status == 0, said
    assert check_site(folder) == [] and seconds < 180
    pages = [p.relative_to(folder).as_posix() for p in folder.rglob('*.html')]
    assert {page_of(c) for c in chapters()} | {'reference.html', 'api/model.html', 'draw.html'} <= set(pages)
    for page, link in (('core.html', 'draw.html'), ('api/model.html', '../draw.html')): assert f'href="{link}"' in (folder/page).read_text(encoding='utf-8')
    assert {page_of(p.name) for p in (root/'nbs').glob('*.ipynb')} == {page_of(c) for c in chapters()}, 'sidebar.yml lists every chapter'
    tell(f'site: {len(pages)} pages, {sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())/1e6:.1f} MB, made and checked in {seconds:.0f} s')


read_once = functools.cache(tinyrpn.site._Page)


@pytest.mark.parametrize('planted, found', [
    ('<a href="no_such.html">a</a>', 'model.html: no_such.html leads nowhere'), ('<a href="core.html#no-such">a</a>', 'model.html: core.html#no-such leads to no place in core.html'),
    ('<script src="https://cdn.example.org/a.js"></script>', 'model.html: loads https://cdn.example.org/a.js'), ('<style>@font-face {src: url(//fonts.example.org/a.woff2)}</style>', 'model.html: loads //fonts.example.org/a.woff2'),
    ('<img src="images/no_such.png">', 'model.html: images/no_such.png leads nowhere'), ('<p>so $\\kappa(x)$ is</p>', 'model.html: a formula is not typeset: so $\\kappa(x)$ is')],
    ids=['broken link', 'missing anchor', 'remote script', 'remote font', 'missing picture', 'raw formula'])
def test_what_is_planted_is_found(site, tmp_path, monkeypatch, planted, found):
    monkeypatch.setattr('tinyrpn.site._Page', read_once) # what is the same in all six is read once
    path = Path(shutil.copytree(site[0], tmp_path/'site'))/'model.html'
    path.write_text(path.read_text(encoding='utf-8').replace('</main>', f'{planted}</main>'), encoding='utf-8')
    assert check_site(path.parent) == [found]


def test_titles_descriptions_and_ways_out(site):
    "Title and description are the chapter's, and each chapter leads to Colab and to its source"
    from html import unescape
    for chapter in chapters():
        first = ''.join(json.loads((root/'nbs'/chapter).read_text(encoding='utf-8'))['cells'][0]['source'])
        text = (site[0]/page_of(chapter)).read_text(encoding='utf-8')
        title, description = re.match(r'# (.+)\n\n> (.+)', first).groups()
        shown = re.search(r'<title>(.*?)</title>', text)[1]
        assert unescape(shown).split(' – ')[0].replace('’', "'") == re.sub(r'[`*]', '', title), chapter
        assert unescape(re.search(r'<meta name="description" content="(.*?)"', text)[1]) == description, chapter
        for host in ('colab.research.google.com/github', 'github.com'): assert f'href="https://{host}/tinyrpn/tinyrpn/blob/main/nbs/{chapter}"' in text, chapter


def test_each_name_has_signature_and_source(site):
    text = (site[0]/'api'/'model.html').read_text(encoding='utf-8')
    entry = text[text.index('id="RPNHead"'):text.index('id="RPNHead.forward"')]
    assert 'number of parameter vectors, whose results are averaged' in entry
    line = int(re.search(r'href="https://github.com/tinyrpn/tinyrpn/blob/main/tinyrpn/model\.py#L(\d+)"', entry)[1])
    assert (root/'tinyrpn'/'model.py').read_text(encoding='utf-8').splitlines()[line - 1].startswith('class RPNHead')
    chapter = (site[0]/'model.html').read_text(encoding='utf-8')
    assert re.search(r'id="rpnhead"', chapter) and '#LNone' not in chapter


# ---- in a browser

LOOK = r'''(width) => {
  const wrong = [], seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0 && r.right > 0 && r.left < innerWidth && getComputedStyle(e).visibility !== 'hidden' };
  const main = document.querySelector('main'), root = document.documentElement;
  if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
  // what is wider than its place must scroll in a box of its own, and not be cut off
  const boxed = e => { for (let a = e.parentElement; a && a !== main; a = a.parentElement) if (/auto|scroll/.test(getComputedStyle(a).overflowX) || a.matches('svg, .katex-mathml')) return true; return false };
  for (const e of main.querySelectorAll('*')) {
    const r = e.getBoundingClientRect();
    if (r.width && (r.right > innerWidth + 1 || r.left < -1) && !boxed(e)) { wrong.push(`cut off: <${e.tagName.toLowerCase()} class="${e.className}"> ${(e.textContent || '').trim().slice(0, 40)}`); break }
  }
  // regions side by side or one below the other, never one upon the other
  const regions = ['#quarto-header', '#quarto-sidebar', 'main', '#quarto-margin-sidebar', 'main .page-navigation', 'footer'].map(s => [s, document.querySelector(s)]).filter(([s, e]) => e && seen(e));
  for (const [s, a] of regions) for (const [t, b] of regions) {
    if (s >= t || a.contains(b) || b.contains(a)) continue;
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    const x = Math.min(p.right, q.right) - Math.max(p.left, q.left), y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (x > 1 && y > 1) wrong.push(`${s} overlaps ${t} by ${x} x ${y}`);
  }
  const blocks = [...main.children].filter(seen);
  blocks.slice(1).forEach((b, i) => { if (blocks[i].getBoundingClientRect().bottom > b.getBoundingClientRect().top + 2 && getComputedStyle(blocks[i]).float === 'none') wrong.push(`${blocks[i].tagName} overlaps ${b.tagName}`) });
  // formulas
  const typed = [...document.querySelectorAll('.math')], bad = typed.filter(m => !m.querySelector('.katex'));
  if (bad.length) wrong.push(`${bad.length} of ${typed.length} formulas are not typeset: ${bad[0].textContent.slice(0, 60)}`);
  for (const e of document.querySelectorAll('.katex-error')) wrong.push(`KaTeX: ${e.title}`);
  const prose = main.cloneNode(true);
  prose.querySelectorAll('pre, code, script, style, svg, .katex').forEach(e => e.remove());
  const dollars = prose.textContent.match(/\$\$|\$[^\s$][^$\n]*\$|\\[(\[]/);
  if (dollars) wrong.push(`dollars in the prose: ${prose.textContent.slice(dollars.index, dollars.index + 60)}`);
  for (const i of document.images) if (i.complete && !i.naturalWidth) wrong.push(`no picture: ${i.src.slice(0, 80)}`); else if (!i.alt) wrong.push(`no words for ${i.src.slice(0, 80)}`);
  // colours: text against what lies behind it
  const numbers = c => (c.match(/[\d.]+/g) || []).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0.5) return c } return [255, 255, 255] };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v/12.92 : ((v + 0.055)/1.055)**2.4); return 0.2126*r + 0.7152*g + 0.0722*b };
  const contrast = e => { const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x); return (a + 0.05)/(b + 0.05) };
  for (const s of ['main p', 'main a', 'main code', 'main pre span', 'main td', '#quarto-sidebar a', '#TOC a', '#quarto-header .nav-link', '.cell-output pre'])
    for (const e of [...document.querySelectorAll(s)].filter(e => e.textContent.trim() && seen(e) && !e.closest('svg')).slice(0, 60)) if (contrast(e) < MINIMUM) { wrong.push(`${s}: contrast ${contrast(e).toFixed(1)} of ${e.textContent.trim().slice(0, 30)} (${e.className})`); break }
  return {wrong, dark: light(behind(document.body)) < 0.2, formulas: typed.length, code: document.querySelectorAll('pre.cell-code, .cell-code').length, copies: document.querySelectorAll('.code-copy-button').length};
}'''.replace('MINIMUM', '4.5')


@in_browser
def test_every_page_is_readable(site, address, tab, tell):
    "Narrow and wide, light and dark: nothing cut off or upon something else, formulas typeset, letters that stand out"
    wrong, formulas, start = [], 0, time.perf_counter()
    pages = sorted(p.relative_to(site[0]).as_posix() for p in site[0].rglob('*.html'))
    for name in pages:
        for width, scheme in VARIANTS:
            if width == 1280:
                tab.emulate_media(color_scheme=scheme); tab.set_viewport_size({'width': width, 'height': 900})
                tab.goto(address + name, wait_until='load')
                tab.add_style_tag(content='* {transition: none !important}')
            else: tab.set_viewport_size({'width': width, 'height': 844})
            found = tab.evaluate(LOOK, width)
            wrong += [f'{name}, {width}, {scheme}: {w}' for w in found['wrong']]
            if found['dark'] != (scheme == 'dark'): wrong.append(f'{name}, {width}: not {scheme}')
            if found['code'] > found['copies']: wrong.append(f"{name}: {found['code']} blocks of code, {found['copies']} copy buttons")
        formulas += found['formulas']
    seconds = time.perf_counter() - start
    tell(f'site: {len(pages)} pages in {len(VARIANTS)} variants looked at in {seconds:.0f} s, {formulas} formulas')
    assert not wrong, f'{len(wrong)} wrong:\n' + '\n'.join(wrong[:40])
    assert formulas > 300


@in_browser
def test_search_finds_a_class(address, tab):
    tab.set_viewport_size({'width': 1280, 'height': 900}); tab.goto(address)
    tab.fill('.smalldocs-search input', 'TaylorExpansion')
    tab.wait_for_selector('.search-result')
    places = [a.get_attribute('href') for a in tab.query_selector_all('.search-result')]
    assert any('polynomial.html#taylorexpansion' in p for p in places[:3]) and any('api/polynomial.html' in p for p in places)
    tab.click('.search-result >> nth=0'); tab.wait_for_load_state()
    assert 'TaylorExpansion' in tab.inner_text('main')


@in_browser
def test_previous_and_next_lead_through_the_chapters(address, tab):
    tab.set_viewport_size({'width': 1280, 'height': 900}); tab.goto(address + 'index.html')
    order = [page_of(c) for c in chapters()]
    for page in order[1:]:
        with tab.expect_navigation(wait_until='domcontentloaded'): tab.click('.nav-page-next a')
        assert tab.url == address + page
    with tab.expect_navigation(): tab.click('.nav-page-previous a')
    assert tab.url == address + order[-2]


@in_browser
def test_code_is_copied(context, address, tab):
    context.grant_permissions(['clipboard-read', 'clipboard-write'])
    tab.set_viewport_size({'width': 1280, 'height': 900}); tab.goto(address + 'core.html')
    button = tab.query_selector('main .code-copy-button')
    code = button.evaluate('b => b.parentElement.querySelector("pre").innerText')
    button.scroll_into_view_if_needed(); button.hover(); button.click(); tab.wait_for_timeout(100)
    assert tab.evaluate('navigator.clipboard.readText()').strip() == code.strip() != ''


@in_browser
def test_the_choice_of_dark_is_kept(address, tab):
    tab.emulate_media(color_scheme='light'); tab.set_viewport_size({'width': 1280, 'height': 900}); tab.goto(address + 'index.html')
    def wait(dark): tab.wait_for_function("dark => document.documentElement.classList.contains('quarto-dark') === dark && (getComputedStyle(document.body).color === 'rgb(255, 255, 255)') === dark", arg=dark, timeout=10_000)
    wait(False)
    tab.click('.quarto-color-scheme-toggle'); wait(True)
    tab.goto(address + 'core.html'); wait(True)
    tab.click('.quarto-color-scheme-toggle'); wait(False)
    tab.evaluate('localStorage.clear()')


@in_browser
def test_a_visitor_draws_on_the_front_page(address, tab):
    "The lesson stands in a frame near the top, answers to a digit drawn with the mouse, is as high as it needs to be, and dark where the page is"
    tab.emulate_media(color_scheme='light'); tab.set_viewport_size({'width': 1280, 'height': 900}); tab.goto(address + 'index.html')
    lesson = tab.frame_locator('main iframe.lesson')
    tab.wait_for_function("document.querySelector('iframe.lesson').contentWindow.lesson")
    assert tab.locator('iframe.lesson').bounding_box()['y'] < 400 and tab.locator('iframe.lesson').get_attribute('title')
    lesson.locator('#clear').click()
    box = lesson.locator('#pad canvas').bounding_box()
    tab.mouse.move(box['x'] + box['width']/2, box['y'] + 0.15*box['height']); tab.mouse.down()
    tab.mouse.move(box['x'] + box['width']/2, box['y'] + 0.85*box['height'], steps=12); tab.mouse.up()
    tab.wait_for_function("document.querySelector('iframe.lesson').contentDocument.querySelector('#answer').textContent.startsWith('1 with')")
    for width in (1280, 390):
        tab.set_viewport_size({'width': width, 'height': 900}); tab.wait_for_timeout(300)
        assert tab.evaluate("(r => [r.scrollHeight - r.clientHeight, r.scrollWidth - r.clientWidth])(document.querySelector('iframe.lesson').contentDocument.documentElement)") == [0, 0]
    tab.set_viewport_size({'width': 1280, 'height': 900})
    paper = "getComputedStyle(document.querySelector('iframe.lesson').contentDocument.body).backgroundColor"
    assert tab.evaluate(paper) == 'rgb(255, 255, 255)'
    tab.click('.quarto-color-scheme-toggle')
    tab.wait_for_function(f"{paper} === 'rgb(23, 24, 28)'", timeout=10_000)
    tab.evaluate('localStorage.clear()')
    with tab.expect_navigation(): lesson.locator('#whole').click()
    assert tab.url == address + 'draw.html' and tab.locator('#words').is_visible()


@in_browser
def test_a_phone_reaches_chapters_and_search(address, tab):
    tab.set_viewport_size({'width': 390, 'height': 844}); tab.goto(address + 'core.html')
    tab.click('.quarto-btn-toggle'); tab.wait_for_timeout(400)
    with tab.expect_navigation(): tab.click('#quarto-sidebar >> text=The contraction')
    assert tab.url == address + 'contraction.html'
    tab.click('.navbar-toggler'); tab.wait_for_timeout(500)
    tab.fill('.smalldocs-search input', 'kronecker'); tab.wait_for_selector('.search-result')
    assert tab.evaluate('document.documentElement.scrollWidth') == 390


@in_browser
def test_weight_and_time_of_the_first_page(address, context, tab, tell):
    "What a first visit transfers and takes, and pictures of it in $TINYRPN_SCREENSHOTS (else runs/screenshots)"
    folder = Path(os.environ.get('TINYRPN_SCREENSHOTS', root/'runs'/'screenshots')); folder.mkdir(parents=True, exist_ok=True)
    session = context.new_cdp_session(tab); session.send('Network.enable'); session.send('Network.setCacheDisabled', {'cacheDisabled': True})
    sizes = []
    session.on('Network.loadingFinished', lambda event: sizes.append(event['encodedDataLength']))
    tab.emulate_media(color_scheme='light'); tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.goto(address + 'index.html', wait_until='networkidle')
    loaded, first = tab.evaluate("(() => {const t = performance.getEntriesByType('navigation')[0], p = performance.getEntriesByName('first-contentful-paint')[0]; return [t.loadEventEnd, p ? p.startTime : 0]})()")
    weight, files = sum(sizes), len(sizes)
    tab.screenshot(path=folder/'index-1280-light.png')
    for page, width, scheme in (('index', 390, 'dark'), ('digits', 1280, 'light'), ('digits', 390, 'dark'), ('polynomial', 1280, 'light'), ('polynomial', 390, 'dark'), ('api/model', 1280, 'dark')):
        tab.emulate_media(color_scheme=scheme); tab.set_viewport_size({'width': width, 'height': 900 if width == 1280 else 844})
        tab.goto(f'{address}{page}.html', wait_until='load'); tab.wait_for_timeout(100)
        tab.screenshot(path=folder/f'{page.replace("/", "-")}-{width}-{scheme}.png')
    tab.emulate_media(color_scheme='light'); tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.goto(f'{address}what_it_learns.html#eigenvectors-are-images', wait_until='load')
    figure = tab.locator('[data-anchor-id=eigenvectors-are-images] ~ * img, #eigenvectors-are-images img').first
    assert figure.evaluate('i => i.naturalWidth') > 300
    figure.screenshot(path=folder/'eigen-digits.png')
    tell(f'site: the first page transfers {weight/1e6:.2f} MB in {files} files, shows something after {first:.0f} ms and is loaded after {loaded:.0f} ms')
    assert weight < 5e6
