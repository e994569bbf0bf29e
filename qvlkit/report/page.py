"""The one writer of reports: a self-contained HTML page of text, tables, plots, tokens and pictures with boxes.

Everything is inlined, so that a page can be mailed or kept beside a checkpoint, and all text is escaped. Colours follow
the reader's light or dark setting.
"""
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvlkit.report.picture import Picture, data_uri, picture_html

SERIES = ('#3b7dd8', '#e08a1e', '#8a8f98', '#2f9e62', '#b5508f', '#6a5acd')  # of plots, on white and black
INK = '#808790'  # of axes: a middle grey for both settings
LEGEND = 8  # series that a plot names, at most
TOKEN_CLASSES = ('target', 'control', 'visual', 'context', 'chosen', 'rejected')
EDGE = '#b9bec6'  # of intervals, which lie half on a bar

STYLE = '''
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60666e; --ground: #fbfbfa; --card: #fff; --line: #e3e4e6;
  --good: #1a8a4a; --bad: #cf3238; --target: #b9e8c8; --control: #d9dce0; --visual: #f9ddb3;
  --rejected: #f7c9c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ea; --soft: #9aa0a8; --ground: #16181b; --card: #1e2125;
  --line: #32363c; --good: #4cc07c; --bad: #f0696d; --target: #1d5c37; --control: #3a4048;
  --visual: #6b4a13; --rejected: #6e2b2a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1.02rem; margin: 2.2rem 0 .5rem; padding-top: 1.1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
p.soft { color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; margin: .6rem 0; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { padding: .42rem 1.4rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
td.number, th.number { text-align: right; white-space: nowrap; }
td strong { font-weight: 650; }
figure { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem;
  align-items: start; }
.plot { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; margin: .6rem 0; }
.plot.full { grid-column: 1 / -1; }
.plot img { display: block; width: 100%; height: auto; }
.plot figcaption { font-weight: 600; font-size: .95rem; padding: 0 .3rem .4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1rem; margin: .8rem 0; }
.picture { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.frame { display: flex; align-items: center; justify-content: center; height: 12rem; padding: .6rem;
  background: color-mix(in srgb, var(--line) 35%, transparent); }
.frame svg { width: 100%; height: 100%; display: block; }
.picture figcaption { padding: .6rem .8rem .7rem; font-size: .86rem; line-height: 1.45; color: var(--soft);
  white-space: pre-line; overflow-wrap: anywhere; border-top: 3px solid var(--line); }
.picture.good figcaption { border-top-color: var(--good); }
.picture.bad figcaption { border-top-color: var(--bad); }
.pictures.large { grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); }
.large .frame { height: auto; } .large .frame svg { height: auto; max-height: 24rem; }
.pictures.strip { display: flex; overflow-x: auto; gap: .6rem; padding-bottom: .5rem; }
.strip .picture { flex: 0 0 13rem; } .strip .frame { height: 10rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .86rem; color: var(--soft); margin: .5rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -.08rem; border: 1px solid var(--line); }
.strips { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem;
  margin: .6rem 0; }
.strips div { display: flex; height: 15px; margin: 3px 0; border-radius: 3px; overflow: hidden;
  background: repeating-linear-gradient(135deg, var(--line) 0 2px, transparent 2px 6px); }
.strips i { display: block; height: 100%; box-shadow: inset -1px 0 var(--card); }
.strips i:hover { filter: brightness(1.25); }
.tokens { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem;
  margin: .6rem 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26rem; overflow-y: auto;
  font: .84rem/1.75 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tokens i { font-style: normal; border-radius: 3px; padding: .08rem 0; }
.tokens i:hover { outline: 1px solid var(--ink); }
i.target { background: var(--target); } i.control { background: var(--control); color: var(--soft); }
i.visual { background: var(--visual); } i.chosen { background: var(--target); }
i.rejected { background: var(--rejected); } .tokens em { color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 600; }
.mark { float: right; font-weight: 700; margin-left: .5rem; }
.good .mark { color: var(--good); } .bad .mark { color: var(--bad); }
'''


