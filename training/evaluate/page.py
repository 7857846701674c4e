"""The look of the comparison page: plain HTML and CSS, pictures by relative path, readable in the dark as well."""

from html import escape
from urllib.parse import quote

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fbfbfa; --ink: #1c1c1e; --faint: #6e6e73; --line: #e2e2e6; --card: #fff }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #161618; --ink: #ececf0; --faint: #98989f; --line: #303036; --card: #1f1f23 }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0; padding: 2.5rem clamp(1rem, 4vw, 4rem); background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }}
h1 {{ margin: 0 0 .25rem; font-size: 1.7rem; letter-spacing: -.01em }}
p {{ margin: 0 0 2rem; color: var(--faint) }}
section {{ margin: 0 0 1.5rem; padding: 1.25rem; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); overflow-x: auto }}
h2 {{ margin: 0 0 .75rem; font: 500 1.05rem/1.4 ui-monospace, monospace }}
h3 {{ margin: 0 0 .5rem; font-size: .8rem; font-weight: 600; color: var(--faint) }}
.row {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)); gap: 1.5rem }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 92px), 160px)); gap: .5rem }}
figure {{ margin: 0 }}
img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; background: var(--line) }}
figcaption {{ padding-top: .3rem; font-size: .7rem; white-space: pre-line; color: var(--faint);
  font-variant-numeric: tabular-nums }}
</style>
<h1>{title}</h1>
<p>{note}</p>
{sections}
</html>
"""


def figure(path: str, caption: str) -> str:
    """A picture with its caption, linked to the full file."""
    source = quote(path)
    return (
        f'<figure><a href="{source}"><img src="{source}" alt="{escape(caption)}" loading="lazy"></a>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
