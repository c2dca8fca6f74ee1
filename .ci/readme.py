"""README.md from nbs/index.ipynb.

    python .ci/readme.py           write README.md
    python .ci/readme.py --check   fail if README.md is not what the notebook says
"""
import json, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def outputs(cell):
    "The text that a code cell printed or returned"
    for out in cell['outputs']:
        text = out.get('text') or out.get('data', {}).get('text/plain')
        if text: yield '```\n' + ''.join(text).rstrip('\n') + '\n```'


def convert(notebook):
    "Markdown of the notebook: prose, code and printed output, without hidden cells"
    parts = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if source.startswith('#| echo: false'): parts += outputs(cell)
        if source.startswith('#|'): continue
        if cell['cell_type'] == 'markdown': parts.append(source)
        else: parts += [f'```python\n{source}\n```', *outputs(cell)]
    text = '\n\n'.join(parts) + '\n'
    text = re.sub(r'\]\(((?:images/)?[\w./-]+\.(?:ipynb|png))\)', r'](nbs/\1)', text)  # links are relative to nbs
    return '<!-- made from nbs/index.ipynb by `python .ci/readme.py`; do not edit -->\n\n' + text.replace('](../', '](')


if __name__ == '__main__':
    text, path = convert(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))), root/'README.md'
    if '--check' not in sys.argv: path.write_text(text, encoding='utf-8', newline='\n')
    elif path.read_text(encoding='utf-8') != text: sys.exit('README.md is stale: run python .ci/readme.py')