class Page:
    """A report under construction. Methods add to its end and return the page.

    Args:
        title: First line of the page and title of its window.
    """

    def __init__(self, title: str):
        self.title = title
        self._blocks: list[str] = []

    def heading(self, text: str, *, level: int = 2) -> 'Page':
        """A section's title; level 3 for a part of a section."""
        return self._add(f'<h{level}>{html.escape(text)}</h{level}>')

    def text(self, text: str, *, soft: bool = False) -> 'Page':
        """A paragraph; `soft` for a side remark."""
        return self._add(f'<p{" class=soft" if soft else ""}>{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], *, bold: int | None = None) -> 'Page':
        """A table; columns of numbers and percentages are set flush right, column `bold` in bold.

        Raises:
            ValueError: A row has another number of cells than the header.
        """
        rows = [[_cell(cell) for cell in row] for row in rows]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f'a table with the columns {list(header)} got a row of {len(row)} cells: {row}')
        numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
        classes = [' class=number' if is_number else '' for is_number in numeric]
        lines = ['<div class=wide><table><thead><tr>',
                 *(f'<th{kind}>{html.escape(str(name))}</th>' for kind, name in zip(classes, header)),
                 '</tr></thead><tbody>']
        for row in rows:
            cells = [f'<strong>{html.escape(cell)}</strong>' if i == bold else html.escape(cell)
                     for i, cell in enumerate(row)]
            lines.append('<tr>' + ''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, cells)) + '</tr>')
        return self._add('\n'.join([*lines, '</tbody></table></div>']))

    def plot(self, title: str, series: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str = '',
             ylabel: str = '', *, log: bool = False) -> 'Page':
        """Lines: name -> (xs, ys). A name that starts with '_' is drawn faintly and not named."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
        figure = Figure(figsize=(6.4, 3.1), layout='constrained')
        axes = figure.add_subplot()
        shown = 0
        for name, (xs, ys) in series.items():
            faint = name.startswith('_')
            axes.plot(xs, ys, color=SERIES[shown % len(SERIES)], linewidth=0.8 if faint else 2.0,
                      alpha=0.35 if faint else 1.0, label=name)
            shown += not faint
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter('{x:g}')
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter('{x:g}')
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _finish(axes, legend=shown > 1)
        return self._plot(title, figure)

    def bars(self, title: str, groups: dict[str, dict[str, Any]], xlabel: str = '') -> 'Page':
        """Level bars: group -> series -> value in [0, 1], or (value, low, high) to draw an interval."""
        from matplotlib.figure import Figure
        names = list(dict.fromkeys(name for values in groups.values() for name in values))
        thick = 0.84 / len(names)
        figure = Figure(figsize=(10.4, 0.8 + 0.125 * (len(names) + 0.8) * len(groups)), layout='constrained')
        axes = figure.add_subplot()
        colours = dict(zip(names[::-1], SERIES))
        for row, values in enumerate(groups.values()):
            for i, (name, value) in enumerate(values.items()):
                value, low, high = value if isinstance(value, tuple) else (value, None, None)
                height = row + (i - (len(names) - 1) / 2) * thick
                axes.barh(height, value, 0.86 * thick, color=colours[name], label=name if row == 0 else None)
                if low is not None:
                    axes.plot([low, high], [height, height], color=EDGE, linewidth=1.8)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f'{100 * value:.0f} %')
        axes.set_xlabel(xlabel)
        _finish(axes, legend=True, grid='x')
        return self._plot(title, figure, 'plot full')

    def separate_plots(self, title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
                       xlabel: str = '') -> 'Page':
        """Lines as in `plot`, each on axes of its own, one below the other over the same xs."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(10.4, 0.5 + 0.95 * len(series)), layout='constrained')
        all_axes = figure.subplots(len(series), sharex=True, squeeze=False)[:, 0]
        for number, (axes, (name, (xs, ys))) in enumerate(zip(all_axes, series.items())):
            axes.plot(xs, ys, color=SERIES[number % len(SERIES)], linewidth=1.4)
            axes.set_ylabel(name, rotation=0, labelpad=10)
            axes.margins(x=0.01)
            _finish(axes, legend=False)
        all_axes[-1].set_xlabel(xlabel)
        return self._plot(title, figure, 'plot full')

    def histogram(self, title: str, values: Mapping[str, Sequence[float]], xlabel: str = '', ylabel: str = '', *,
                  bins: int = 40, log: bool = False) -> 'Page':
        """How often values occur: series -> values, stacked in the colours of `series_colour`; `log` for widths of bins
        that grow with the values, which are above 0 then."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(6.4, 3.1), layout='constrained')
        axes = figure.add_subplot()
        axes.hist([list(series) for series in values.values()], _edges(values.values(), bins, log), stacked=True,
                  color=[series_colour(number) for number in range(len(values))], label=list(values))
        if log:
            axes.set_xscale('log')
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _finish(axes, legend=1 < len(values) <= LEGEND)
        return self._plot(title, figure)

    def legend(self, colours: Mapping[str, str]) -> 'Page':
        """Names with a patch of their CSS colour, or of the token class ('target', 'control', 'visual', 'context')."""
        entries = []
        for name, colour in colours.items():
            look = f'class={colour}' if colour in TOKEN_CLASSES else f'style="background:{html.escape(colour)}"'
            entries.append(f'<span><i {look}></i>{html.escape(name)}</span>')
        return self._add(f'<div class=legend>{"".join(entries)}</div>')

    def strips(self, rows: Iterable[Sequence[tuple[float, str, str]]], total: float) -> 'Page':
        """A bar for each row: (length, CSS colour, title) of each piece of it; what lacks to `total` stays hatched."""
        lines = []
        for row in rows:
            full = max(total, sum(length for length, _, _ in row))
            lines.append('<div>' + ''.join(
                f'<i style="width:{100 * length / full:.3f}%;background:{html.escape(colour)}" '
                f'title="{html.escape(title)}"></i>' for length, colour, title in row) + '</div>')
        return self._add('<div class=strips>\n' + '\n'.join(lines) + '\n</div>')

    def tokens(self, pieces: Iterable[tuple[str, str, str]]) -> 'Page':
        """Text token by token: (text, class, title) with a class of TOKEN_CLASSES, or '' for a remark between them."""
        lines = []
        for text, kind, title in pieces:
            text = html.escape(text)
            lines.append(f'<i class={kind} title="{html.escape(title)}">{text}</i>' if kind in TOKEN_CLASSES
                         else f'<em>{text}</em>')
        return self._add(f'<div class=tokens>{"".join(lines)}</div>')

    def pictures(self, pictures: Iterable[Picture | tuple], *, layout: str = '') -> 'Page':
        """A grid of pictures: `Picture`s, or tuples of their fields. `layout`: 'large', or 'strip' for a line of them
        that scrolls."""
        settings = {'large': dict(fine=True), 'strip': dict(side=400)}.get(layout, {})
        drawn = '\n'.join(picture_html(Picture(*picture), **settings) for picture in pictures)
        return self._add(f'<div class="{f"pictures {layout}".strip()}">\n{drawn}\n</div>')

    def html(self) -> str:
        """The whole page."""
        title, blocks, in_plots = html.escape(self.title), [], False
        for block in self._blocks:
            if block.startswith('<figure class="plot') != in_plots:  # neighbouring plots stand side by side
                in_plots = not in_plots
                blocks.append('<div class=plots>' if in_plots else '</div>')
            blocks.append(block)
        blocks += ['</div>'] if in_plots else []
        return (f'<!doctype html>\n<html lang=en><head><meta charset=utf-8>'
                f'<meta name=viewport content="width=device-width, initial-scale=1"><title>{title}</title>\n'
                f'<style>{STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n' + '\n'.join(blocks) +
                '\n</main></body></html>\n')

    def write(self, path: str | Path) -> Path:
        """Write the page to `path`, making its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding='utf-8')
        return path

    def _add(self, block: str) -> 'Page':
        self._blocks.append(block)
        return self

    def _plot(self, title: str, figure: Any, kind: str = 'plot') -> 'Page':
        from matplotlib import rc_context
        buffer = io.BytesIO()
        with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title}):  # small, and the same for the same data
            figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
        return self._add(f'<figure class="{kind}"><figcaption>{html.escape(title)}</figcaption>'
                         f'<img alt="{html.escape(title)}" src="{data_uri(buffer.getvalue(), "image/svg+xml")}">'
                         '</figure>')


def series_colour(number: int) -> str:
    """CSS colour of series `number`: those of plots first, then as many as are asked for."""
    if number < len(SERIES):
        return SERIES[number]
    import colorsys
    red, green, blue = colorsys.hls_to_rgb(number * 0.381966 % 1, 0.45 + 0.12 * (number % 3), 0.45)
    return f'#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}'


def _edges(series: Iterable[Sequence[float]], bins: int, log: bool) -> list[float]:
    """Edges of a histogram's bins over all series; bins of whole numbers are whole numbers wide."""
    values = [value for one in series for value in one] or [0]
    low, high = float(min(values)), float(max(values))
    if log:
        ratio = max(high / low, 1.01)
        return [low * ratio ** (i / bins) for i in range(bins + 1)]
    if all(float(value).is_integer() for value in values):
        step = max(1, math.ceil((high - low + 1) / bins))
        return [low - 0.5 + step * i for i in range(math.ceil((high - low + 1) / step) + 1)]
    width = (high - low or abs(high) or 1.0) / bins
    return [low + width * i for i in range(bins + 1)]


def _finish(axes: Any, *, legend: bool, grid: str = 'y') -> None:
    """Quiet axes in a grey that both settings can show."""
    axes.grid(axis=grid, color=INK, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ('top', 'right', *(['left'] if grid == 'y' else [])):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(which='both', colors=INK, length=0, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    if legend:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=4, loc='lower left', bbox_to_anchor=(0, 1.0),
                    borderaxespad=0.2)


def _cell(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    return cell[:1] in set('0123456789-+.–') and not any(letter.isalpha() and letter != 'e' for letter in cell)
